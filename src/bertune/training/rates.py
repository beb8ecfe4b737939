"""Learning rates: how they change from step to step, and from the top of an encoder to its bottom."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from bertune.config import TrainConfig

SLANT = 32  # how many times smaller than the peak the rate of the slanted triangle is at its ends


def learning_rates(config: TrainConfig, *, peak: float, steps: int) -> np.ndarray:
    """float64 [steps]: the rate of each step. Warm-up rises linearly; linear and cosine then fall to 0.

    slanted-triangular: Howard & Ruder 2018 (arXiv 1801.06146, section 3.2), which rises from and falls to 1/32 of the
    peak; its cut_frac is the share of the warm-up.
    """
    warm = math.ceil(config.warmup * steps)
    step = np.arange(steps, dtype=np.float64)
    rest = (step - warm) / max(1, steps - warm)
    if config.schedule == "slanted-triangular":
        share = np.where(step < warm, step / max(1, warm), 1 - rest)
        return peak * (1 + share * (SLANT - 1)) / SLANT
    fall = {"linear": 1 - rest, "cosine": 0.5 * (1 + np.cos(np.pi * rest)), "constant": np.ones(steps)}
    return peak * np.where(step < warm, (step + 1) / (warm + 1), fall[config.schedule])


def layer_factors(names: Iterable[str], *, layers: int, decay: float, on: str) -> dict[str, float]:
    """What the learning rate of each weight is multiplied by, layer-wise decay being `decay` a layer downwards.

    on "encoder": Sun et al. 2019 (arXiv 1905.05583, section 5.3.4) as its authors' program has it: layer l of L has
    decay ** (L - 1 - l), and embeddings, pooler and classifier keep their rate. on "all": the common form, where the
    embeddings lie a step below layer 0. What stands above the layers (the last norm of modernbert) keeps its rate.
    layers: L, of those that are computed.
    """
    kept = layers if on == "encoder" else None
    depths = {name: depth_of(name, layers) for name in names}
    return {name: 1.0 if depth == kept else decay**depth for name, depth in depths.items()}


def depth_of(name: str, layers: int) -> int:
    """How many layers lie above a weight: 0 for those of the top layer and for what stands above it, `layers` for
    those of the embeddings."""
    side, _, rest = name.partition(".")
    part = rest.split(".")
    if side == "encoder" and part[0] == "embeddings":
        return layers
    return max(0, layers - 1 - int(part[1])) if side == "encoder" and part[0] == "layers" else 0


def thaw_steps(
    names: Iterable[str], *, layers: int, unfreeze: str | float, steps: int, per_epoch: int
) -> dict[str, int]:
    """Gradual unfreezing: how many steps pass before each weight is trained.

    Howard & Ruder 2018 (arXiv 1801.06146, section 3.3): the head and the top layer first, then one layer more at a
    time, the embeddings last. unfreeze: "epoch" (a layer more in every epoch), or the share of all steps after which
    everything is trained, cut into equal parts. layers: how many are computed.
    """
    every = per_epoch if unfreeze == "epoch" else float(unfreeze) * steps / layers
    return {name: math.ceil(depth_of(name, layers) * every) for name in names}
