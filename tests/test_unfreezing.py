"""Gradual unfreezing: what has not been reached stays as it came to the last bit, and has no moments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bertune.training.fit import Fit
from bertune.training.rates import thaw_steps
from bertune.training.rowadam import RowAdam
from technique_runs import changed, same_bits, stopped_and_resumed, train
from tiny_models import loaded

pytestmark = pytest.mark.usefixtures("one_thread", "no_pictures")

PRECISIONS = ["fp32", "bf16"]


def of_part(names: set[str], part: str) -> set[str]:
    return {name for name in names if name.startswith(part)}


@pytest.mark.parametrize(("unfreeze", "layer_0", "embeddings"), [("epoch", 25, 50), (0.5, 25, 50), (1.0, 50, 100)])
def test_the_top_layer_comes_first_and_the_embeddings_last(
    tiny_bert: Path, unfreeze: Any, layer_0: int, embeddings: int
) -> None:
    model, _ = loaded(tiny_bert)
    found = thaw_steps(dict(model.named_parameters()), layers=2, unfreeze=unfreeze, steps=100, per_epoch=25)

    for name, steps in found.items():
        wanted = embeddings if "embeddings" in name else layer_0 if "layers.0" in name else 0
        assert steps == wanted, name


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    ("epochs", "frozen"), [(1, ("embeddings.", "encoder.layer.0.")), (2, ("embeddings.",)), (3, ())]
)
def test_weights_change_from_their_epoch_on_and_not_by_a_bit_before(
    tmp_path: Path, tiny_bert: Path, precision: str, epochs: int, frozen: tuple[str, ...]
) -> None:
    result = train(
        tmp_path / "out", tiny_bert, train__unfreeze="epoch", train__epochs=epochs, train__precision=precision,
        train__select_best=False,
    )  # fmt: skip
    found = changed(result, tiny_bert)

    for part in ("embeddings.", "encoder.layer.0.", "encoder.layer.1."):
        assert bool(of_part(found, part)) == (part not in frozen), part
    assert "pooler.dense.weight" in found


def test_what_waits_has_no_moments_and_begins_with_corrected_ones(
    tmp_path: Path, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    states: dict[int, dict[str, Tensor]] = {}
    usual = Fit._record

    def watched(self: Fit, step: Any) -> None:
        usual(self, step)
        states[step.number] = {name: value.clone() for name, value in self.optimizer.state().items()}

    monkeypatch.setattr(Fit, "_record", watched)
    train(tmp_path / "out", tiny_bert, train__unfreeze="epoch", train__epochs=3)  # 6 steps an epoch

    waiting = "exp_avg/encoder.layers.0.out.weight"
    assert waiting not in states[6] and waiting in states[7]
    assert "exp_avg/encoder.layers.1.out.weight" in states[1]
    assert float(states[7]["step/encoder.layers.0.out.weight"]) == 1
    assert not states[12]["rows/mean"].any() and not states[12]["rows/square"].any()
    assert states[13]["rows/mean"].any()


def test_a_table_that_begins_late_moves_as_one_that_begins_then() -> None:
    random = np.random.default_rng(0)
    start = torch.from_numpy(random.normal(size=(20, 4)).astype(np.float32))
    rates = np.linspace(1e-2, 1e-3, 30)
    how: dict[str, Any] = {"betas": (0.9, 0.999), "eps": 1e-8, "decay": 0.1}
    late = RowAdam(nn.Parameter(start.clone()), rates, begin=10, **how)
    fresh = RowAdam(nn.Parameter(start.clone()), rates[10:], **how)
    late.catch_up(None, 10)
    assert torch.equal(late.table, start)
    for step in range(1, 21):
        rows = np.unique(random.integers(0, 20, 6))
        grad = torch.from_numpy(random.normal(size=(len(rows), 4)).astype(np.float32))
        index = torch.from_numpy(rows)
        for table, shift in ((late, 10), (fresh, 0)):
            table.catch_up(rows, step + shift - 1)
            with torch.no_grad():
                table.update(index, table.table[index], grad, step + shift)
    late.catch_up(None, 30)
    fresh.catch_up(None, 20)

    assert torch.allclose(late.table, fresh.table, rtol=0, atol=1e-6)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("at", [4, 8, 12])
def test_a_run_resumed_before_between_and_after_ends_with_the_same_bits(
    tmp_path: Path, tiny_bert: Path, precision: str, at: int
) -> None:
    settings = {"train__unfreeze": 0.7, "train__precision": precision}  # of 12 steps: after 5 and 9
    whole = train(tmp_path / "whole", tiny_bert, **settings)

    assert same_bits(stopped_and_resumed(tmp_path / "out", tiny_bert, at=at, **settings), whole)
