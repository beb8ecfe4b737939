"""FreeLB: perturbations stay in their ball and go uphill, and a step's gradient is the mean over its passes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bertune.model.encoder import Inputs
from bertune.model.noise import Noise
from bertune.training.adversarial import FreeLB
from technique_runs import same_bits, stopped_and_resumed, train
from test_loop import Training
from tiny_models import batch_of, loaded, tiny

pytestmark = pytest.mark.usefixtures("one_thread", "no_pictures")

ROWS = [[5, 6, 7, 8, 9], [10, 11], [12, 13, 14]]


def inputs_and_noise(folder: Path) -> tuple[Inputs, Noise]:
    model, _ = loaded(folder)
    batch, noise = batch_of(ROWS), Noise(torch.device("cpu"))
    noise.seek(0, 1, batch)
    return model.inputs(batch), noise


def norms(moved: torch.Tensor) -> list[float]:
    return [float(part.norm()) for part in moved.detach().split([len(row) for row in ROWS])]


def test_it_starts_at_random_with_the_same_size_for_rows_of_any_length(tiny_bert: Path) -> None:
    inputs, noise = inputs_and_noise(tiny_bert)
    moved = FreeLB(3, 0.1, 10.0, 0.6).begin(torch.zeros(10, 16), inputs, noise)

    assert norms(moved) == pytest.approx([0.6 / 3**0.5] * 3, rel=0.25)
    assert moved.requires_grad
    again = FreeLB(3, 0.1, 10.0, 0.6).begin(torch.zeros(10, 16), inputs, noise)
    assert torch.equal(moved, again)


def test_an_ascent_follows_the_gradient_of_each_row_by_the_size_of_a_step(tiny_bert: Path) -> None:
    inputs, noise = inputs_and_noise(tiny_bert)
    freelb = FreeLB(3, 0.1, 10.0, 0.0)
    moved = freelb.begin(torch.zeros(10, 16), inputs, noise)
    assert not moved.any()
    moved.grad = torch.randn(10, 16, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 11)[:, None]
    after = freelb.ascend(moved, inputs)

    assert norms(after) == pytest.approx([0.1] * 3, rel=1e-5)
    for got, grad in zip(after.detach().split([5, 2, 3]), moved.grad.split([5, 2, 3]), strict=True):
        assert torch.allclose(got / got.norm(), grad / grad.norm(), atol=1e-6)


def test_what_would_leave_the_ball_is_drawn_back_onto_it_and_the_rest_is_left_alone(tiny_bert: Path) -> None:
    inputs, _ = inputs_and_noise(tiny_bert)
    moved = torch.zeros(10, 16, requires_grad=True)
    moved.grad = torch.ones(10, 16)
    moved.grad[:5] = 0.0

    assert norms(FreeLB(3, 0.5, 0.2, 0.0).ascend(moved, inputs)) == pytest.approx([0.0, 0.2, 0.2], abs=1e-6)


def test_the_passes_of_a_step_mislead_the_model_more_and_more(tiny_bert: Path) -> None:
    losses: list[float] = []
    training = Training(tiny_bert, dropout=0.0, freelb=FreeLB(4, 0.3, 5.0, 0.0), steps=1, batch_size=21)
    usual = training.course.loss

    class Watched:
        kind = usual.kind

        def __call__(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            found = usual(logits, targets)
            losses.append(float(found.detach()))
            return found

    training.course.loss = Watched()  # type: ignore[assignment]
    step = training.steps()[0]

    assert losses == sorted(losses) and losses[-1] > losses[0]
    assert step.loss == pytest.approx(np.mean(losses) / 21, rel=1e-5)


def gradients(training: Training) -> dict[str, torch.Tensor]:
    """Of the first step, by name, the token embeddings among them."""
    optimizer, found = training.optimizer, {}

    def keep(step: int) -> None:
        found.update({n: g.clone() for n, g in zip(optimizer.names, optimizer.grads, strict=True) if g is not None})
        assert optimizer._leaf is not None and optimizer._leaf.grad is not None
        found["words"] = optimizer._leaf.grad.clone()

    optimizer.apply = keep  # type: ignore[method-assign]
    training.steps()
    return found


def test_passes_that_do_not_move_give_the_gradient_of_plain_training(tiny_bert: Path) -> None:
    """So the mean is taken, dropout is the same in all passes, and token embeddings get their share."""
    still = FreeLB(3, 1e-12, 1e-12, 0.0)
    plain, moved = (
        gradients(Training(tiny_bert, dropout=0.3, freelb=freelb, steps=1)) for freelb in (None, still)
    )

    assert plain.keys() == moved.keys() and "words" in plain
    for name, value in plain.items():
        assert torch.allclose(moved[name], value, rtol=1e-3, atol=1e-6), name


def test_the_gradient_does_not_depend_on_how_the_step_is_cut(tiny_bert: Path) -> None:
    freelb = FreeLB(3, 0.1, 0.3, 0.2)
    whole, cut = (
        gradients(Training(tiny_bert, dropout=0.3, freelb=freelb, steps=1, token_budget=budget))
        for budget in (4096, 20)
    )

    for name, value in whole.items():
        assert torch.allclose(cut[name], value, rtol=1e-3, atol=1e-5), name


@pytest.mark.parametrize("case", ["roberta", "distilbert", "electra with small embeddings", "modernbert"])
def test_embeddings_of_other_architectures_are_moved_too(tmp_path: Path, case: str) -> None:
    tiny(case).save_pretrained(tmp_path)
    one, other = (
        Training(tmp_path, dropout=0.0, freelb=FreeLB(2, size, 9.0, 0.0), steps=1).steps()[0].loss
        for size in (1e-9, 0.5)
    )

    assert other > one * 1.0001


@pytest.mark.parametrize("settings", [{}, {"train__precision": "bf16"}, {"model__freeze": "embeddings"}])
def test_a_resumed_run_ends_with_the_same_bits(tmp_path: Path, tiny_bert: Path, settings: dict[str, Any]) -> None:
    settings = settings | {"train__adversarial": "freelb", "train__adversarial_start": 0.3}
    whole = train(tmp_path / "whole", tiny_bert, **settings)

    assert same_bits(stopped_and_resumed(tmp_path / "out", tiny_bert, at=8, **settings), whole)
    assert not same_bits(train(tmp_path / "plain", tiny_bert), whole)
