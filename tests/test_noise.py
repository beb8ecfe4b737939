"""Dropout follows (seed, step, row, position, place) and nothing else, and drops the share it is asked to."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bertune.data.batch import Batch
from bertune.model.noise import Noise, level, mask, mask_factor
from tiny_models import batch_of

CPU = torch.device("cpu")
ONES = torch.ones(400, 500)


def _batch(*lengths: int, first: int = 0) -> Batch:
    batch = batch_of([[5] * length for length in lengths])
    return Batch(batch.ids, batch.types, batch.positions, batch.cu, batch.rows + first)


def _noise(seed: int = 0, step: int = 0, batch: Batch | None = None) -> Noise:
    noise = Noise(CPU)
    noise.seek(seed, step, _batch(*[10] * 40) if batch is None else batch)
    return noise


def _kept(rate: float, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    noise = _noise(3)
    return mask(noise.tokens, 500, rate, dtype, site=noise.site())


def test_the_same_key_gives_the_same_masks_in_the_same_order() -> None:
    first, second = _noise(1, 2), _noise(9)
    masks = [first.dropout(ONES, 0.3) for _ in range(3)]
    second.dropout(ONES, 0.5)  # whatever was drawn before
    second.seek(1, 2, _batch(*[10] * 40))
    assert all(torch.equal(second.dropout(ONES, 0.3), mask) for mask in masks)
    assert not torch.equal(masks[0], masks[1])


def test_a_row_has_the_same_masks_whatever_else_is_in_its_batch() -> None:
    alone = _noise(1, 2, _batch(7, first=5))
    among = _noise(1, 2, _batch(3, 4, 7, 2, first=3))
    for lines, place in ((7, slice(7, 14)), (1, slice(2, 3))):  # its tokens, and the row as a whole
        count = 16 if lines == 7 else 4
        assert torch.equal(
            alone.dropout(torch.ones(lines, 9), 0.5), among.dropout(torch.ones(count, 9), 0.5)[place]
        )


@pytest.mark.parametrize(
    "other", [_noise(1, 0), _noise(0, 1), _noise(0, 0, _batch(*[10] * 40, first=1)), _noise(0, 0, _batch(*[20] * 20))],
    ids=["seed", "step", "rows", "positions"],
)
def test_another_key_gives_other_masks(other: Noise) -> None:
    assert not torch.equal(_noise(0, 0).dropout(ONES, 0.5), other.dropout(ONES, 0.5))


def test_the_global_stream_is_neither_read_nor_moved() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = _noise(4).dropout(ONES, 0.1)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(_noise(4).dropout(ONES, 0.1), first)


@pytest.mark.parametrize("rate", [0.1, 0.2, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_share_dropped_and_the_expectation_are_right(rate: float, dtype: torch.dtype) -> None:
    kept, factor = _kept(rate, dtype), mask_factor(rate)
    assert kept.dtype == dtype
    assert set(kept.float().unique().tolist()) == {0.0, 1.0}
    share = float(kept.float().mean())
    assert share == pytest.approx(1 - rate, abs=0.5 / 256 + 5 * (rate * (1 - rate) / ONES.numel()) ** 0.5)
    assert share * factor == pytest.approx(1.0, abs=0.01 / (1 - rate))
    rounded = round(rate * 256) / 256
    assert factor == pytest.approx(1 / (1 - rounded), rel=1e-12)


def _uncorrelated(one: torch.Tensor, other: torch.Tensor) -> bool:
    one, other = one - one.mean(), other - other.mean()
    return abs(float((one * other).mean() / one.square().mean())) < 5 / one.numel() ** 0.5


def test_lines_columns_sites_and_heads_are_dropped_independently() -> None:
    kept = _kept(0.5)
    for shift in (1, 2, 4, 7, 8, 16):
        for dim in (0, 1):
            assert _uncorrelated(kept, kept.roll(shift, dim))
    noise = _noise(3)
    sites = [mask(noise.tokens, 500, 0.5, torch.float32, site=site) for site in range(1, 5)]
    keys = noise.tokens.view(40, 10, 2)
    heads = list(mask(keys, 500, 0.5, torch.float32, site=5, heads=4).unbind(1))
    for same in (sites, heads):
        for place, one in enumerate(same):
            assert all(_uncorrelated(one, other) for other in same[place + 1 :])


def test_all_levels_of_a_byte_are_equally_frequent() -> None:
    counts = np.array([float(_kept((value + 1) / 256).sum()) for value in range(1, 255)])  # kept at each level
    bins = -np.diff(counts)
    assert (np.abs(bins - ONES.numel() / 256) < 6 * (ONES.numel() / 256) ** 0.5).all()


def test_a_small_rate_is_never_rounded_away() -> None:
    assert level(0.001) == 1 and mask_factor(0.001) > 1
    assert 0 < float((_kept(0.001) == 0).float().mean()) < 0.01


def test_no_rate_below_1_drops_everything() -> None:
    assert level(0.9999) == 255 and mask_factor(0.9999) == 256


def test_no_dropout_leaves_values_as_they_are() -> None:
    assert _noise(1).dropout(ONES, 0.0) is ONES


@pytest.mark.parametrize("width", [1, 3, 4, 7, 64])
def test_lines_have_any_width(width: int) -> None:
    wide = mask(_noise(2).tokens, 64, 0.5, torch.float32, site=1)
    assert torch.equal(mask(_noise(2).tokens, width, 0.5, torch.float32, site=1), wide[:, :width])
