"""The page of a pre-training: what it read, and how well it guesses words of texts that it was not trained on."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from bertune.errors import ModelError
from bertune.evaluate.curves import HELD_OUT, draw_held_out, draw_losses, draw_rate, fit_epochs
from bertune.folder import PRETRAINED
from bertune.report.figures import PANEL
from bertune.report.gather import json_of, lines_of, shown_config
from bertune.report.ink import Picture, picture
from bertune.report.page import render
from bertune.settings import read_yaml

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TASKS = {"mlm": "words that were masked", "nsp": "whether one text follows another",
         "both": "words that were masked, and whether one text follows another"}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Pretraining:
    """A finished pre-training. base: what it began with, None: random weights; config: as YAML, without folders."""

    name: str
    metrics: dict[str, Any]
    history: list[dict[str, Any]]
    machine: dict[str, Any]
    base: str | None
    config: str


def is_pretraining(out: Path) -> bool:
    """Whether `out` holds a pre-training, finished or not."""
    return (out / "run" / PRETRAINED).is_file()


def gather_pretraining(out: Path) -> Pretraining:
    """Read the pre-training in `out`. Raises ModelError where it has not finished."""
    run = out / "run"
    metrics = json_of(run / "metrics.json")
    if metrics is None:
        way = f"bertune pretrain --resume --out {out}"
        raise ModelError(f"{out}: a pre-training that has not finished. Go on with: {way}.")
    base = (json_of(run / PRETRAINED) or {}).get("base_model")
    return Pretraining(
        name=out.resolve().name, metrics=metrics, history=lines_of(run / "history.jsonl"),
        machine=read_yaml(run / "machine.yaml"), base=base and (base["title"] or base["name"]),
        config=shown_config(read_yaml(run / "config.yaml")),
    )  # fmt: skip


def draw_pretraining(history: list[dict[str, Any]]) -> dict[str, Picture]:
    """Loss and learning rate, and each figure of the held-out part, by name."""

    def losses(figure: Figure) -> None:
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
        draw_losses(upper, history)
        draw_rate(lower, history)
        lower.set_xlabel("pass over the corpus")
        for axes in (upper, lower):
            fit_epochs(axes, history)

    steps = [record["loss"] for record in history if record["kind"] == "step"]
    told = f"from {steps[0]:.4f} to {steps[-1]:.4f}" if steps else "unknown"
    found = {"loss": picture("loss", f"Training loss {told}.", PANEL, losses)}
    evals = [record["metrics"] for record in history if record["kind"] == "eval"]
    for name, title in HELD_OUT.items():
        values = [metrics[name] for metrics in evals if name in metrics]

        def curve(figure: Figure, name: str = name) -> None:
            axes = figure.add_subplot()
            draw_held_out(axes, history, name)
            fit_epochs(axes, history)
            axes.set_xlabel("pass over the corpus")

        if values:
            alt = f"{title} of the held-out part, by evaluation: {', '.join(f'{value:.4g}' for value in values)}."
            place = name.replace("_", "-")
            found[place] = picture(place, alt, PANEL, curve)
    return found


def pretraining_page(found: Pretraining, pictures: Mapping[str, Picture]) -> str:
    """The page."""
    after, before = found.metrics.get("held_out", {}), found.metrics.get("before") or {}
    rows = [
        (title, f"{before[name]:.4g}" if name in before else "", f"{after[name]:.4g}")
        for name, title in HELD_OUT.items() if name in after
    ]  # fmt: skip
    return render(
        "pretraining.html", script="", title=f"{found.name}: pre-training", run=found, metrics=found.metrics,
        learned=TASKS[found.metrics["objective"]], headline=headline(found.metrics), rows=rows,
        pictures={name: Markup(each.inline()) for name, each in pictures.items()},
        command=f"bertune pretrain --config {shlex.quote(found.name)}/run/config.yaml --out "
                f"{shlex.quote(found.name + '-again')}",
    )  # fmt: skip


def headline(metrics: Mapping[str, Any]) -> str:
    """What it comes to, in a sentence."""
    after, before = metrics.get("held_out"), metrics.get("before")
    if not after or not before:
        return "Nothing was held out, so nothing is known about what it learned."
    name = next(name for name in HELD_OUT if name in after)
    better = (after[name] < before[name]) if name == "perplexity" else (after[name] > before[name])
    what = "next sentences" if name == "next_accuracy" else "masked words"
    return (
        f"It guesses {what} of texts that it was not trained on {'better' if better else 'no better'} than before: "
        f"{HELD_OUT[name].lower()} {before[name]:.4g} before, {after[name]:.4g} now."
    )
