"""Losses take logits; one listing in circulation applies the sigmoid twice, and these tests show what that costs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from bertune.config import TrainConfig
from bertune.model.losses import Loss, make_loss

CPU = torch.device("cpu")


def attainable(twice: bool) -> float:
    """Loss of perfect, arbitrarily confident answers."""
    logits = torch.tensor([[60.0, -60.0]])
    targets = torch.tensor([[1.0, 0.0]])
    return float(Loss("multi")(torch.sigmoid(logits) if twice else logits, targets))


def test_a_perfect_answer_costs_nothing_on_logits_but_never_under_half_a_nat_when_the_sigmoid_is_applied_twice():
    assert attainable(twice=False) < 1e-6
    # Present labels cost at least log(1 + 1/e) = 0.313, absent ones log 2 = 0.693; here one of each.
    assert attainable(twice=True) == pytest.approx((np.log(1 + np.exp(-1)) + np.log(2)) / 2, abs=1e-6)


def test_applying_the_sigmoid_twice_shrinks_the_gradient_of_a_confident_mistake_to_nothing():
    def gradient(twice: bool) -> float:
        logits = torch.tensor([[-6.0]], requires_grad=True)
        Loss("multi")(torch.sigmoid(logits) if twice else logits, torch.ones(1, 1)).backward()
        return float(logits.grad.abs())

    assert gradient(twice=False) > 0.99
    assert gradient(twice=True) < 0.002


def test_at_the_start_of_training_the_doubled_sigmoid_passes_on_a_fraction_of_the_gradient():
    logits = torch.zeros(1, 1, requires_grad=True)
    Loss("multi")(torch.sigmoid(logits), torch.ones(1, 1)).backward()
    assert float(logits.grad.abs()) < 0.2 * 0.5  # 0.5 is the gradient on logits


def test_losses_are_sums_over_rows_so_that_micro_batches_add_up_to_the_whole():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(10, 4, generator=generator)
    single, multi = torch.arange(10) % 4, (torch.rand(10, 4, generator=generator) > 0.5).float()
    cases = ((Loss("single", smoothing=0.1), single), (Loss("multi"), multi), (Loss("multi", gamma=2.0), multi))
    for loss, targets in cases:
        whole = loss(logits, targets)
        parts = loss(logits[:3], targets[:3]) + loss(logits[3:], targets[3:])
        assert torch.allclose(whole, parts, atol=1e-5)


def test_plain_losses_equal_torch_means():
    logits = torch.randn(8, 3, generator=torch.Generator().manual_seed(1))
    targets = torch.tensor([0, 1, 2, 0, 1, 2, 0, 0])
    assert torch.allclose(Loss("single")(logits, targets) / 8, F.cross_entropy(logits, targets))
    hot = F.one_hot(targets, 3).float()
    assert torch.allclose(Loss("multi")(logits, hot) / 8, F.binary_cross_entropy_with_logits(logits, hot))


def test_focal_loss_without_focus_is_cross_entropy_and_with_it_weighs_hard_rows_more():
    logits, targets = torch.tensor([[4.0, 0.0], [0.0, 4.0]]), torch.tensor([0, 0])
    assert torch.allclose(Loss("single", gamma=0.0)(logits, targets), Loss("single")(logits, targets))
    easy, hard = (float(Loss("single", gamma=2.0)(row[None], torch.tensor([0]))) for row in logits)
    plain_easy, plain_hard = (float(Loss("single")(row[None], torch.tensor([0]))) for row in logits)
    assert hard / easy > 100 * plain_hard / plain_easy


def test_the_label_prior_is_inside_the_loss_and_is_the_log_of_the_training_shares():
    targets = np.array([0] * 70 + [1] * 20 + [2] * 10)
    loss = make_loss("single", TrainConfig(label_prior="balanced"), targets, 3, CPU)
    assert torch.allclose(loss.prior.exp().sum(), torch.tensor(1.0))
    assert torch.allclose(loss.prior.exp(), torch.tensor([0.7, 0.2, 0.1]), atol=0.02)
    logits = torch.zeros(1, 3)
    # With equal logits the prior alone answers: the frequent class is cheap, the rare one dear.
    assert float(loss(logits, torch.tensor([0]))) < float(loss(logits, torch.tensor([2])))


def test_balanced_class_weights_leave_the_mean_weight_of_a_row_at_one():
    targets = np.array([0] * 90 + [1] * 10)
    loss = make_loss("single", TrainConfig(class_weights="balanced"), targets, 2, CPU)
    assert float(loss.weights[torch.from_numpy(targets)].mean()) == pytest.approx(1.0)
    assert float(loss.weights[1] / loss.weights[0]) == pytest.approx(91 / 11)


def test_balanced_multi_label_weights_lift_rare_positives():
    targets = np.zeros((100, 2), dtype=np.float32)
    targets[:50, 0] = 1
    targets[:5, 1] = 1
    loss = make_loss("multi", TrainConfig(class_weights="balanced"), targets, 2, CPU)
    assert float(loss.weights[0]) == pytest.approx(1.0, abs=0.05)
    assert float(loss.weights[1]) > 10


def multi(loss: str, targets: np.ndarray, **more: object) -> Loss:
    config = TrainConfig.model_validate({"loss": loss, **more})
    return make_loss("multi", config, targets, targets.shape[1], torch.device("cpu"))


def test_the_asymmetric_loss_by_hand() -> None:
    targets = np.array([[1.0, 0.0]], np.float32)
    p = torch.sigmoid(torch.tensor([[0.3, 1.2]]))
    wanted = (-torch.log(p[0, 0]) - (p[0, 1] - 0.05) ** 4 * torch.log(1.05 - p[0, 1])) / 2
    found = multi("asymmetric", targets)(torch.tensor([[0.3, 1.2]]), torch.tensor(targets))
    assert found.item() == pytest.approx(wanted.item(), rel=1e-5)
    easy = multi("asymmetric", targets)(torch.tensor([[50.0, -3.5]]), torch.tensor(targets))
    assert easy.item() < 1e-15  # below the margin an absent label costs nothing
    plain = multi("asymmetric", targets, negative_gamma=0, negative_margin=0)
    logits = torch.tensor([[0.3, 1.2]])
    assert plain(logits, torch.tensor(targets)).item() == pytest.approx(
        torch.nn.functional.binary_cross_entropy_with_logits(logits, torch.tensor(targets)).item(), rel=1e-5
    )


def test_the_distribution_balanced_loss_by_hand() -> None:
    targets = np.zeros((98, 2), np.float32)
    targets[:49, 0] = 1
    targets[:9, 1] = 1
    loss = multi("distribution-balanced", targets)
    row = torch.tensor([[1.0, 1.0]])
    share = np.array([1 / 50, 1 / 10]) / (1 / 50 + 1 / 10)
    weight = 0.1 + 1 / (1 + np.exp(-10 * (share - 0.2)))
    moved = np.array([0.4, -0.2]) - 0.05 * np.log(np.array([100 / 50, 100 / 10]) - 1)
    wanted = (weight * np.log1p(np.exp(-moved))).mean()
    logits = torch.tensor([[0.4, -0.2]])
    assert loss(logits, row).item() == pytest.approx(wanted, rel=1e-5)
    nothing = torch.zeros(1, 2)
    wanted = (1.1 * np.log1p(np.exp(5 * moved)) / 5).mean()  # all draws weigh fully in a row without labels
    assert loss(logits, nothing).item() == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("loss", ["asymmetric", "distribution-balanced"])
def test_losses_for_rare_labels_add_up_and_have_finite_gradients(loss: str) -> None:
    targets = (np.random.default_rng(0).random((30, 4)) < 0.2).astype(np.float32)
    made = multi(loss, targets)
    logits = torch.randn(30, 4, generator=torch.Generator().manual_seed(0)).mul(30).requires_grad_()
    whole = made(logits, torch.tensor(targets))
    parts = sum(made(logits[rows], torch.tensor(targets[rows])) for rows in (slice(0, 7), slice(7, 30)))
    assert whole.item() == pytest.approx(parts.item(), rel=1e-5)
    whole.backward()
    assert logits.grad is not None and torch.isfinite(logits.grad).all()


def test_smoothing_of_several_labels_moves_each_target_towards_one_half():
    logits = torch.randn(5, 3, generator=torch.Generator().manual_seed(2))
    targets = (torch.rand(5, 3, generator=torch.Generator().manual_seed(3)) > 0.5).float()
    soft = torch.where(targets > 0.5, torch.tensor(0.95), torch.tensor(0.05))
    loss = make_loss("multi", TrainConfig(label_smoothing=0.1), targets.numpy(), 3, CPU)
    assert torch.allclose(loss(logits, targets) / 5, F.binary_cross_entropy_with_logits(logits, soft))
