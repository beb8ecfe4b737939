"""Losses on logits, one per task kind, as a sum over rows: the caller divides by the rows of the whole step.

None of them takes probabilities. A listing that circulates feeds sigmoid outputs to a loss that applies the sigmoid
again; its gradients are several times too small and its loss cannot fall below 0.31 (tests/test_losses.py shows both).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bertune.config import TrainConfig

# Of the distribution-balanced loss: alpha, beta and mu of the weights, lambda and kappa of the tolerance.
DB_FLOOR, DB_SLOPE, DB_MIDDLE, DB_SOFT, DB_MARGIN = 0.1, 10.0, 0.2, 5.0, 0.05


@dataclass(frozen=True)
class Loss:
    """What is minimised.

    kind: single or multi; weights: [labels] class weights (single) or positive weights (multi); prior: [labels] added
    to the logits inside the loss only; gamma: focusing of the focal loss, None for cross-entropy; smoothing: share of
    the target spread over all labels (single), or over there and not there (multi); asymmetric: focusing and margin of
    absent labels (multi); rarity, margins: [labels] 1 / rows of each label, and what its logits are lowered by, for the
    distribution-balanced loss.
    """

    kind: str
    weights: Tensor | None = None
    prior: Tensor | None = None
    gamma: float | None = None
    smoothing: float = 0.0
    asymmetric: tuple[float, float] | None = None
    rarity: Tensor | None = None
    margins: Tensor | None = None

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Sum over rows. logits: [rows, labels]; targets: int64 [rows] (single) or float [rows, labels] (multi).

        A row of a multi-label task counts the mean over its labels.
        """
        if self.prior is not None:
            logits = logits + self.prior
        return self._single(logits, targets) if self.kind == "single" else self._multi(logits, targets)

    def _single(self, logits: Tensor, targets: Tensor) -> Tensor:
        if self.gamma is None:
            return F.cross_entropy(
                logits, targets, weight=self.weights, label_smoothing=self.smoothing, reduction="sum"
            )
        # Lin et al. 2017, Focal Loss for Dense Object Detection, equation 4, over the softmax
        log_p = F.log_softmax(logits, dim=-1).gather(1, targets[:, None])[:, 0]
        row = -((1 - log_p.exp()) ** self.gamma) * log_p
        return (row if self.weights is None else row * self.weights[targets]).sum()

    def _multi(self, logits: Tensor, targets: Tensor) -> Tensor:
        if self.rarity is not None:
            return self._distribution_balanced(logits, targets).mean(dim=1).sum()
        if self.smoothing:
            targets = targets * (1 - self.smoothing) + self.smoothing / 2
        cell = F.binary_cross_entropy_with_logits(logits, targets, pos_weight=self.weights, reduction="none")
        if self.gamma is not None:
            p = torch.sigmoid(logits)
            cell = cell * (p * (1 - targets) + (1 - p) * targets) ** self.gamma
        if self.asymmetric is not None:
            cell = torch.where(targets > 0.5, cell, self._absent(logits))
        return cell.mean(dim=1).sum()

    def _absent(self, logits: Tensor) -> Tensor:
        """Ridnik et al. 2021, Asymmetric Loss for Multi-Label Classification (arXiv 2009.14119), equations 4 to 7, for
        labels that a row has not; its focusing of those that it has is off, as the paper found best."""
        assert self.asymmetric is not None
        gamma, margin = self.asymmetric
        # Above 0, where a power has a slope; and without a margin a sure mistake must not be infinite.
        p = (torch.sigmoid(logits) - margin).clamp(min=1e-8)
        return -(p**gamma) * torch.log((1 - p).clamp(min=1e-8))

    def _distribution_balanced(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Wu et al. 2020, Distribution-Balanced Loss (arXiv 2007.09654), with its settings for COCO: a row drawn for
        one of its labels brings its other labels along, which the weights undo (equations 2 to 5); absent labels are
        tolerated by a margin that is larger for rare labels, and press more softly (equations 6 to 9)."""
        assert self.rarity is not None and self.margins is not None
        own = (targets * self.rarity).sum(dim=1, keepdim=True)
        share = self.rarity / own  # of the draws of this row, how many are for the label; infinite for rows without any
        weight = DB_FLOOR + torch.sigmoid(DB_SLOPE * (share - DB_MIDDLE))
        moved = logits - self.margins
        present, absent = F.softplus(-moved), F.softplus(DB_SOFT * moved) / DB_SOFT
        return weight * torch.where(targets > 0.5, present, absent)


def disagreement(kind: str, one: Tensor, other: Tensor) -> Tensor:
    """How far two sets of logits [rows, labels] lie apart, as a sum over rows: the mean of both divergences.

    Liang et al. 2021, R-Drop (arXiv 2106.14448), equation 2: (KL(p, q) + KL(q, p)) / 2, p and q being softmax of the
    logits; where there are several labels a row, one such term a label with p and q of there and not there, and their
    mean. Either way the sum of both is (p - q) times the difference of the logits. 0 where they are the same.
    """
    if kind == "single":
        return 0.5 * ((one.softmax(dim=-1) - other.softmax(dim=-1)) * (one - other)).sum()
    return 0.5 * ((one.sigmoid() - other.sigmoid()) * (one - other)).mean(dim=1).sum()


def make_loss(kind: str, config: TrainConfig, targets: np.ndarray, num_labels: int, device: torch.device) -> Loss:
    """The configured loss, with weights and prior counted on the training `targets`."""
    weights = prior = None
    if kind == "single":
        counts = np.bincount(targets, minlength=num_labels).astype(np.float64)
        share = (counts + 1) / (counts + 1).sum()
        if config.class_weights == "balanced":
            # Weighted so that the mean weight of a training row is 1: the scale of the loss stays what it was.
            raw = 1 / share
            weights = raw / (raw * counts).sum() * counts.sum()
        if config.label_prior == "balanced":
            prior = np.log(share)  # Menon et al. 2021, Long-tail learning via logit adjustment
    else:
        share = (targets.sum(axis=0) + 1) / (len(targets) + 2)
        if config.class_weights == "balanced":
            weights = (1 - share) / share
        if config.label_prior == "balanced":
            prior = np.log(share) - np.log1p(-share)
    tensors = [None if x is None else torch.as_tensor(x, dtype=torch.float32, device=device) for x in (weights, prior)]
    gamma = config.focal_gamma if config.loss == "focal" else None
    rarity = margins = None
    if config.loss == "distribution-balanced":
        rows = torch.as_tensor(targets.sum(axis=0) + 1, dtype=torch.float32, device=device)
        rarity, margins = 1 / rows, DB_MARGIN * torch.log((len(targets) + 2) / rows - 1)
    return Loss(
        kind, tensors[0], tensors[1], gamma, config.label_smoothing,
        (config.negative_gamma, config.negative_margin) if config.loss == "asymmetric" else None, rarity, margins,
    )
