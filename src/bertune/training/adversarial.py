"""FreeLB: training on token embeddings that were moved so as to mislead the model.

Zhu et al. 2020, FreeLB: Enhanced Adversarial Training for Natural Language Understanding (arXiv 1909.11764),
algorithm 1. What is added to the embeddings of a row, its perturbation, starts at random; K passes give gradients of
the weights, whose mean counts, and between them the perturbation goes uphill. All passes of a step share their dropout
(section 3.3).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bertune.model.encoder import Inputs
from bertune.model.noise import Noise


@dataclass(frozen=True)
class FreeLB:
    """steps: passes, K; size: norm of an ascent; norm: largest norm of a perturbation; start: size at random. Norms are
    over all tokens of a row, of a chunk where a row is read in several."""

    steps: int
    size: float
    norm: float
    start: float

    def begin(self, words: Tensor, inputs: Inputs, noise: Noise) -> Tensor:
        """The perturbation of the first pass, like `words` [tokens, width]: uniform, with a norm of about start / 1.7
        whatever the length of a row."""
        lines, width = words.shape
        if not self.start:
            return torch.zeros_like(words, requires_grad=True)
        scale = self.start / (inputs.lengths * width).float().sqrt()
        drawn = noise.uniform(lines, width) * _of_tokens(scale, inputs)
        return self._within(drawn, inputs).requires_grad_()

    def ascend(self, moved: Tensor, inputs: Inputs) -> Tensor:
        """The perturbation of the next pass: a step of length `size` uphill for each row, and back into the ball."""
        assert moved.grad is not None
        uphill = self.size / _norms(moved.grad, inputs).clamp(min=1e-20)
        return self._within(moved.detach() + moved.grad * _of_tokens(uphill, inputs), inputs).requires_grad_()

    def _within(self, moved: Tensor, inputs: Inputs) -> Tensor:
        shrink = (self.norm / _norms(moved, inputs).clamp(min=1e-20)).clamp(max=1.0)
        return moved * _of_tokens(shrink, inputs)


def _owners(inputs: Inputs) -> Tensor:
    lengths = inputs.lengths
    return torch.repeat_interleave(torch.arange(len(lengths), device=lengths.device), lengths)


def _of_tokens(values: Tensor, inputs: Inputs) -> Tensor:
    """[sequences] -> [tokens, 1]"""
    return values.index_select(0, _owners(inputs))[:, None]


def _norms(values: Tensor, inputs: Inputs) -> Tensor:
    """[tokens, width] -> [sequences]"""
    squares = values.square().sum(dim=1)
    return squares.new_zeros(len(inputs.lengths)).index_add(0, _owners(inputs), squares).sqrt()
