"""Seeded splits of one table into training, validation and test rows, with the labels spread evenly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from bertune.data.rows import is_missing
from bertune.errors import ConfigError, DataError

if TYPE_CHECKING:
    from bertune.data.read import Table

EPS = 1e-9  # sums of fractions are compared with this tolerance


@dataclass
class Splits:
    """Row numbers (from 0, ascending, int64) of the main table; None for a split that was not asked for."""

    train: np.ndarray
    valid: np.ndarray | None
    test: np.ndarray | None


def split_rows(
    targets: np.ndarray,
    kind: str,
    *,
    valid: float | None,
    test: float | None,
    seed: int,
    groups: Sequence[object] | None = None,
) -> Splits:
    """Each row in exactly one split, by the seed alone.

    `targets`: int64 [n] for kind "single", 0/1 [n, labels] for "multi". A fraction of None: no such split.
    Without `groups`, single-label rows are split label by label (each split's count of a label is its wished count,
    rounded up or down), multi-label rows by iterative stratification. With `groups` (a value per row) all rows of a
    value fall into one split, and label shares are kept as close as a greedy choice can.

    Raises `ConfigError` for fractions that leave a split without rows.
    """
    count = len(targets)
    names = ["train"] + [name for name, share in (("valid", valid), ("test", test)) if share is not None]
    asked = [share for share in (valid, test) if share is not None]
    if any(not 0 < share < 1 for share in asked) or sum(asked) >= 1 - EPS:
        given = " and ".join(f"--{name} {share:g}" for name, share in zip(names[1:], asked, strict=True))
        raise ConfigError(f"{given}: fractions lie above 0, and together below 1, so that rows are left to train on.")
    shares = np.array([1 - sum(asked), *asked])
    owner = _owners(targets, kind, shares, seed, groups)
    rows = [np.flatnonzero(owner == number) for number in range(len(names))]
    for name, chosen, share in zip(names, rows, shares, strict=True):
        if not len(chosen):
            of = f"{count} rows" if groups is None else f"{len(set(groups))} groups"
            raise ConfigError(
                f"a share of {share:g} of {of} leaves the {name} split empty. "
                "Pass another fraction with --valid or --test, or a file, or add rows."
            )
    by_name = dict(zip(names, rows, strict=True))
    return Splits(by_name["train"], by_name.get("valid"), by_name.get("test"))


def fold_numbers(
    targets: np.ndarray, kind: str, *, folds: int, seed: int, groups: Sequence[object] | None = None
) -> np.ndarray:
    """The fold of each row, int64 [n] from 0, by the seed alone: as even, and stratified or grouped, as `split_rows`.

    Raises ConfigError where a fold would be empty.
    """
    owner = _owners(targets, kind, np.full(folds, 1 / folds), seed, groups)
    if len(np.unique(owner)) < folds:
        have = f"{len(targets):,} rows" if groups is None else f"{len(set(groups)):,} groups"
        raise ConfigError(f"--folds {folds}: {have} do not fill so many folds. Pass a smaller number.")
    return owner


def share_of_rows(
    targets: np.ndarray, kind: str, *, share: float, seed: int, groups: Sequence[object] | None = None
) -> np.ndarray:
    """Row numbers (ascending, int64) of a share of the rows, by the seed alone; a larger share holds a smaller one.

    Single labels keep their shares; groups come whole, so that there may be a few rows more; else rows come by chance.
    """
    rng = np.random.default_rng(seed)
    wanted = max(1, round(share * len(targets)))
    if groups is not None:
        numbers = _group_numbers(groups, len(targets))
        turn = rng.permutation(int(numbers.max(initial=-1)) + 1)
        order = np.argsort(turn[numbers], kind="stable")
        last = turn[numbers[order[wanted - 1]]]
        return np.flatnonzero(turn[numbers] <= last)
    order = rng.permutation(len(targets))
    if kind == "single":
        # The k-th of the c rows of a label stands at (k + 1/2) / c, so that every beginning has its share of it.
        by_label = order[np.argsort(targets[order], kind="stable")]
        _, counts = np.unique(targets, return_counts=True)
        place = np.concatenate([(np.arange(count) + 0.5) / count for count in counts])
        order = by_label[np.argsort(place, kind="stable")]
    return np.sort(order[:wanted])


def _owners(
    targets: np.ndarray, kind: str, shares: np.ndarray, seed: int, groups: Sequence[object] | None
) -> np.ndarray:
    """The number of the part that each row falls into, the parts being as large as `shares` say."""
    rng = np.random.default_rng(seed)
    if groups is not None:
        return _by_group(_hot(targets, kind), _group_numbers(groups, len(targets)), shares, rng)
    return _iteratively(targets > 0.5, shares, rng) if kind == "multi" else _by_label(targets, shares, rng)


def groups_of(table: Table, name: str) -> list[object]:
    """The group of each row, from the column `name`; `DataError` for a row without one, or with several."""
    groups = table.column(name)
    for row, group in enumerate(groups):
        if isinstance(group, list | tuple | dict):
            problem = "a list or record cannot be a group. Name a column of single values with --group."
        elif is_missing(group):
            problem = "the group is missing. Fill it in, or remove the row."
        else:
            continue
        raise DataError(f"{table.place(row)}, column '{name}': {problem}")
    return groups


def _by_label(targets: np.ndarray, shares: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Split number of each row. Every label's wished count is rounded down, and what is left of it goes to the splits
    that are furthest behind over all labels so far, so that the sizes of the splits come out right too. Training never
    misses a label. Rare labels come first: their rounding is made up for by the frequent ones."""
    owner = np.zeros(len(targets), np.int64)
    shuffled = rng.permutation(len(targets))
    shuffled = shuffled[np.argsort(targets[shuffled], kind="stable")]
    _, counts = np.unique(targets, return_counts=True)
    starts = np.cumsum(counts) - counts
    behind = np.zeros(len(shares))
    for label in np.lexsort((rng.random(len(counts)), counts)):
        wished = counts[label] * shares
        taken = np.floor(wished + EPS).astype(np.int64)
        behind += wished - taken
        order = np.where(wished - taken > EPS, behind.round(9), -np.inf)
        if taken[0] == 0:
            order[0] = np.inf
        rest = counts[label] - taken.sum()
        chosen = np.lexsort((rng.random(len(shares)), -order))[:rest]
        taken[chosen] += 1
        behind[chosen] -= 1
        rows = shuffled[starts[label] : starts[label] + counts[label]]
        owner[rows] = np.repeat(np.arange(len(shares)), taken)
    return owner


