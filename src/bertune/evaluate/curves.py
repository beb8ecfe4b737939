"""The picture of a run: curves.png from the records of history.jsonl."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bertune.evaluate.metrics import METRICS, is_better
from bertune.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Record = dict[str, Any]

INK, FAINT, GRID = "#24292f", "#b9c3cf", "#e6e9ed"
# Three hues that stay apart for colour-blind readers and in grey; the training split is blue everywhere.
COLOURS = {"train": "#2a6fb0", "valid": "#d1621b", "test": "#3f8f5f"}
_NAMES = {"train": "training", "valid": "validation", "test": "test"}
HELD_OUT = {
    "perplexity": "Perplexity", "masked_accuracy": "Masked accuracy", "next_accuracy": "Next-sentence accuracy",
}  # fmt: skip
_MARKERS = {"train": "s", "valid": "o", "test": "^"}


def plot_curves(history: list[Record], path: Path, *, metric: str) -> None:
    """Draw losses (left), `metric` (right; a name of `METRICS`) and the learning rate (below the losses) as a PNG.

    history: records {"kind": "step", "step", "epoch", "loss", "lr"} and {"kind": "eval", "step", "epoch", "split",
    "metrics"}, in order; other kinds are ignored. Any of them may be few or absent. No global matplotlib state is used.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.4), dpi=150, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(2, 2, height_ratios=(4, 1))
    losses = figure.add_subplot(grid[0, 0])
    rate = figure.add_subplot(grid[1, 0], sharex=losses)
    scores = figure.add_subplot(grid[:, 1])
    draw_losses(losses, history)
    draw_rate(rate, history)
    draw_scores(scores, history, metric)
    losses.tick_params(labelbottom=False)
    for axes in (losses, rate, scores):
        fit_epochs(axes, history)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")


def plot_pretraining(history: list[Record], path: Path) -> None:
    """Draw the loss, and beside it perplexity and accuracies on the held-out part, as a PNG; `history` as above."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = [name for name in HELD_OUT if _values(history, "valid", name)[1]]
    figure = Figure(figsize=(5 * (1 + len(shown)), 4), dpi=150, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    losses, *others = np.atleast_1d(figure.subplots(1, 1 + len(shown)))
    draw_losses(losses, history)
    for axes, name in zip(others, shown, strict=True):
        draw_held_out(axes, history, name)
    for axes in (losses, *others):
        fit_epochs(axes, history)
        axes.set_xlabel("pass over the corpus", color=INK)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")


def draw_held_out(axes: Axes, history: list[Record], name: str) -> None:
    """One of `HELD_OUT` through a pre-training."""
    _draw_evaluations(axes, history, "valid", name)
    if name == "perplexity":
        axes.set_yscale("log")
    dress(axes, HELD_OUT[name], "held-out part")


def fit_epochs(axes: Axes, history: list[Record]) -> None:
    """From the start to a little after the last record, the same on every panel, so that one evaluation is legible."""
    from matplotlib.ticker import MaxNLocator

    last = max((record["epoch"] for record in history if "epoch" in record), default=0.0) or 1.0
    axes.set_xlim(-0.02 * last, 1.04 * last)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=last >= 2))


def spoken(metric: str) -> str:
    """The name of a metric as a person reads it: `micro F1`."""
    return metric.replace("_", " ").replace("f1", "F1").replace("roc auc", "ROC AUC").replace("mcc", "MCC")


def draw_losses(axes: Axes, history: list[Record]) -> None:
    steps = [record for record in history if record["kind"] == "step" and record.get("loss") is not None]
    epochs = np.array([record["epoch"] for record in steps], dtype=np.float64)
    losses = np.array([record["loss"] for record in steps], dtype=np.float64)
    if len(steps) > 1:
        axes.plot(epochs, losses, color=COLOURS["train"], alpha=0.22, linewidth=0.8)
    if len(steps):
        smooth = smoothed(losses)
        alone = "o" if len(steps) == 1 else ""  # a line needs two points
        axes.plot(epochs, smooth, color=COLOURS["train"], linewidth=2, marker=alone, label=_NAMES["train"])
        # A first spike would press the rest of the curve flat: the axis follows the smooth curve and most raw values.
        valid = _values(history, "valid", "log_loss")[1]
        top = max(float(np.percentile(losses, 98)), float(smooth.max()), *valid, 1e-9)
        axes.set_ylim(0, 1.08 * top)
    _draw_evaluations(axes, history, "valid", "log_loss")
    dress(axes, "Loss", "loss")


def draw_rate(axes: Axes, history: list[Record]) -> None:
    steps = [record for record in history if record["kind"] == "step" and record.get("lr") is not None]
    alone = "o" if len(steps) == 1 else ""
    axes.plot(
        [r["epoch"] for r in steps], [r["lr"] for r in steps], color=INK, linewidth=1.2, marker=alone, markersize=4
    )
    axes.set_ylim(bottom=0)
    axes.ticklabel_format(axis="y", style="sci", scilimits=(0, 0), useMathText=True)
    axes.yaxis.get_offset_text().set_fontsize(8)
    dress(axes, "", "learning\nrate")
    axes.set_xlabel("epoch", color=INK)


def draw_scores(axes: Axes, history: list[Record], metric: str) -> None:
    for split in COLOURS:
        _draw_evaluations(axes, history, split, metric)
    epochs, values = _values(history, "valid", metric)
    best = None
    for index, value in enumerate(values):
        if is_better(metric, value, None if best is None else values[best]):
            best = index
    if best is not None:
        above = METRICS[metric].higher_is_better
        axes.annotate(
            f"best {values[best]:.4f}", (epochs[best], values[best]), textcoords="offset points",
            xytext=(3, 9 if above else -15), ha="right", color=COLOURS["valid"], fontsize=9, fontweight="bold",
        )
    axes.margins(y=0.16)
    name = spoken(metric)
    dress(axes, name[0].upper() + name[1:], name)
    axes.set_xlabel("epoch", color=INK)


def _draw_evaluations(axes: Axes, history: list[Record], split: str, metric: str) -> None:
    epochs, values = _values(history, split, metric)
    if values:
        axes.plot(
            epochs, values, color=COLOURS[split], marker=_MARKERS[split], markersize=5, linewidth=1.6,
            label=_NAMES[split],
        )


def _values(history: list[Record], split: str, metric: str) -> tuple[list[float], list[float]]:
    found = [
        (record["epoch"], record["metrics"][metric])
        for record in history
        if record["kind"] == "eval" and record["split"] == split and record["metrics"].get(metric) is not None
    ]
    return [float(epoch) for epoch, _ in found], [float(value) for _, value in found]


def smoothed(values: np.ndarray) -> np.ndarray:
    """A centred running mean over about a twentieth of the values; at both ends over what there is."""
    reach = max(len(values) // 40, 1 if len(values) >= 10 else 0)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    low, high = np.maximum(index - reach, 0), np.minimum(index + reach + 1, len(values))
    return np.asarray((sums[high] - sums[low]) / (high - low))


def dress(axes: Axes, title: str, label: str) -> None:
    """The look that all pictures share: a title, the vertical axis named, a faint grid, no box."""
    axes.set_title(title, loc="left", fontsize=12, fontweight="bold", color=INK)
    axes.set_ylabel(label, color=INK)
    axes.grid(True, color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, labelsize=9, length=0)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(FAINT)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=9, labelcolor=INK)
