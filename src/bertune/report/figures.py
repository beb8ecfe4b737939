"""The figures of a result: each a panel that fits a phone, drawn from numbers that are there already."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from bertune.evaluate.baseline import TITLES
from bertune.evaluate.curves import INK, draw_losses, draw_rate, draw_scores, dress, fit_epochs, spoken
from bertune.evaluate.metrics import Array
from bertune.report.gather import Answers, Gathered
from bertune.report.ink import BLUE, FAINT, GREY, ORANGE, SERIES, Picture, drawn, picture, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANEL = (4.7, 3.3)  # inches: its text is still legible at the width of a phone
MOST = 30  # labels that a matrix has room for
NUMBERS = 12  # labels up to which its cells show their numbers
POINTS = 200  # of a curve; more cannot be told apart
NAMED = len(SERIES)  # curves with a colour of their own


def draw_all(gathered: Gathered) -> dict[str, Picture]:
    """Every figure that the result has numbers for, by name, in the order of the page."""
    return {found.name: found for found in _figures(gathered)}


def _figures(gathered: Gathered) -> Iterator[Picture]:
    metrics, split, answers = gathered.metrics, gathered.split, gathered.answers
    if split is not None:
        yield from _standing(metrics, split)
    if gathered.history:
        yield from _course(gathered.history, metrics["metric"])
    if split is None:
        return
    if answers is not None:
        if answers.task.num_labels <= MOST:
            yield _matrix(answers)
        yield _precision_recall(answers)
    if split in metrics.get("calibration", {}):
        yield _reliability(metrics["calibration"][split])
    if metrics.get("abstention", {}).get(split, {}).get("curve"):
        yield _coverage(metrics["abstention"], split)


# How the result stands


def _standing(metrics: dict[str, Any], split: str) -> Iterator[Picture]:
    metric = metrics["metric"]
    interval = metrics["intervals"][split].get(metric)
    if interval is None:
        return
    value, name = metrics[split][metric], spoken(metric)
    simple = {TITLES[key]: found[split] for key, found in metrics["baselines"].items() if metric in found[split]}

    def values(figure: Figure) -> None:
        axes = figure.add_subplot()
        rows = ["this model", *simple]
        axes.plot(interval, [0, 0], color=BLUE, linewidth=7, alpha=0.3, solid_capstyle="butt")
        axes.plot([value], [0], "o", color=BLUE, markersize=8)
        axes.plot([found[metric] for found in simple.values()], range(1, len(rows)), "D", color=GREY, markersize=6)
        _name_rows(axes, rows)
        dress(axes, f"{name[0].upper()}{name[1:]}, {split} split", "")
        for place, number in enumerate([value, *(found[metric] for found in simple.values())]):
            axes.annotate(f"{number:.4f}", (number, place), textcoords="offset points", xytext=(0, 9), ha="center",
                          fontsize=8)  # fmt: skip
        axes.margins(x=0.14)

    told = "; ".join(f"{key} {found[metric]:.4f}" for key, found in simple.items())
    height = 1.1 + 0.42 * (1 + len(simple))
    yield picture(
        "standing", f"{name} of this model {value:.4f}, 95 % interval {interval[0]:.4f} to {interval[1]:.4f}; {told}.",
        (PANEL[0], height), values,
    )  # fmt: skip
    gains = {key: found["gain"] for key, found in simple.items() if found.get("gain") is not None}
    if not gains:
        return

    def apart(figure: Figure) -> None:
        axes = figure.add_subplot()
        axes.axvline(0, color=INK, linewidth=1)
        for place, gain in enumerate(gains.values()):
            axes.plot([gain["low"], gain["high"]], [place, place], color=BLUE, linewidth=7, alpha=0.3,
                      solid_capstyle="butt")  # fmt: skip
            axes.plot([gain["difference"]], [place], "o", color=BLUE, markersize=8)
            axes.annotate(f"{gain['difference']:+.4f}", (gain["difference"], place), textcoords="offset points",
                          xytext=(0, 9), ha="center", fontsize=8)  # fmt: skip
        _name_rows(axes, [f"over {key}" for key in gains])
        dress(axes, "Gain, paired", "")
        axes.margins(x=0.14)

    told = "; ".join(
        f"over {key} {gain['difference']:+.4f}, {gain['low']:+.4f} to {gain['high']:+.4f}"
        for key, gain in gains.items()
    )
    yield picture("gains", f"Gain in {name}, with 95 % intervals: {told}.", (PANEL[0], height), apart)


def _name_rows(axes: Axes, names: list[str]) -> None:
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.7)


# The course of training


def _course(history: list[dict[str, Any]], metric: str) -> Iterator[Picture]:
    steps = [record for record in history if record["kind"] == "step" and record.get("loss") is not None]
    evals = [record for record in history if record["kind"] == "eval" and record["split"] == "valid"]

    def losses(figure: Figure) -> None:
        grid = figure.add_gridspec(2, 1, height_ratios=(4, 1))
        upper = figure.add_subplot(grid[0])
        lower = figure.add_subplot(grid[1], sharex=upper)
        draw_losses(upper, history)
        draw_rate(lower, history)
        upper.tick_params(labelbottom=False)
        for axes in (upper, lower):
            fit_epochs(axes, history)

    def scores(figure: Figure) -> None:
        axes = figure.add_subplot()
        draw_scores(axes, history, metric)
        fit_epochs(axes, history)

    first, last = (f"{steps[place]['loss']:.4f}" if steps else "unknown" for place in (0, -1))
    yield picture("loss", f"Training loss from {first} to {last} in {len(steps):,} steps.", PANEL, losses)
    known = [record["metrics"].get(metric) for record in evals]
    told = ", ".join("-" if value is None else f"{value:.4f}" for value in known[:40]) or "not measured"
    yield picture("scores", f"{spoken(metric)} on the validation rows, by evaluation: {told}.", PANEL, scores)


# Labels


def confusion(answers: Answers) -> Array:
    """How many rows that have label i were given label j, int64 [L, L]."""
    return np.asarray(answers.truth.astype(np.float64).T @ answers.given.astype(np.float64)).astype(np.int64)


def confused(answers: Answers, limit: int = 15) -> list[tuple[str, str, int]]:
    """(true, given, rows): the label given in place of, or beside, the true one, without being true itself."""
    wrong = answers.truth.astype(np.float64).T @ (answers.given & ~answers.truth).astype(np.float64)
    order = np.argsort(-wrong.ravel(), kind="stable")[:limit]
    places = (np.unravel_index(place, wrong.shape) for place in order.tolist())
    labels = answers.task.labels
    return [(labels[i], labels[j], int(wrong[i, j])) for i, j in places if wrong[i, j] > 0]


def _matrix(answers: Answers) -> Picture:
    counts, labels = confusion(answers), answers.task.labels
    support = answers.truth.sum(axis=0)
    single = answers.task.kind == "single"

    def draw(figure: Figure) -> None:
        from matplotlib.collections import PatchCollection
        from matplotlib.colors import to_rgba
        from matplotlib.patches import Rectangle

        axes = figure.add_subplot()
        shares = counts / np.maximum(support, 1)[:, None]
        cells = [Rectangle((j - 0.5, i - 0.5), 1, 1) for i, j in np.argwhere(counts > 0)]
        tints = [to_rgba(BLUE if i == j else ORANGE, 0.08 + 0.5 * shares[i, j]) for i, j in np.argwhere(counts > 0)]
        axes.add_collection(PatchCollection(cells, facecolors=tints, edgecolors="none"))
        if len(labels) <= NUMBERS:
            for i, j in np.ndindex(*counts.shape):
                axes.text(j, i, f"{counts[i, j]:,}", ha="center", va="center", fontsize=8,
                          alpha=1 if counts[i, j] else 0.35)  # fmt: skip
        names = [drawn(label) for label in labels]
        axes.set_xticks(range(len(labels)), names, rotation=45 if len(labels) > 3 else 0,
                        ha="right" if len(labels) > 3 else "center", rotation_mode="anchor")  # fmt: skip
        axes.set_yticks(range(len(labels)), names)
        axes.set_xlim(-0.5, len(labels) - 0.5)
        axes.set_ylim(len(labels) - 0.5, -0.5)
        axes.set_aspect("equal")
        dress(axes, "Confusion" if single else "Labels together", "true label" if single else "label of the row")
        axes.set_xlabel("answer" if single else "label that was given")
        axes.grid(False)

    side = 2.6 + 0.42 * len(labels) if len(labels) <= NUMBERS else 2.6 + 0.26 * len(labels)
    right = int(np.trace(counts))
    alt = (
        f"Confusion matrix of {len(labels)} labels: {right:,} of {counts.sum():,} rows on the diagonal."
        if single else
        f"Labels that rows have against labels they were given, {len(labels)} by {len(labels)}; on the diagonal "
        f"{right:,} of {support.sum():,} labels that were found."
    )  # fmt: skip
    return picture("confusion" if single else "cooccurrence", alt, (max(PANEL[0], side + 0.8), max(3.0, side)), draw)


def _precision_recall(answers: Answers) -> Picture:
    from sklearn.metrics import average_precision_score, precision_recall_curve

    labels, truth, shares = answers.task.labels, answers.truth, answers.shares
    known = [place for place in range(len(labels)) if truth[:, place].any()]
    areas = {place: float(average_precision_score(truth[:, place], shares[:, place])) for place in known}
    few = len(known) <= NAMED
    named = known if few else sorted(known, key=lambda place: areas[place])[: NAMED - 1]

    def line(axes: Axes, hits: Array, scores: Array, **style: Any) -> None:
        precision, recall, _ = precision_recall_curve(hits, scores)
        kept = np.unique(np.linspace(0, len(recall) - 1, POINTS).astype(int))
        axes.plot(recall[kept], precision[kept], drawstyle="steps-post", **style)

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        if not few:
            for place in [each for each in known if each not in named][:MOST]:
                line(axes, truth[:, place], shares[:, place], color=FAINT, linewidth=0.8)
        for place, (colour, dashes) in zip(named, SERIES, strict=False):
            line(axes, truth[:, place], shares[:, place], color=colour, linestyle=dashes, linewidth=1.6,
                 label=f"{drawn(labels[place])} {areas[place]:.3f}")  # fmt: skip
        if not few:
            line(axes, truth.ravel(), shares.ravel(), color=INK, linewidth=2, label="all labels together")
        axes.set_xlim(-0.02, 1.02)
        axes.set_ylim(-0.02, 1.05)
        axes.set_xlabel("recall")
        dress(axes, "Precision by recall", "precision")
        if known:
            axes.legend(frameon=False, fontsize=8, loc="lower left", labelcolor=INK)

    told = ", ".join(f"{short(labels[place])} {areas[place]:.4f}" for place in named)
    most = "" if few else f" The {len(named)} lowest of {len(known)} are named."
    return picture("precision-recall", f"Precision-recall curves; average precision: {told}.{most}", (4.7, 3.6), draw)


# Probabilities


def _reliability(found: dict[str, Any]) -> Picture:
    before, after = found["before"], found["after"]
    sides = [(before, "before", ORANGE, "--", "D"), (after, "after calibration", BLUE, "-", "o")]
    if before == after:
        sides = [(after, "the model as it is", BLUE, "-", "o")]

    def draw(figure: Figure) -> None:
        grid = figure.add_gridspec(2, 1, height_ratios=(4, 1))
        axes = figure.add_subplot(grid[0])
        below = figure.add_subplot(grid[1], sharex=axes)
        axes.plot([0, 1], [0, 1], color=FAINT, linewidth=1.2)
        for side, name, colour, dashes, mark in sides:
            bins = side["reliability"]
            axes.plot([row["probability"] for row in bins], [row["right"] for row in bins], color=colour,
                      linestyle=dashes, marker=mark, markersize=4, label=f"{name}, ECE {side['ece']:.4f}")  # fmt: skip
        bins = after["reliability"]
        below.bar([(row["low"] + row["high"]) / 2 for row in bins], [row["count"] for row in bins],
                  width=[0.9 * (row["high"] - row["low"]) for row in bins], color=BLUE, alpha=0.5)  # fmt: skip
        axes.set_xlim(-0.02, 1.02)
        axes.set_ylim(-0.02, 1.05)
        axes.tick_params(labelbottom=False)
        dress(axes, "Reliability", "share that was right")
        axes.legend(frameon=False, fontsize=8, labelcolor=INK)
        dress(below, "", "count")
        below.set_xlabel("probability that was told")

    return picture(
        "reliability", f"Reliability diagram. Expected calibration error before {before['ece']:.4f}, after "
        f"{after['ece']:.4f}.", (4.7, 3.6), draw,
    )  # fmt: skip


def _coverage(found: dict[str, Any], split: str) -> Picture:
    curve, least = found[split]["curve"], found.get("confidence")
    answered, right = [row["answered"] for row in curve], [row["accuracy"] for row in curve]
    given, kept = found[split].get("answered"), found[split].get("accuracy")

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        axes.plot(answered, right, color=BLUE, marker="o", markersize=3.5, linewidth=1.6)
        if given and kept is not None:
            axes.plot([given], [kept], "D", color=ORANGE, markersize=8,
                      label=f"stored: confidence {least:.3f} or more")  # fmt: skip
            axes.legend(frameon=False, fontsize=8, loc="lower left", labelcolor=INK)
        axes.set_xlim(0, 1.04)
        axes.margins(y=0.15)
        axes.set_xlabel("share of the rows that are answered, the surest first")
        dress(axes, "Accuracy among the answered", "accuracy")

    half = min(curve, key=lambda row: abs(row["answered"] - 0.5))
    alt = (f"Of the surest half of the rows {half['accuracy']:.4f} are answered all right, of all rows "
           f"{right[-1]:.4f}.")  # fmt: skip
    return picture("coverage", alt, (4.7, 3.6), draw)

