"""The picture of a learning curve."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from bertune.evaluate.baseline import TITLES
from bertune.evaluate.curves import COLOURS, INK, dress
from bertune.evaluate.growth import at
from bertune.evaluate.metrics import METRICS
from bertune.files import atomic_path

GREYS = ("#8a95a3", "#b9c3cf", "#5d6874")  # of the simple models


def plot_growth(curve: dict[str, Any], path: Path) -> None:
    """Draw what `training.curve.growth` returns as a PNG: points with intervals, the fit, and twice the data."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, NullLocator

    figure = Figure(figsize=(7, 4.4), dpi=150, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    points, twice, name = curve["points"], curve["twice"], curve["metric"]
    rows = np.array([point["rows"] for point in points], np.float64)
    values = np.array([point["value"] for point in points])
    for grey, baseline in zip(GREYS, points[-1]["baselines"], strict=False):
        axes.plot(rows, [point["baselines"][baseline] for point in points], color=grey, marker=".", linewidth=1.2,
                  label=TITLES[baseline])  # fmt: skip
    fit = np.array([list(curve["fit"].values())])
    reach = np.geomspace(rows[0], twice["rows"], 200)
    errors = np.array([at(fit, count)[0] for count in reach])
    line = 1 - errors if METRICS[name].higher_is_better else errors
    axes.plot(reach, line, color=COLOURS["train"], linewidth=1.6, linestyle="--", label="power law")
    for places, lows, highs, colour, label in (
        (rows, [point["low"] for point in points], [point["high"] for point in points], COLOURS["train"], "measured"),
        (np.array([twice["rows"]]), [twice["low"]], [twice["high"]], COLOURS["valid"], "foretold"),
    ):
        middle = values if label == "measured" else np.array([twice["value"]])
        below = np.maximum(middle - np.array(lows, np.float64), 0)
        above = np.maximum(np.array(highs, np.float64) - middle, 0)
        axes.errorbar(places, middle, yerr=[below, above], fmt="o", color=colour, capsize=3, markersize=5, label=label)
    axes.set_xscale("log")
    axes.set_xticks([*rows, twice["rows"]])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.xaxis.set_minor_locator(NullLocator())
    dress(axes, "Learning curve", name.replace("_", " "))
    axes.set_xlabel("training rows", color=INK)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")
