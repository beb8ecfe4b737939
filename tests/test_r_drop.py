"""R-Drop: two passes that differ by their dropout have to agree; without dropout there is nothing to agree about."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from bertune.data.batch import make_batch
from bertune.errors import ConfigError
from bertune.model.losses import disagreement
from bertune.model.noise import Noise
from technique_runs import same_bits, stopped_and_resumed, train
from test_loop import ROWS, Training, same
from tiny_models import batch_of
from tiny_runs import make_tiny_bert, multi_rows

pytestmark = pytest.mark.usefixtures("one_thread", "no_pictures")


def logits(seed: int) -> torch.Tensor:
    return torch.randn(7, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 3


def test_of_one_label_a_row_it_is_the_mean_of_both_divergences_of_the_softmax() -> None:
    one, other = logits(0), logits(1)
    p, q = one.log_softmax(-1), other.log_softmax(-1)
    wanted = (F.kl_div(p, q, reduction="sum", log_target=True) + F.kl_div(q, p, reduction="sum", log_target=True)) / 2

    assert float(disagreement("single", one, other)) == pytest.approx(float(wanted), rel=1e-10)


def test_of_several_labels_it_is_the_mean_over_labels_of_there_and_not_there() -> None:
    one, other = logits(0), logits(1)
    p, q = (torch.stack([F.logsigmoid(x), F.logsigmoid(-x)], dim=-1) for x in (one, other))
    both = F.kl_div(p, q, reduction="none", log_target=True) + F.kl_div(q, p, reduction="none", log_target=True)

    found = float(disagreement("multi", one, other))
    assert found == pytest.approx(float(both.sum(-1).mean(1).sum() / 2), rel=1e-10)


@pytest.mark.parametrize("kind", ["single", "multi"])
def test_it_is_zero_for_the_same_logits_to_the_last_bit_and_positive_for_others(kind: str) -> None:
    assert float(disagreement(kind, logits(0), logits(0).clone())) == 0.0
    assert float(disagreement(kind, logits(0), logits(1))) > 0


def test_the_second_pass_drops_other_values_and_always_the_same_ones() -> None:
    batch, noise = batch_of([[5, 6, 7], [8, 9]]), Noise(torch.device("cpu"))

    def drawn(**how: Any) -> torch.Tensor:
        noise.seek(0, 3, batch, **how)
        return noise.dropout(torch.ones(5, 64), 0.5)

    assert torch.equal(drawn(second=True), drawn(second=True))
    assert not torch.equal(drawn(second=True), drawn())


def test_two_passes_without_dropout_agree_and_train_as_one_does(tiny_bert: Path) -> None:
    one, two = (Training(tiny_bert, dropout=0.0, r_drop=alpha) for alpha in (0.0, 5.0))

    assert [step.loss for step in one.steps()] == [step.loss for step in two.steps()]
    left, right = one.weights(), two.weights()
    # Keys need no bias (softmax does not see it), so Adam trains theirs on rounding noise.
    assert all(torch.allclose(left[n], right[n], rtol=0, atol=2e-5) for n in left if not n.endswith("qkv.bias"))


def test_the_loss_is_the_mean_of_both_passes_and_alpha_times_their_disagreement(tiny_bert: Path) -> None:
    how: dict[str, Any] = {"dropout": 0.3, "batch_size": ROWS, "steps": 1}
    plain = Training(tiny_bert, **how)
    batch, noise = make_batch(plain.course.encoded, np.arange(ROWS)), Noise(torch.device("cpu"))
    targets, passes = torch.from_numpy(plain.course.targets), []
    with torch.no_grad():
        for second in (False, True):
            noise.seek(0, 1, batch, second=second)
            passes.append(plain.model(plain.model.inputs(batch), noise=noise))
        first, other = (float(plain.course.loss(found, targets)) / ROWS for found in passes)
        apart = float(disagreement("single", *passes)) / ROWS

    assert abs(first - other) > 1e-3 and apart > 1e-4
    for alpha in (0.5, 300.0):
        found = Training(tiny_bert, r_drop=alpha, **how).steps()[0].loss
        assert found == pytest.approx((first + other) / 2 + alpha * apart, rel=1e-5)


def test_both_passes_are_the_same_however_a_step_is_cut(tiny_bert: Path) -> None:
    losses = [
        Training(tiny_bert, dropout=0.3, r_drop=2.0, token_budget=budget, steps=1).steps()[0].loss
        for budget in (4096, 20)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_it_changes_what_is_learned(tiny_bert: Path) -> None:
    runs = [Training(tiny_bert, dropout=0.3, r_drop=alpha) for alpha in (0.5, 5.0)]
    for run in runs:
        run.steps()

    assert not same(runs[0].weights(), runs[1].weights())


@pytest.mark.parametrize("settings", [{}, {"train__precision": "bf16"}, {"model__freeze": "1"}])
def test_a_resumed_run_ends_with_the_same_bits(tmp_path: Path, tiny_bert: Path, settings: dict[str, Any]) -> None:
    settings = settings | {"train__r_drop": 1.0}
    whole = train(tmp_path / "whole", tiny_bert, **settings)

    assert same_bits(stopped_and_resumed(tmp_path / "out", tiny_bert, at=8, **settings), whole)


def test_it_is_for_several_labels_too(tmp_path: Path, tiny_bert: Path) -> None:
    assert train(tmp_path / "out", tiny_bert, rows=multi_rows(60), train__r_drop=1.0).metrics["train"]["steps"] == 12


@pytest.mark.parametrize("settings", [
    {"model__freeze": "encoder"}, {"model__freeze": "2"}, {"model__freeze": "1", "model__layers": "0"},
], ids=str)  # fmt: skip
def test_layers_that_are_frozen_have_no_dropout_that_could_tell_passes_apart(
    tmp_path: Path, tiny_bert: Path, settings: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError, match="--r-drop 1: compares two passes with different dropout"):
        train(tmp_path / "out", tiny_bert, train__r_drop=1.0, model__head_dropout=0.0, **settings)
    assert not (tmp_path / "out").exists()


def test_a_model_without_dropout_is_refused(tmp_path: Path) -> None:
    model = make_tiny_bert(tmp_path / "still", dropout=0.0)
    with pytest.raises(ConfigError) as caught:
        train(tmp_path / "out", model, train__r_drop=1.0)

    assert str(caught.value) == (
        "--r-drop 1: compares two passes with different dropout, and what is trained here has none. Pass --dropout, "
        "for example --dropout 0.1, or leave it out."
    )
    assert not (tmp_path / "out").exists()
