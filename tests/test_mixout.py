"""Mixout: which entries are mixed, with what, and what becomes of their gradients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from bertune.config import TrainConfig
from bertune.model.classifier import ClassifierModel
from bertune.training.mixout import Mixout
from bertune.training.optim import Optimizer
from technique_runs import same_bits, stopped_and_resumed, train
from tiny_models import batch_of, loaded

pytestmark = pytest.mark.usefixtures("one_thread", "no_pictures")

MIXED = {f"encoder.layers.{number}.{part}.weight" for number in (0, 1) for part in ("qkv", "out", "up", "down")}


def optimizer_of(model: ClassifierModel, rate: float = 0.25, **values: Any) -> Optimizer:
    config = TrainConfig.model_validate({"mixout": rate, "warmup": 0.0, "schedule": "constant"} | values)
    full = {name: value.detach().clone() for name, value in model.named_parameters()}
    return Optimizer(model, config, lr=1e-2, steps=50, full=full)


def moved(model: ClassifierModel) -> dict[str, torch.Tensor]:
    """The weights after something that trained them; returned as they are then."""
    with torch.no_grad():
        for number, value in enumerate(model.parameters()):
            value.add_(torch.randn(value.shape, generator=torch.Generator().manual_seed(number)) * 0.1)
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def test_only_matrices_of_the_layers_are_mixed_and_each_entry_is_one_of_two(tiny_bert: Path) -> None:
    model, _ = loaded(tiny_bert)
    pretrained = {name: value.detach().clone() for name, value in model.named_parameters()}
    optimizer = optimizer_of(model)
    trained = moved(model)
    optimizer.begin(1)

    found = {name: value for name, value in model.named_parameters() if not torch.equal(value, trained[name])}
    assert set(found) == MIXED
    entries, old = 0, 0
    for name, value in found.items():
        before, scaled = pretrained[name], (trained[name] - 0.25 * pretrained[name]) / 0.75
        is_old = value == before
        assert torch.allclose(value[~is_old], scaled[~is_old], atol=1e-6)
        entries, old = entries + value.numel(), old + int(is_old.sum())
    assert old / entries == pytest.approx(0.25, abs=0.02)


def test_the_expectation_over_steps_is_the_trained_weight(tiny_bert: Path) -> None:
    model, _ = loaded(tiny_bert)
    optimizer = optimizer_of(model)
    trained = moved(model)
    total = {name: torch.zeros_like(trained[name]) for name in MIXED}
    for step in range(1, 401):
        optimizer.begin(step)
        for name, value in model.named_parameters():
            if name in MIXED:
                total[name] += value.detach() / 400
        optimizer.gather()

    for name in MIXED:
        assert float((total[name] - trained[name]).mean().abs()) < 0.002
        assert float((total[name] - trained[name]).abs().max()) < 0.05


def test_entries_follow_the_seed_and_the_step_alone() -> None:
    weight = torch.zeros(8, 64)

    def drawn(seed: int, step: int) -> torch.Tensor:
        mixout = Mixout([weight], {"encoder.layers.0.out.weight": 0}, rate=0.5, seed=seed)
        return mixout._mask("encoder.layers.0.out.weight", weight, step)

    assert torch.equal(drawn(0, 3), drawn(0, 3))
    assert not torch.equal(drawn(0, 3), drawn(0, 4))
    assert not torch.equal(drawn(0, 3), drawn(1, 3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_after_the_passes_the_weights_are_their_own_and_old_entries_have_no_gradient(
    tiny_bert: Path, dtype: torch.dtype
) -> None:
    model, _ = loaded(tiny_bert)
    pretrained = {name: value.detach().clone() for name, value in model.named_parameters()}
    model.encoder.compute_in(dtype)
    config = TrainConfig.model_validate({"mixout": 0.25, "warmup": 0.0})
    full = {name: value.clone() for name, value in pretrained.items()}
    optimizer = Optimizer(model, config, lr=1e-2, steps=50, full=full)
    with torch.no_grad():
        for master, param in zip(optimizer.masters, optimizer.params, strict=True):
            master.add_(0.125)
            param.copy_(master)
    trained = {name: value.detach().clone() for name, value in model.named_parameters()}
    optimizer.begin(1)
    mixed = {name: value.detach().clone() for name, value in model.named_parameters()}
    batch = batch_of([[5, 6, 7, 8], [9, 10, 11]])
    look_up = optimizer.words(batch.ids, 1)
    assert look_up is not None
    model(model.inputs(batch), words=look_up(batch.ids)).square().sum().backward()
    raw = {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}
    optimizer.collect()
    optimizer.gather()

    assert all(torch.equal(value, trained[name]) for name, value in model.named_parameters())
    for name, grad in zip(optimizer.names, optimizer.grads, strict=True):
        assert grad is not None
        if name not in MIXED:
            assert torch.equal(grad.to(raw[name].dtype), raw[name])
            continue
        is_old = mixed[name] == pretrained[name].to(dtype)
        assert is_old.any() and not grad[is_old].any()
        assert torch.allclose(grad[~is_old], raw[name].float()[~is_old] / 0.75, rtol=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_resumed_run_ends_with_the_same_bits(tmp_path: Path, tiny_bert: Path, precision: str) -> None:
    settings = {"train__mixout": 0.5, "train__precision": precision, "model__reinit_layers": 1}
    whole = train(tmp_path / "whole", tiny_bert, **settings)

    assert same_bits(stopped_and_resumed(tmp_path / "out", tiny_bert, at=8, **settings), whole)
    settings["train__mixout"] = 0.0
    assert not same_bits(train(tmp_path / "plain", tiny_bert, **settings), whole)
