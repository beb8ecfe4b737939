"""One encoder under the heads of several tasks, and the weight of each task's loss where that is learned."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from bertune.model.classifier import ClassifierModel, EncoderModel


class Heads(nn.Module):
    """The heads by task, as `task-NAME`, and with uncertainty weighting a log variance a task.

    The log variances are called bias, so that the optimizer treats them as other biases: without weight decay.
    """

    def __init__(self, heads: Mapping[str, nn.Module], *, uncertainty: bool) -> None:
        super().__init__()
        for name, head in heads.items():
            self.add_module(f"task-{name}", head)
        self.uncertainty = Uncertainty(len(heads)) if uncertainty else None


class Uncertainty(nn.Module):
    """Learned log variances s, one a task: a loss L of a task counts as exp(-s) L + s / 2.

    Kendall et al. 2018, Multi-Task Learning Using Uncertainty to Weigh Losses (arXiv 1705.07115, section 3.2): its
    L / sigma^2 + log sigma, with s = log sigma^2, which begins at 0: as without.
    """

    def __init__(self, tasks: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(tasks))

    def weigh(self, task: int, loss: Tensor, share: float) -> Tensor:
        """`loss`: a part of the step's; `share`: which part of its rows that part is."""
        return torch.exp(-self.bias[task]) * loss + share * self.bias[task] / 2


class MultiModel(EncoderModel):
    """`models`: a classifier for each task, all over one encoder, that of the first; changing one changes all."""

    head: Heads

    def __init__(self, models: Mapping[str, ClassifierModel], *, uncertainty: bool = False) -> None:
        super().__init__()
        self.encoder = next(iter(models.values())).encoder
        for model in models.values():
            model.encoder = self.encoder
        self.head = Heads({name: model.head for name, model in models.items()}, uncertainty=uncertainty)
        self.models = dict(models)  # a plain dict: their weights are registered above already

    @property
    def depth(self) -> int:
        return max(model.depth for model in self.models.values())
