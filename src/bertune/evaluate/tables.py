"""Results as tables: cells of text that a terminal, a card or a page lays out in its own way."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from bertune.errors import printable
from bertune.evaluate.baseline import TITLES
from bertune.evaluate.metrics import METRICS
from bertune.evaluate.slices import worst_in_words


def result_columns(metrics: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Columns for `result_table` from metrics.json: the splits, then, of the split that counts most, the intervals and
    the baselines. A split without the metric that chose the epoch was not measured and is left out."""
    columns: dict[str, Mapping[str, Any]] = {
        name: metrics[name] for name in ("train", "valid", "test") if metrics["metric"] in metrics.get(name, {})
    }
    split = judged_split(metrics)
    if split is None:
        return columns
    columns |= interval_column(metrics["intervals"][split], f"{split}, 95 %")
    rows = {"rows": metrics[split]["rows"]}
    return columns | {TITLES[name]: rows | found[split] for name, found in metrics["baselines"].items()}


def judged_split(metrics: Mapping[str, Any]) -> str | None:
    """The split whose figures count: test, or else valid; None where neither was measured, or no interval is there."""
    return next((name for name in ("test", "valid") if name in metrics.get("intervals", {})), None)


def interval_column(intervals: Mapping[str, Any], title: str) -> dict[str, Mapping[str, Any]]:
    """The column of `resample.intervals`."""
    return {
        title: {name: f"{found[0]:.4f} to {found[1]:.4f}" for name, found in intervals.items()
                if name in METRICS and found is not None}
    }  # fmt: skip


def verdict(metrics: Mapping[str, Any]) -> list[str]:
    """In a sentence each: the metric that counts with its interval, how it stands to each baseline, the worst slice."""
    split, metric = judged_split(metrics), metrics["metric"]
    if split is None or metrics["intervals"][split][metric] is None:
        return []
    low, high = metrics["intervals"][split][metric]
    lines = [f"{metric} on the {split} split: {metrics[split][metric]:.4f} (95 %: {low:.4f} to {high:.4f})."]
    for name, found in metrics["baselines"].items():
        gain = found[split].get("gain")
        if gain is not None:
            lines.append(f"Against {TITLES[name]} ({found[split][metric]:.4f}): {gain_in_words(gain)}.")
    worst = worst_in_words(metrics["slices"][split])
    return lines if worst is None else [*lines, worst]


def gain_in_words(gain: Mapping[str, float]) -> str:
    """`better by 0.2 (0.1 to 0.3)`; worse, or noise where the interval holds 0."""
    difference, low, high = gain["difference"], gain["low"], gain["high"]
    if low > 0:
        return f"better by {difference:.4f} ({low:.4f} to {high:.4f})"
    if high < 0:
        return f"worse by {-difference:.4f} ({-high:.4f} to {-low:.4f})"
    return f"the difference, {difference:+.4f} ({low:+.4f} to {high:+.4f}), is noise"


def result_table(results: Mapping[str, Mapping[str, Any]], kind: str) -> list[list[str]]:
    """Rows for `format_table` from metrics by split name: a header, the number of rows, then a metric a row.

    What a split has not been measured for is '-'.
    """
    names = ["rows", *(name for name, metric in METRICS.items() if kind in metric.kinds)]
    return [["", *results], *([name, *(shown(found.get(name)) for found in results.values())] for name in names)]


def label_table(metrics: Mapping[str, Any]) -> list[list[str]]:
    """Rows for `format_table` from what `evaluate` returned: a header, then a label a row."""
    names = list(metrics["per_label"][0])
    return [names, *([shown(row[name]) for name in names] for row in metrics["per_label"])]


def shown(value: Any) -> str:
    """A cell of a table: four decimals for measures, thousands apart for counts, '-' for what is undefined."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def format_table(table: Sequence[Sequence[str]]) -> str:
    """Plain text for a terminal: the first row is the header, the first column is aligned left, the rest right."""
    # Labels are the users': a line break or an escape sequence in one must not break the table or the terminal.
    cells = [[printable(cell) for cell in row] for row in table]
    widths = [max(text_width(row[index]) for row in cells) for index in range(len(cells[0]))]
    lines = []
    for row in cells:
        pads = [" " * (width - text_width(cell)) for cell, width in zip(row, widths, strict=True)]
        padded = [row[0] + pads[0], *(pad + cell for pad, cell in zip(pads[1:], row[1:], strict=True))]
        lines.append("  ".join(padded).rstrip())
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def text_width(text: str) -> int:
    """Columns of a terminal that `text` takes: Chinese characters take two, accents none."""
    return sum(
        0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text
    )
