"""Dropout follows its key and nothing else, and drops the share it is asked to."""

from __future__ import annotations

import pytest
import torch

from bertune.model.noise import Noise

CPU = torch.device("cpu")
ONES = torch.ones(400, 500)


def _noise(*key: int) -> Noise:
    noise = Noise(CPU)
    noise.seek(*key)
    return noise


def test_the_same_key_gives_the_same_masks_in_the_same_order() -> None:
    first, second = _noise(1, 2, 3), _noise(9)
    masks = [first.dropout(ONES, 0.3) for _ in range(3)]
    second.dropout(ONES, 0.5)  # whatever was drawn before
    second.seek(1, 2, 3)
    assert all(torch.equal(second.dropout(ONES, 0.3), mask) for mask in masks)
    assert not torch.equal(masks[0], masks[1])


@pytest.mark.parametrize("other", [(0, 0, 1), (0, 1, 0), (1, 0, 0), (0, 0), (0, 0, 0, 0)])
def test_another_key_gives_other_masks(other: tuple[int, ...]) -> None:
    assert not torch.equal(_noise(0, 0, 0).dropout(ONES, 0.5), _noise(*other).dropout(ONES, 0.5))


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
    kept, factor = _noise(7).mask(ONES.shape, rate, ONES.to(dtype))
    assert kept.dtype == dtype
    assert set(kept.float().unique().tolist()) == {0.0, 1.0}
    share = float(kept.float().mean())
    assert share == pytest.approx(1 - rate, abs=0.5 / 256 + 5 * (rate * (1 - rate) / ONES.numel()) ** 0.5)
    assert share * factor == pytest.approx(1.0, abs=0.01 / (1 - rate))
    rounded = round(rate * 256) / 256
    assert factor == pytest.approx(1 / (1 - rounded), rel=1e-12)


def test_rows_and_columns_are_dropped_independently() -> None:
    kept, _ = _noise(3).mask(ONES.shape, 0.5, ONES)
    centred = kept - kept.mean()
    for shift in (1, 2, 7, 8, 16):
        for dim in (0, 1):
            correlation = float((centred * centred.roll(shift, dim)).mean() / centred.square().mean())
            assert abs(correlation) < 5 / ONES.numel() ** 0.5


def test_a_small_rate_is_never_rounded_away() -> None:
    kept, factor = _noise(3).mask(ONES.shape, 0.001, ONES)
    assert 0 < float((kept == 0).float().mean()) < 0.01
    assert factor > 1


def test_no_dropout_leaves_values_as_they_are() -> None:
    assert _noise(1).dropout(ONES, 0.0) is ONES


@pytest.mark.parametrize("shape", [(1,), (7,), (3, 5), (2, 3, 4), (0, 4)])
def test_masks_have_any_shape(shape: tuple[int, ...]) -> None:
    values = torch.ones(shape)
    assert _noise(1).dropout(values, 0.5).shape == values.shape
