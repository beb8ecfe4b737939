"""Batches: every row once, none over the budget, in an order that depends on nothing but its arguments."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bertune.data.batch import epoch_order, evaluation_batches, make_batch, split_by_budget, steps_per_epoch
from bertune.data.ragged import Encoded
from bertune.model.attention import plan_attention

LENGTHS = st.lists(st.integers(1, 300), min_size=1, max_size=120)
BUDGETS = st.integers(1, 2000)


def encoded_of(lengths: list[int]) -> Encoded:
    """Rows whose token t of row i is 1000 * i + t, so that a token tells where it came from."""
    ids = np.concatenate([1000 * row + np.arange(length) for row, length in enumerate(lengths)])
    types = np.concatenate([np.arange(length) % 2 for length in lengths])
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return Encoded(ids.astype(np.int32), types.astype(np.uint8), offsets.astype(np.int64), np.array(lengths, np.int32))


@given(LENGTHS, BUDGETS)
def test_a_split_by_budget_holds_every_row_once(lengths: list[int], budget: int) -> None:
    runs = split_by_budget(np.arange(len(lengths)), np.array(lengths), budget)

    assert all(len(run) for run in runs)
    assert sorted(np.concatenate(runs).tolist()) == list(range(len(lengths)))


@given(LENGTHS, BUDGETS)
def test_only_a_single_row_may_exceed_the_budget(lengths: list[int], budget: int) -> None:
    sizes = np.array(lengths)

    for run in split_by_budget(np.arange(len(lengths)), sizes, budget):
        assert len(run) == 1 or sizes[run].sum() <= budget


@given(LENGTHS, BUDGETS)
def test_neighbours_in_a_run_are_the_rows_nearest_in_length(lengths: list[int], budget: int) -> None:
    sizes = np.array(lengths)
    visited = np.concatenate(split_by_budget(np.arange(len(lengths)), sizes, budget))

    assert np.all(np.diff(sizes[visited]) <= 0)


@given(LENGTHS, BUDGETS, st.integers(0, 2**32 - 1))
def test_rows_of_one_length_keep_the_given_order(lengths: list[int], budget: int, seed: int) -> None:
    rows = np.random.default_rng(seed).permutation(len(lengths))
    sizes = np.full(len(lengths), 7)

    assert np.concatenate(split_by_budget(rows, sizes, budget)).tolist() == rows.tolist()


@given(LENGTHS, BUDGETS)
def test_no_more_than_twice_the_fewest_possible_runs_are_made(lengths: list[int], budget: int) -> None:
    sizes = np.minimum(np.array(lengths), budget)
    fewest = -(-int(sizes.sum()) // budget)

    assert len(split_by_budget(np.arange(len(lengths)), sizes, budget)) <= 2 * fewest


@settings(max_examples=50)
@given(st.integers(1, 500), st.integers(0, 2**63), st.integers(0, 40))
def test_the_order_of_an_epoch_is_a_permutation_by_seed_and_epoch_alone(rows: int, seed: int, epoch: int) -> None:
    order = epoch_order(rows, seed=seed, epoch=epoch)

    assert sorted(order.tolist()) == list(range(rows))
    assert np.array_equal(order, epoch_order(rows, seed=seed, epoch=epoch))


def test_seeds_and_epochs_each_give_another_order() -> None:
    orders = {tuple(epoch_order(50, seed=seed, epoch=epoch)) for seed in range(4) for epoch in range(4)}

    assert len(orders) == 16


@pytest.mark.parametrize(("rows", "batch_size", "steps"), [(10, 5, 2), (11, 5, 3), (4, 8, 1), (1, 1, 1)])
def test_the_last_step_of_an_epoch_takes_what_is_left(rows: int, batch_size: int, steps: int) -> None:
    assert steps_per_epoch(rows, batch_size) == steps


@given(LENGTHS, st.data())
def test_a_batch_holds_its_rows_one_after_another(lengths: list[int], data: st.DataObject) -> None:
    rows = data.draw(st.lists(st.integers(0, len(lengths) - 1), min_size=1, max_size=40))
    batch = make_batch(encoded_of(lengths), np.array(rows))

    assert batch.rows.tolist() == rows
    assert batch.lengths.tolist() == [lengths[row] for row in rows]
    for place, row in enumerate(rows):
        part = slice(batch.cu[place], batch.cu[place + 1])
        assert batch.ids[part].tolist() == [1000 * row + token for token in range(lengths[row])]
        assert batch.positions[part].tolist() == list(range(lengths[row]))
        assert batch.types[part].tolist() == [token % 2 for token in range(lengths[row])]


@given(LENGTHS, BUDGETS)
def test_an_evaluation_visits_every_row_once(lengths: list[int], budget: int) -> None:
    visited = [row for batch in evaluation_batches(encoded_of(lengths), budget=budget) for row in batch.rows.tolist()]

    assert sorted(visited) == list(range(len(lengths)))


def sentence_pairs(count: int) -> np.ndarray:
    """Token counts like those of SNLI: 30 on average, most between 15 and 55."""
    return np.clip(np.random.default_rng(0).gamma(6.5, 4.2, count).astype(int) + 3, 8, 128)


def padded_cells(lengths: np.ndarray) -> int:
    """Token places that grouped attention computes for rows of these lengths, padding included."""
    plan = plan_attention(np.concatenate([[0], np.cumsum(lengths)]), device=torch.device("cpu"), dtype=torch.float32)
    return sum(group.rows * group.width for group in plan.groups)


def abstracts(count: int) -> np.ndarray:
    """Token counts like those of title and abstract, cut at 256."""
    return np.clip(np.random.default_rng(0).normal(220, 70, count).astype(int), 30, 256)


@pytest.mark.parametrize("lengths", [sentence_pairs(3000), abstracts(1000)], ids=["sentence pairs", "abstracts"])
def test_an_evaluation_pads_less_than_five_per_cent_of_the_places_in_attention(lengths: np.ndarray) -> None:
    cells = sum(padded_cells(lengths[run]) for run in split_by_budget(np.arange(len(lengths)), lengths, 4096))

    assert 0 <= 1 - lengths.sum() / cells < 0.05


@pytest.mark.parametrize("lengths", [sentence_pairs(3200), abstracts(1024)], ids=["sentence pairs", "abstracts"])
@pytest.mark.parametrize("batch_size", [16, 32, 128])
def test_padding_is_a_few_per_cent_of_the_products_of_a_step(lengths: np.ndarray, batch_size: int) -> None:
    # Only attention pads. Its two products take 4 * width * hidden operations a cell and layer, where the four linear
    # layers take 24 * hidden ** 2 a token. Counted for a hidden size of 384, the narrowest encoder people train.
    hidden, needed, wasted = 384, 0, 0
    for begin in range(0, len(lengths), batch_size):
        for run in split_by_budget(np.arange(begin, begin + batch_size), lengths, 4096):
            tokens = int(lengths[run].sum())
            width = int(lengths[run].max())
            needed += 24 * hidden**2 * tokens + 4 * hidden * int((lengths[run] ** 2).sum())
            wasted += 4 * hidden * width * (padded_cells(lengths[run]) - tokens)

    assert wasted / (needed + wasted) < 0.03


@given(st.lists(st.integers(1, 128), min_size=1, max_size=100))
def test_attention_never_computes_fewer_places_than_there_are_tokens(lengths: list[int]) -> None:
    sizes = np.sort(np.array(lengths))[::-1]

    assert sizes.sum() <= padded_cells(sizes) <= len(sizes) * sizes.max()
