"""Rows that say the same: copies, copies across splits, and copies that contradict one another."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from bertune.doctor.corpus import Corpus
from bertune.doctor.findings import Finding, Severity, plural, share
from bertune.doctor.similar import SIMILAR, similar_pairs

_LEAK = "The figures of {held} are too good by these rows: remove them from {other}{how}, or split by --group."
_PLANNED = " (--fix writes a plan that does)"


@dataclass(frozen=True)
class Copies:
    """Groups of rows, each in ascending order. same: with equal normalised text; near: with nearly equal text, of every
    group in `same` only the first row standing for it."""

    same: list[list[int]]
    near: list[list[int]]


def find_copies(corpus: Corpus) -> Copies:
    """Both kinds of groups. Rows without any text are in none."""
    groups: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for row, key in enumerate(corpus.keys):
        if any(key):
            groups[key].append(row)
    firsts = [rows[0] for rows in groups.values()]
    sides = [list(side) for side in zip(*groups, strict=True)]
    pairs = similar_pairs(sides) if sides else np.empty((0, 2), np.int64)
    near = connected(len(firsts), pairs)
    return Copies([rows for rows in groups.values() if len(rows) > 1], [[firsts[number] for number in group]
                                                                       for group in near])  # fmt: skip


def connected(count: int, pairs: np.ndarray) -> list[list[int]]:
    """Groups of at least two numbers that chains of pairs connect, in ascending order."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    if not len(pairs):
        return []
    graph = coo_array((np.ones(len(pairs), np.int8), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    _, group = connected_components(graph, directed=False)
    members: dict[int, list[int]] = defaultdict(list)
    for number in np.unique(pairs).tolist():
        members[int(group[number])].append(number)
    return list(members.values())


def examine_copies(corpus: Corpus, copies: Copies) -> list[Finding]:
    """Findings about copies inside a split, across splits, and with other labels."""
    agreeing: list[list[int]] = []
    contrary: list[list[int]] = []
    for rows in copies.same:
        (contrary if len({corpus.said(row) for row in rows}) > 1 else agreeing).append(rows)
    findings = []
    if contrary:
        rows = sorted(row for group in contrary for row in group)
        texts = plural(len(contrary), "text has", "texts have")
        findings.append(Finding(
            "contradiction", "warning", len(rows), f"{texts} different labels in different rows ({len(rows):,} rows)",
            "At most one of them is right: relabel or remove the others"
            f"{', or let a row have several labels' if corpus.task.kind == 'single' else ''}.",
            corpus.places(rows),
        ))  # fmt: skip
    findings += _inside(corpus, "duplicate", agreeing, "repeat an earlier row of it, with the same label")
    findings += _across(corpus, "leak", copies.same, "stand in {other}, too")
    near = f"nearly repeat an earlier row of it (similarity of at least {SIMILAR})"
    findings += _inside(corpus, "near_duplicate", copies.near, near)
    findings += _across(corpus, "near_leak", _whole(copies), "nearly stand in {other}, too", but=copies.same)
    return findings


def _whole(copies: Copies) -> list[list[int]]:
    """Groups of near copies with the copies of each in them."""
    of = {rows[0]: rows for rows in copies.same}
    return [sorted(row for first in group for row in of.get(first, [first])) for group in copies.near]


def _inside(corpus: Corpus, kind: str, groups: list[list[int]], what: str) -> list[Finding]:
    """A finding a split: its rows that come after another of their group in the same split."""
    findings = []
    for number, name in enumerate(corpus.names):
        own = ([row for row in group if corpus.split[row] == number] for group in groups)
        later = sorted(row for rows in own for row in rows[1:])
        if later:
            severity: Severity = "warning" if kind == "duplicate" else "note"
            advice = "Look whether they are versions of one text."
            if kind == "duplicate":
                advice = f"Keep one of each{_PLANNED if name == 'train' else ''}."
            message = f"{share(len(later), len(corpus.where(name)), f'rows of {name}')} {what}"
            findings.append(Finding(kind, severity, len(later), message, advice, corpus.places(later)))
    return findings


def _across(
    corpus: Corpus, kind: str, groups: list[list[int]], what: str, *, but: Iterable[list[int]] = ()
) -> list[Finding]:
    """A finding for each two splits: the rows of the later one whose group reaches into the earlier one."""
    findings = []
    known = _rows_across(corpus, but)
    for pair, rows in _rows_across(corpus, groups).items():
        left = sorted(rows - known[pair])
        if not left:
            continue
        other, held = (corpus.names[number] for number in pair)
        message = f"{share(len(left), len(corpus.where(held)), f'rows of {held}')} {what.format(other=other)}"
        how = _PLANNED if other == "train" and kind == "leak" else ""
        advice = _LEAK.format(held=held, other=other, how=how)
        findings.append(Finding(kind, "warning", len(left), message, advice, corpus.places(left)))
    return findings


def _rows_across(corpus: Corpus, groups: Iterable[list[int]]) -> dict[tuple[int, int], set[int]]:
    """For each two splits the rows of the later one that are in a group with a row of the earlier one."""
    found: dict[tuple[int, int], set[int]] = {pair: set() for pair in combinations(range(len(corpus.names)), 2)}
    for rows in groups:
        splits = corpus.split[rows]
        for pair in combinations(np.unique(splits).tolist(), 2):
            found[pair] |= {row for row, split in zip(rows, splits.tolist(), strict=True) if split == pair[1]}
    return found
