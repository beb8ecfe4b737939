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


@dataclass(frozen=True)
class Loss:
    """What is minimised.

    kind: single or multi; weights: [labels] class weights (single) or positive weights (multi); prior: [labels] added
    to the logits inside the loss only; gamma: focusing of the focal loss, None for cross-entropy; smoothing: share of
    the target spread over all labels (single).
    """

    kind: str
    weights: Tensor | None = None
    prior: Tensor | None = None
    gamma: float | None = None
    smoothing: float = 0.0

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
        cell = F.binary_cross_entropy_with_logits(logits, targets, pos_weight=self.weights, reduction="none")
        if self.gamma is not None:
            p = torch.sigmoid(logits)
            cell = cell * (p * (1 - targets) + (1 - p) * targets) ** self.gamma
        return cell.mean(dim=1).sum()


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
    return Loss(kind, tensors[0], tensors[1], gamma, config.label_smoothing if kind == "single" else 0.0)
