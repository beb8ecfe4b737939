"""Training LoRA's matrices (see model/lowrank.py) without computing their products apart.

The model computes with W + scale B A in place of W, so that kernels and attention stay as they are; the gradient of
that matrix, G, gives those of the small ones: scale B' G for A and scale G A' for B. The encoder's own weights stay as
they came.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from bertune.config import ModelConfig
from bertune.model.classifier import ClassifierModel
from bertune.model.encoder import Encoder
from bertune.model.lowrank import Place, add_product, places_of

PREFIX = "lora/"  # of the names of A and B among the weights of a run


class Lora:
    """The matrices of one training. `base`: fp32 weights of the encoder that they stand beside, by name."""

    def __init__(self, model: ClassifierModel, config: ModelConfig, full: Mapping[str, Tensor], *, seed: int) -> None:
        """full: fp32 values of weights that the model holds in lower precision. A is drawn, B is zero, so that training
        starts with the model as it is."""
        assert isinstance(model.encoder, Encoder)
        self.scale = config.lora_alpha / config.lora
        self.places = places_beside(model, config)
        named = dict(model.named_parameters())
        self.weights = {place.weight: named[place.weight] for place in self.places}
        self.base = {
            name: full[name] if name in full else value.detach().clone() for name, value in self.weights.items()
        }
        self.matrices: dict[str, nn.Parameter] = {}
        generator = torch.Generator().manual_seed(seed ^ 0x10BA)
        for place in self.places:
            lines, width = place.end - place.begin, self.base[place.weight].shape[1]
            drawn = (2 * torch.rand(config.lora, width, generator=generator) - 1) / width**0.5
            self.matrices[place.key("a")] = nn.Parameter(drawn.to(model.device))
            self.matrices[place.key("b")] = nn.Parameter(torch.zeros(lines, config.lora, device=model.device))

    def pair(self, place: Place) -> tuple[nn.Parameter, nn.Parameter]:
        return self.matrices[place.key("a")], self.matrices[place.key("b")]

    @torch.no_grad()
    def collect(self) -> None:
        """Gradients of the large matrices become those of the small ones."""
        for place in self.places:
            grad = self.weights[place.weight].grad
            if grad is not None:
                a, b = self.pair(place)
                part = grad[place.begin : place.end].float()
                a.grad, b.grad = self.scale * (b.t() @ part), self.scale * (part @ a.t())
        for weight in self.weights.values():
            weight.grad = None

    def merged(self) -> dict[str, Tensor]:
        """W + scale B A in fp32, by the name of W; copies."""
        found = {name: value.clone() for name, value in self.base.items()}
        for place in self.places:
            a, b = self.pair(place)
            add_product(found[place.weight], place, a.detach(), b.detach(), self.scale)
        return found

    @torch.no_grad()
    def merge(self) -> None:
        """The model computes with the matrices as they are now."""
        for name, value in self.merged().items():
            self.weights[name].copy_(value)


def places_beside(model: ClassifierModel, config: ModelConfig) -> list[Place]:
    """Where matrices stand: in the layers up to the last that the head reads."""
    return places_of(model.encoder.config, config.lora_targets, layers=model.depth)


def train_beside(model: ClassifierModel, config: ModelConfig) -> None:
    """Of the encoder, only the matrices that LoRA stands beside get gradients; its own weights are not trained."""
    beside = {place.weight for place in places_beside(model, config)}
    for name, value in model.encoder.named_parameters():
        value.requires_grad_(f"encoder.{name}" in beside)
