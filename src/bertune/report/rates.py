"""The picture of a learning-rate range test."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bertune.evaluate.curves import INK, dress
from bertune.files import write_atomic
from bertune.report.figures import PANEL
from bertune.report.ink import BLUE, GREEN, GREY, ORANGE, Picture, picture

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_range(found: dict[str, Any]) -> Picture:
    """Losses against rates, with the rate that is suggested and the one from which training runs away; `found` is what
    `training.lr_range.judged` returns."""
    rates = np.array([point["lr"] for point in found["points"]])
    raw, line = (
        np.array([np.nan if point[name] is None else point[name] for point in found["points"]])
        for name in ("loss", "smoothed")
    )
    suggestion, diverged = found["suggestion"], found["diverged"]

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        axes.plot(rates, raw, color=GREY, linewidth=0.8, alpha=0.6, label="loss of a step")
        axes.plot(rates, line, color=BLUE, linewidth=1.8, label="smoothed")
        if suggestion is not None:
            axes.axvline(suggestion, color=GREEN, linestyle="-.", label=f"suggested, {suggestion:.1e}")
        if diverged is not None:
            axes.axvline(diverged, color=ORANGE, linestyle="--", label=f"runs away, {diverged:.1e}")
        if len(rates) == 1:
            axes.set_xlim(rates[0] / 2, rates[0] * 2)
        axes.set_xscale("log")
        # A loss that runs away would leave no room for the rest.
        known = line[np.isfinite(line)]
        if len(known):
            low, high = min(known.min(), found["first"]), max(2 * found["first"], known.min())
            axes.set_ylim(low - 0.1 * (high - low), min(high, np.nanmax(raw)) + 0.05 * (high - low))
        dress(axes, "Learning-rate range", "loss")
        axes.set_xlabel("learning rate of the encoder", color=INK)

    told = "none suggested" if suggestion is None else f"suggested {suggestion:.1e}"
    away = "does not run away" if diverged is None else f"runs away from {diverged:.1e} on"
    alt = f"Training loss at rates from {rates[0]:.1e} to {rates[-1]:.1e}: {told}; {away}."
    return picture("lr-range", alt, PANEL, draw)


def keep_range(found: dict[str, Any], folder: Path) -> list[Path]:
    """Draw it as lr-range.svg and lr-range.png in `folder`; their paths."""
    drawn = draw_range(found)
    paths = [folder / f"{drawn.name}.svg", folder / f"{drawn.name}.png"]
    write_atomic(paths[0], drawn.svg)
    write_atomic(paths[1], drawn.png)
    return paths