def _iteratively(hot: np.ndarray, shares: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Split number of each row, by iterative stratification (Sechidis, Tsoumakas and Vlahavas, 2011, "On the
    stratification of multi-label data"): the label with the fewest rows left is dealt out first, each of its rows to
    the split that still wants that label most, ties to the split that still wants most rows, then by chance."""
    count, labels = hot.shape
    owner = np.full(count, -1, np.int64)
    order = rng.permutation(count)
    labels_of = [np.flatnonzero(row).tolist() for row in hot]
    totals = hot.sum(axis=0)
    left = totals.tolist()
    wanted = [(total * shares).tolist() for total in totals]
    room = (count * shares).tolist()

    def place(row: int, wish: list[float]) -> None:
        split = _neediest(wish, room, rng)
        owner[row] = split
        room[split] -= 1
        for label in labels_of[row]:
            wanted[label][split] -= 1
            left[label] -= 1

    tie = rng.permutation(labels)
    while any(left):
        rarest = min((label for label in range(labels) if left[label]), key=lambda label: (left[label], tie[label]))
        for row in order[hot[order, rarest] & (owner[order] < 0)].tolist():
            place(row, wanted[rarest])
    for row in order[owner[order] < 0].tolist():
        place(row, room)
    return owner


def _neediest(wish: list[float], room: list[float], rng: np.random.Generator) -> int:
    best = max(wish)
    splits = [split for split, value in enumerate(wish) if value > best - EPS]
    if len(splits) > 1:
        most = max(room[split] for split in splits)
        splits = [split for split in splits if room[split] > most - EPS]
    return splits[0] if len(splits) == 1 else splits[int(rng.integers(len(splits)))]


def _by_group(hot: np.ndarray, groups: np.ndarray, shares: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Split number of each row, whole groups at a time: largest first, each to the split where it lowers most the sum
    of (rows - wished rows)^2 / wished rows over all labels, the size of the split weighing as much as its labels."""
    labels = hot.shape[1]
    count = int(groups.max(initial=-1)) + 1
    inside = np.zeros((count, labels + 1))
    np.add.at(inside, groups, np.concatenate([hot, np.ones((len(hot), 1))], axis=1))
    wished = shares[:, None] * inside.sum(axis=0)
    weight = np.divide(1.0, wished, out=np.zeros_like(wished), where=wished > 0)
    weight[:, -1] *= max(labels, 1)
    ahead = -wished
    filled = np.zeros(len(shares), bool)
    owner = np.zeros(count, np.int64)
    for place, group in enumerate(np.lexsort((rng.random(count), -inside[:, -1]))):
        content = inside[group]
        cost = ((2 * ahead + content) * content * weight).sum(axis=1)
        if count - place <= (~filled).sum():  # the last groups go where there are none yet
            cost[filled] = np.inf
        split = np.lexsort((rng.random(len(shares)), cost.round(9)))[0]
        owner[group] = split
        ahead[split] += content
        filled[split] = True
    return owner[groups]


def _hot(targets: np.ndarray, kind: str) -> np.ndarray:
    """0/1 [n, labels] of either kind."""
    if kind == "multi":
        return (targets > 0.5).astype(np.float64)
    _, numbers = np.unique(targets, return_inverse=True)
    hot = np.zeros((len(targets), int(numbers.max(initial=-1)) + 1))
    hot[np.arange(len(targets)), numbers] = 1
    return hot


def _group_numbers(groups: Sequence[object], count: int) -> np.ndarray:
    """The groups of the rows, numbered by first appearance."""
    if len(groups) != count:
        raise ValueError(f"{len(groups)} groups for {count} rows")
    numbers: dict[object, int] = {}
    result = np.empty(count, np.int64)
    for row, group in enumerate(groups):
        result[row] = numbers.setdefault(group, len(numbers))
    return result
