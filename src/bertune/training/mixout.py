"""Mixout: at every step some entries of the weights are those of the pretrained model.

Lee et al. 2020, Mixout: Effective Regularization to Finetune Large-scale Pretrained Language Models (arXiv 1909.11299).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from bertune.model.noise import level, line_keys, mask, mask_factor

MATRICES = re.compile(r"encoder\.layers\.\d+\.(qkv|out|up|down)\.weight")


class Mixout:
    """Mixes the matrices of the encoder's layers, which hold nearly all that pre-training taught them.

    Biases and norms are few numbers; of the embeddings a step sees few rows; the head is new. An entry is the
    pretrained one, u, with probability p, and else (w - p u) / (1 - p), so that its expectation is w (equation 2 of
    the paper). p is rounded to 1/256, as dropout is here.
    """

    def __init__(self, masters: Sequence[Tensor], places: Mapping[str, int], *, rate: float, seed: int) -> None:
        """masters: fp32 weights as they are before the first step; places: of each name among them."""
        self.rate, self.seed = rate, seed
        chosen = {place: name for name, place in places.items() if MATRICES.fullmatch(name)}
        self.names = chosen
        self.pretrained = {place: masters[place].detach().clone() for place in chosen}
        self._kept: dict[int, Tensor] = {}
        self._own: dict[int, Tensor] = {}

    def mix(self, params: Sequence[Tensor], masters: Sequence[Tensor], step: int) -> None:
        """Put mixed weights into the parameters, for the passes of step `step`; `restore` takes them out again."""
        factor = mask_factor(self.rate)
        for place, name in self.names.items():
            param, master, old = params[place], masters[place].detach(), self.pretrained[place]
            kept = self._kept[place] = self._mask(name, old, step)
            self._own[place] = param.data
            param.data = torch.addcmul(old, master - old, kept.to(old.dtype), value=factor).to(param.dtype)

    def restore(self, params: Sequence[Tensor], grads: list[Tensor | None]) -> None:
        """The parameters are again what they were; gradients of mixed weights become those of the weights."""
        factor = mask_factor(self.rate)
        for place, own in self._own.items():
            params[place].data = own
            grad = grads[place]
            if grad is not None:
                grads[place] = (grad.float() * self._kept[place]).mul_(factor)
        self._own, self._kept = {}, {}

    def _mask(self, name: str, like: Tensor, step: int) -> Tensor:
        """bool, of the shape of `like`: what stays as trained; a function of (seed, step, name) alone."""
        lines, width = like.shape
        keys = line_keys(lines, self.seed, step, name)
        if like.device.type == "cpu":
            return mask(keys, width, self.rate, torch.bool, site=0)
        generator = torch.Generator(like.device).manual_seed(int(keys[0, 0]) & 0x7FFFFFFF)
        drawn = torch.randint(256, like.shape, generator=generator, device=like.device, dtype=torch.uint8)
        return drawn >= level(self.rate)
