"""Where a model does badly: one metric on parts of the rows, by length, by truncation, by any column."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from bertune.evaluate.metrics import METRICS, Array
from bertune.evaluate.resample import LEVEL, RANKED, Scores, resamples

DRAWS = 400  # of the bootstrap, for standard errors
FEWEST = 20  # rows of a slice that can be named the worst
VALUES = 20  # of a column; rarer ones are taken together
NUMBERS = 10  # different numbers from which a column is cut into quarters
EDGES = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096)  # tokens

OTHERS, MISSING = "(others)", "(missing)"


def slices(
    scores: Scores, metric: str, by: Mapping[str, Sequence[str]], *, groups: Sequence[object] | None = None
) -> dict[str, Any]:
    """{"metric", "by": {attribute: [slice, ...]}, "worst": slice or None}.

    by: for each attribute its value in every row. A slice is {"by", "value", "rows", "score", "rest" (the score of all
    other rows), "low", "high"}; the last two bound score - rest from both sides. Their level is 95 % over all slices
    together (Bonferroni), since among many slices one always looks bad. worst: the slice of at least 20 rows that lies
    furthest on the bad side of the rest. A score that is undefined on either side leaves its slice out.
    """
    masks = [
        (attribute, value, np.array(cells, object) == value)
        for attribute, cells in by.items() for value in dict.fromkeys(cells) if len(set(cells)) > 1
    ]  # fmt: skip
    found: list[dict[str, Any]] = []
    errors = _standard_errors(scores, metric, [mask for *_, mask in masks], groups)
    far = _normal_quantile(1 - (1 - LEVEL) / 2 / max(1, len(masks)))
    for (attribute, value, mask), error in zip(masks, errors, strict=True):
        own, rest = (float(scores(part[None].astype(float), [metric])[metric][0]) for part in (mask, ~mask))
        if np.isfinite([own, rest, error]).all():
            found.append({
                "by": attribute, "value": value, "rows": int(mask.sum()), "score": own, "rest": rest,
                "low": own - rest - far * error, "high": own - rest + far * error,
            })  # fmt: skip
    better = 1 if METRICS[metric].higher_is_better else -1
    large = [each for each in found if each["rows"] >= FEWEST and better * (each["score"] - each["rest"]) < 0]
    worst = min(large, key=lambda each: better * (each["score"] - each["rest"]), default=None)
    order = {attribute: [each for each in found if each["by"] == attribute] for attribute in by}
    return {"metric": metric, "by": {name: part for name, part in order.items() if part}, "worst": worst}


def worst_in_words(found: Mapping[str, Any]) -> str | None:
    """A sentence about the worst slice; None where there is none."""
    worst = found["worst"]
    if worst is None:
        return None
    where = f"{worst['by']} {worst['value']} ({worst['rows']:,} rows)"
    text = f"Worst slice: {where}, {found['metric']} {worst['score']:.4f} against {worst['rest']:.4f} of the others"
    if worst["low"] <= 0 <= worst["high"]:
        return f"{text}; among so many slices that may be chance."
    sides = sorted(abs(worst[side]) for side in ("low", "high"))
    return f"{text} (worse by {sides[0]:.4f} to {sides[1]:.4f})."


def attributes(
    full_lengths: Array, lengths: Array, columns: Mapping[str, Sequence[object]]
) -> dict[str, list[str]]:
    """By what rows are measured apart: their length in tokens, whether they were cut (full_lengths, lengths: tokens
    before and after cutting, [n]), and the cells of columns."""
    by = {"length": length_buckets(full_lengths), "truncated": np.where(full_lengths > lengths, "yes", "no").tolist()}
    return by | {name: column_values(cells) for name, cells in columns.items()}


def length_buckets(lengths: Array) -> list[str]:
    """`17 to 32`, by tokens, for each row."""
    ends = np.array(EDGES)
    place = np.searchsorted(ends, lengths)
    names = [f"up to {EDGES[0]}", *(f"{low + 1} to {high}" for low, high in pairwise(EDGES)),
             f"over {EDGES[-1]}"]  # fmt: skip
    return [names[number] for number in place]


def column_values(cells: Sequence[object]) -> list[str]:
    """What a column says of each row: quarters of numbers, otherwise its values, rare ones taken together."""
    numbers = _numbers(cells)
    if numbers is not None and len(np.unique(numbers[np.isfinite(numbers)])) > NUMBERS:
        known = numbers[np.isfinite(numbers)]
        edges = np.unique(np.quantile(known, [0, 0.25, 0.5, 0.75, 1]))
        place = np.clip(np.searchsorted(edges, numbers, side="left"), 1, len(edges) - 1)
        return [
            MISSING if not np.isfinite(number) else f"{edges[at - 1]:g} to {edges[at]:g}"
            for number, at in zip(numbers, place, strict=True)
        ]
    texts = [MISSING if cell is None or cell != cell or str(cell).strip() == "" else str(cell) for cell in cells]
    kept = {value for value, _ in Counter(texts).most_common(VALUES)}
    return [text if text in kept else OTHERS for text in texts]


def _numbers(cells: Sequence[object]) -> Array | None:
    """The cells as float64, NaN where one is missing; None where one is no number."""
    try:
        return np.array([np.nan if cell is None or str(cell).strip() == "" else float(str(cell)) for cell in cells])
    except ValueError:
        return None


def _standard_errors(
    scores: Scores, metric: str, masks: list[Array], groups: Sequence[object] | None
) -> list[float]:
    """Of score - rest, over bootstrap draws."""
    drawn: list[list[Array]] = [[] for _ in masks]
    for weights in resamples(scores.rows, draws=DRAWS, groups=groups):
        whole, total = weights @ scores.columns, weights.sum(axis=1)
        for number, mask in enumerate(masks):
            part = weights[:, mask]
            inside, outside = part.sum(axis=1), total - part.sum(axis=1)
            there = (inside > 0) & (outside > 0)  # draws with rows on both sides
            if metric in RANKED:
                sides = (scores(weights[there] * side, [metric])[metric] for side in (mask, ~mask))
            else:
                sums = part[there] @ scores.columns[mask]
                sides = (scores.from_sums(found, held)[metric] for found, held in (
                    (sums, inside[there]), (whole[there] - sums, outside[there])
                ))  # fmt: skip
            own, rest = sides
            drawn[number].append(own - rest)
    together = [np.concatenate(parts) for parts in drawn]
    return [float(np.nanstd(values)) if np.isfinite(values).sum() > DRAWS // 2 else np.nan for values in together]


def _normal_quantile(share: float) -> float:
    from scipy.special import ndtri

    return float(ndtri(share))
