"""Tables of a reproduction: published, ours, the difference with its interval, and what that says of the finding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from bertune.evaluate.card import markdown_table
from bertune.evaluate.metrics import METRICS
from bertune.evaluate.seeds import SeedVariance, seed_differences, seed_variance
from bertune.reproduce.keep import Done, read_cell
from bertune.reproduce.spec import Cell, Spec, Table

SHARED_OUT = (
    "Minutes of a joint training are shared out by the tokens that it read of each set of data. Where a task was then "
    "fine-tuned further alone, they are its share and those of its own."
)


def results(spec: Spec, cells: list[Cell], out: Path) -> dict[str, Any]:
    """The lines of each table: data, row, published, seeds, value, sd, difference, low, high, verdict, seconds.

    Values are in the unit of the table; differences are to the row `against` (the table's reference where a row names
    none) of the same data, paired by rows and seeds, with 95 % intervals over both; how far seeds lie apart is what all
    rows tell together that are compared with that one. What has no seed yet is None.
    """
    done: dict[tuple[str, str, str], dict[int, Done]] = {}
    for cell in cells:
        there = done.setdefault((cell.table, cell.data, cell.row), {})
        kept = read_cell(spec, cell, out)
        if kept is not None:
            there[cell.seed] = kept
    values = {
        place: {seed: _value(one, spec.tables[place[0]].metric) for seed, one in there.items()}
        for place, there in done.items()
    }
    lines: dict[str, list[dict[str, Any]]] = {}
    for (name, data, row), found in done.items():
        table = spec.tables[name]
        other = table.other(row)
        # What is compared with one and the same row; few rows, say, vary more than many, and are no measure for them.
        alike = [way for way in table.rows if other in (way, table.other(way))]
        pooled = seed_variance({way: values.get((name, data, way), {}) for way in alike})
        lines.setdefault(name, []).append(_line(table, data, row, found, done.get((name, data, other), {}), pooled))
    return lines


def _line(
    table: Table, data: str, row: str, found: dict[int, Done], reference: dict[int, Done],
    pooled: SeedVariance | None,
) -> dict[str, Any]:
    published = table.rows[row].figure(data)
    other = table.other(row)
    line: dict[str, Any] = {"data": data, "row": row, "published": published, "seeds": len(found), "against": other}
    line |= dict.fromkeys(("value", "sd", "difference", "low", "high", "verdict", "seconds"))
    if not found:
        return line
    values = [table.shown(_value(done, table.metric)) for done in found.values()]
    line |= {"value": float(np.mean(values)), "sd": float(np.std(values, ddof=1)) if len(values) > 1 else None}
    line["seconds"] = float(np.mean([done.record["seconds"] for done in found.values()]))
    both = sorted(found.keys() & reference.keys())
    if row == other or not both:
        return line
    ours, theirs = ([side[seed].scores for seed in both] for side in (found, reference))
    difference, low, high = seed_differences(table.metric, ours, theirs, pooled=pooled)
    if table.unit == "error":
        difference, low, high = -100 * difference, -100 * high, -100 * low
    falls = table.unit == "error" or not METRICS[table.metric].higher_is_better
    said = verdict(_published_gap(table, data, row), low, high, lower_is_better=falls)
    return line | {"difference": difference, "low": low, "high": high, "verdict": said}


def _value(done: Done, metric: str) -> float:
    """Of the likeliest label, or of a half: what a rule would add was not published."""
    return float(done.scores(np.ones((1, done.scores.rows)), [metric])[metric][0])


def _published_gap(table: Table, data: str, row: str) -> float | None:
    own, other = (table.rows[name].figure(data) for name in (row, table.other(row)))
    return None if own is None or other is None else own - other


def verdict(gap: float | None, low: float, high: float, *, lower_is_better: bool) -> str:
    """What the interval of our difference says of the published one, `gap`; without one, which of both is better."""
    if not (low > 0 or high < 0):  # nor where it is undefined
        return "noise"
    if not gap:
        return "worse" if (low > 0) == lower_is_better else "better"
    return "holds" if (low > 0) == (gap > 0) else "does not hold"


def markdown(spec: Spec, lines: dict[str, list[dict[str, Any]]], *, model: str, seeds: int) -> str:
    """The tables as a page of Markdown."""
    trained = "one seed" if seeds == 1 else f"up to {seeds} seeds"
    over = "rows"
    if seeds > 1:
        over = "rows and seeds, whose variance all trainings tell together that are compared with the same one"
    how = (
        f"Ours: `--model {model}`, {trained}. Differences are to the row that is named, on the same test "
        f"rows, with 95 % intervals over {over}; test rows were measured once, after validation rows had chosen."
    )
    parts = [f"# {spec.title}", spec.source, spec.note, how]
    used = {data for name in lines for data in spec.tables[name].data}
    notes = [f"- {name}: {spec.data[name].note}" for name in spec.data if name in used and spec.data[name].note]
    parts.append("\n".join(notes))
    for name, found in lines.items():
        table = spec.tables[name]
        unit = "error, %" if table.unit == "error" else table.unit
        rows = [[
            "data", "training", f"published, {unit}", f"ours, {unit}", "seeds", f"against {_named(table)}", "finding",
            "minutes",
        ]]  # fmt: skip
        rows += [_shown(line, table) for line in found]
        shared_out = SHARED_OUT if any(row.together for row in table.rows.values()) else ""
        parts += [f"## {name}: {table.title}", table.note, shared_out, markdown_table(rows)]
    return "\n\n".join(part.strip() for part in parts if part.strip()) + "\n"


def _named(table: Table) -> str:
    """What the rows of a table are compared with, for the head of the column; where that is several, lines name it."""
    return "another row" if _several(table) else table.reference


def _several(table: Table) -> bool:
    return any(row.against not in (None, table.reference) for row in table.rows.values())


def _shown(line: dict[str, Any], table: Table) -> list[str]:
    digits = 2 if table.unit == "error" else 4

    def number(value: float | None, sign: str = "") -> str:
        return "" if value is None else f"{round(value, digits) + 0.0:{sign}.{digits}f}"  # never -0.00

    ours = number(line["value"]) + (f" ± {number(line['sd'])}" if line["sd"] is not None else "")
    gap = ""
    if line["difference"] is not None:
        gap = f"{number(line['difference'], '+')} ({number(line['low'], '+')} to {number(line['high'], '+')})"
        gap += f" to {line['against']}" if _several(table) else ""
    minutes = "" if line["seconds"] is None else f"{line['seconds'] / 60:.0f}"
    return [line["data"], line["row"], number(line["published"]), ours, str(line["seeds"]), gap,
            line["verdict"] or "", minutes]  # fmt: skip
