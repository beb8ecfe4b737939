"""Splits: every row once, seeded, with the labels spread evenly and groups kept whole."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bertune.config import DataConfig
from bertune.data.read import Table
from bertune.data.splits import Splits, groups_of, split_rows
from bertune.errors import ConfigError, DataError
from bertune.training.prepare import read_splits

FRACTION = st.sampled_from([0.1, 0.15, 0.2, 0.25, 1 / 3])
SEED = st.integers(0, 5)


def parts(splits: Splits) -> list[np.ndarray]:
    return [rows for rows in (splits.train, splits.valid, splits.test) if rows is not None]


def multi_label(rng: np.random.Generator, rows: int, labels: int) -> np.ndarray:
    return (rng.random((rows, labels)) < 0.5 / np.arange(1, labels + 1)).astype(np.float32)


@st.composite
def single_label(draw: st.DrawFn) -> np.ndarray:
    """Labels from rare (one row) to frequent, in any row order; enough rows for every split to have some."""
    counts = draw(st.lists(st.integers(1, 40), min_size=2, max_size=8))
    counts.append(30)
    rng = np.random.default_rng(draw(SEED))
    return rng.permutation(np.repeat(np.arange(len(counts)), counts))


@given(single_label(), FRACTION, FRACTION, SEED)
@settings(max_examples=60, deadline=None)
def test_every_row_falls_into_exactly_one_split_and_indices_ascend(
    targets: np.ndarray, valid: float, test: float, seed: int
) -> None:
    splits = parts(split_rows(targets, "single", valid=valid, test=test, seed=seed))
    assert sorted(np.concatenate(splits).tolist()) == list(range(len(targets)))
    assert all((np.diff(rows) > 0).all() and rows.dtype == np.int64 for rows in splits)


@given(single_label(), FRACTION, FRACTION, SEED)
@settings(max_examples=100, deadline=None)
def test_each_label_is_within_one_row_of_its_wished_count_and_always_in_train(
    targets: np.ndarray, valid: float, test: float, seed: int
) -> None:
    splits = parts(split_rows(targets, "single", valid=valid, test=test, seed=seed))
    for label, count in zip(*np.unique(targets, return_counts=True), strict=True):
        for rows, share in zip(splits, (1 - valid - test, valid, test), strict=True):
            assert abs((targets[rows] == label).sum() - count * share) < 1 + 1e-6
        assert (targets[splits[0]] == label).any()


def test_sizes_are_the_wished_ones_even_with_many_labels_of_few_rows() -> None:
    targets = np.repeat(np.arange(100), 4)
    splits = split_rows(targets, "single", valid=0.1, test=0.1, seed=0)
    assert [len(rows) for rows in parts(splits)] == [320, 40, 40]


def test_a_label_with_one_row_goes_to_train() -> None:
    targets = np.array([0] * 20 + [1] * 20 + [2] + [3])
    for seed in range(10):
        train = split_rows(targets, "single", valid=0.4, test=0.4, seed=seed).train
        assert {40, 41} <= set(train.tolist())


@pytest.mark.parametrize(("valid", "test"), [(None, None), (0.2, None), (None, 0.2)])
def test_a_fraction_of_none_gives_no_such_split(valid: float | None, test: float | None) -> None:
    targets = np.arange(50) % 2
    for kind, array in (("single", targets), ("multi", np.eye(2, dtype=np.float32)[targets])):
        splits = split_rows(array, kind, valid=valid, test=test, seed=0)
        assert (splits.valid is None) == (valid is None)
        assert (splits.test is None) == (test is None)
        assert sum(len(rows) for rows in parts(splits)) == 50


@given(st.integers(0, 5), st.integers(60, 200), st.integers(1, 6), FRACTION, FRACTION, st.booleans())
@settings(max_examples=60, deadline=None)
def test_multi_label_and_grouped_splits_are_partitions_that_the_seed_fixes(
    seed: int, rows: int, labels: int, valid: float, test: float, grouped: bool
) -> None:
    rng = np.random.default_rng(seed)
    targets = multi_label(rng, rows, labels)
    groups = rng.integers(0, 25, rows).tolist() if grouped else None
    one = parts(split_rows(targets, "multi", valid=valid, test=test, seed=seed, groups=groups))
    two = parts(split_rows(targets, "multi", valid=valid, test=test, seed=seed, groups=groups))
    assert sorted(np.concatenate(one).tolist()) == list(range(rows))
    assert all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))
    assert all((np.diff(part) > 0).all() for part in one)


@pytest.mark.parametrize("seed", range(5))
def test_iterative_stratification_keeps_the_share_of_every_label(seed: int) -> None:
    targets = multi_label(np.random.default_rng(seed), 3000, 20)
    splits = split_rows(targets, "multi", valid=0.1, test=0.1, seed=seed)
    for rows, share in zip(parts(splits), (0.8, 0.1, 0.1), strict=True):
        assert abs(len(rows) - share * 3000) <= 10
        assert np.abs(targets[rows].sum(axis=0) - share * targets.sum(axis=0)).max() <= 3


def test_stratification_is_closer_than_chance() -> None:
    rng = np.random.default_rng(0)
    targets = multi_label(rng, 2000, 20)
    valid = split_rows(targets, "multi", valid=0.1, test=None, seed=0).valid
    chance = rng.permutation(2000)[:200]

    def error(rows: np.ndarray | None) -> float:
        return float(np.abs(targets[rows].sum(axis=0) - 0.1 * targets.sum(axis=0)).sum())

    assert error(valid) < error(chance) / 3


def test_rows_without_any_label_are_spread_too() -> None:
    targets = np.zeros((200, 3), np.float32)
    targets[:40, 0] = 1
    splits = split_rows(targets, "multi", valid=0.1, test=0.1, seed=0)
    assert [len(rows) for rows in parts(splits)] == [160, 20, 20]
    assert [int(targets[rows].sum()) for rows in parts(splits)] == [32, 4, 4]


@given(st.integers(0, 5), st.integers(30, 60), st.sampled_from(["single", "multi"]))
@settings(max_examples=40, deadline=None)
def test_no_group_falls_into_two_splits(seed: int, groups: int, kind: str) -> None:
    rng = np.random.default_rng(seed)
    of_row = [f"g{number}" for number in rng.integers(0, groups, 400)]
    targets = rng.integers(0, 3, 400) if kind == "single" else multi_label(rng, 400, 3)
    splits = parts(split_rows(targets, kind, valid=0.2, test=0.2, seed=seed, groups=of_row))
    seen = [{of_row[row] for row in rows} for rows in splits]
    assert sum(len(names) for names in seen) == len(set(of_row))
    assert sum(len(rows) for rows in splits) == 400


def test_grouped_splits_keep_sizes_and_label_shares_close() -> None:
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 12, 400)
    groups = np.repeat(np.arange(400), sizes)
    targets = np.repeat(rng.choice(3, 400, p=[0.7, 0.2, 0.1]), sizes)  # a group has one label throughout
    splits = split_rows(targets, "single", valid=0.1, test=0.1, seed=0, groups=groups.tolist())
    for rows, share in zip(parts(splits), (0.8, 0.1, 0.1), strict=True):
        assert abs(len(rows) / len(targets) - share) < 0.01
        for label in range(3):
            assert abs((targets[rows] == label).sum() / (targets == label).sum() - share) < 0.02


def test_as_few_groups_as_splits_still_fill_every_split() -> None:
    groups = ["a"] * 10 + ["b"] * 10 + ["c"] * 10
    splits = split_rows(np.arange(30) % 2, "single", valid=0.1, test=0.1, seed=0, groups=groups)
    assert [len(rows) for rows in parts(splits)] == [10, 10, 10]


def test_another_seed_gives_another_split() -> None:
    targets = np.arange(200) % 3
    one, two = (split_rows(targets, "single", valid=0.1, test=0.1, seed=seed) for seed in (0, 1))
    assert not np.array_equal(one.train, two.train)


def test_the_split_does_not_depend_on_the_hash_seed() -> None:
    program = (
        "import numpy as np; from bertune.data.splits import split_rows;"
        "groups = [f'g{i % 17}' for i in range(60)];"
        "s = split_rows(np.arange(60) % 3, 'single', valid=.1, test=.2, seed=7, groups=groups);"
        "print(s.train.tolist(), s.valid.tolist(), s.test.tolist())"
    )
    outputs = set()
    for seed in ("1", "2"):
        env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "PYTHONHASHSEED": seed}
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=env)
        outputs.add(done.stdout)
    assert len(outputs) == 1


@pytest.mark.parametrize(("valid", "test"), [(0.5, 0.5), (0.7, 0.4), (0.0, 0.1), (None, 1.0), (-0.1, None)])
def test_fractions_that_leave_nothing_to_train_on_are_an_error(valid: float | None, test: float | None) -> None:
    with pytest.raises(ConfigError, match="left to train on"):
        split_rows(np.arange(50) % 2, "single", valid=valid, test=test, seed=0)


def test_an_empty_split_is_an_error_that_names_it() -> None:
    with pytest.raises(ConfigError, match=r"a share of 0.1 of 4 rows leaves the (valid|test) split empty"):
        split_rows(np.arange(4) % 2, "single", valid=0.1, test=0.1, seed=0)
    with pytest.raises(ConfigError, match="of 2 groups leaves the"):
        split_rows(np.arange(20) % 2, "single", valid=0.1, test=0.1, seed=0, groups=["a", "b"] * 10)


@pytest.mark.parametrize("blank", [None, "", " ", float("nan")])
def test_a_row_without_a_group_is_an_error_that_names_file_and_row(blank: object) -> None:
    table = Table(pl.DataFrame({"who": [blank]}), files=("x.csv",), row_numbers=np.array([7]))
    with pytest.raises(DataError, match=r"x\.csv row 7, column 'who': the group is missing\. Fill it in"):
        groups_of(table, "who")


@pytest.mark.parametrize("cell", [["a", "b"], {"name": "a"}])
def test_a_list_or_record_as_a_group_is_an_error_that_names_file_and_row(cell: object) -> None:
    table = Table(pl.DataFrame({"who": [cell]}), files=("x.jsonl",))
    with pytest.raises(DataError, match=r"x\.jsonl row 1, column 'who': a list or record cannot be a group"):
        groups_of(table, "who")


@pytest.mark.parametrize(
    ("groups", "options", "message"),
    [
        ("aabbcc", {"valid": "v.csv", "test": "t.csv"}, None),
        ("aabbac", {"valid": "v.csv", "test": "t.csv"}, "train and valid rows share 1 group, for example 'a'.*--valid"),
        ("aabbca", {"valid": "v.csv", "test": "t.csv"}, "train and test rows share 1 group, for example 'a'.*--test"),
        ("aabbcc", {"valid": "v.csv", "test": "v.csv"}, "valid and test rows share 1 group, for example 'c'.*--test"),
        ("aabbac", {"valid": "v.csv", "test": 0.5}, "(train and valid|valid and test) rows share 1 group.*--valid"),
    ],
    ids=["none", "train and valid", "train and test", "valid and test", "a file and rows drawn for the other"],
)
def test_no_two_of_the_given_files_may_share_a_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, groups: str, options: dict[str, Any], message: str | None
) -> None:
    """groups: of four rows to train on, and of the one row in each of the other files."""
    monkeypatch.chdir(tmp_path)
    rows = [f"a text,{'xy'[place % 2]},{group}\n" for place, group in enumerate(groups)]
    for name, part in (("x.csv", rows[:4]), ("v.csv", rows[4:5]), ("t.csv", [rows[5].replace("c", "d")])):
        Path(name).write_text("text,label,who\n" + "".join(part), encoding="utf-8")
    data = DataConfig(files=["x.csv"], group="who", **options)
    if message is None:
        assert set(read_splits(None, data, lambda text: None).splits) == {"train", "valid", "test"}
        return
    with pytest.raises(ConfigError, match=message):
        read_splits(None, data, lambda text: None)
