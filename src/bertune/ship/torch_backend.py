"""Logits from torch: the saved weights in our own encoder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from bertune.bundle import Bundle
from bertune.config import TrainConfig
from bertune.data.tokens import Encoded
from bertune.evaluate.joint import joint_logits
from bertune.model.infer import infer_logits
from bertune.model.load import load_model
from bertune.model.machine import choose_machine


class TorchBackend:
    """The model of a result folder on a device, in fp32 or bf16."""

    def __init__(self, folder: Path, *, device: str, precision: str, threads: int | None) -> None:
        config = TrainConfig.model_validate({"device": device, "precision": precision, "threads": threads})
        self.machine = choose_machine(config, long_run=False)
        self.machine.use()
        model, _ = load_model(folder)
        self.model = model.to(self.machine.torch_device)
        self.model.encoder.compute_in(self.machine.dtype, kernels=self.machine.kernels)
        self.model.eval()

    def logits(self, encoded: Encoded, *, advance: Callable[[int], None] | None = None) -> np.ndarray:
        """float32 [rows, labels]; `advance` is told from time to time how many rows are done."""
        return infer_logits(self.model, encoded, budget=self.machine.token_budget, advance=advance)


class EnsembleBackend:
    """The models of an ensemble, one after another over the same rows; `model` and `machine` are those of the first."""

    def __init__(
        self, folder: Path, bundle: Bundle, *, device: str, precision: str, threads: int | None
    ) -> None:
        self.kind, self.rules = bundle.task.kind, bundle.members
        self.members = [
            TorchBackend(folder / bundle.member(number), device=device, precision=precision, threads=threads)
            for number in range(len(bundle.members))
        ]
        self.model, self.machine = self.members[0].model, self.members[0].machine

    def logits(self, encoded: Encoded, *, advance: Callable[[int], None] | None = None) -> np.ndarray:
        """float32 [rows, labels]: those of the mean calibrated probability. `advance`: see TorchBackend."""
        found = [
            member.logits(encoded, advance=advance if member is self.members[-1] else None) for member in self.members
        ]
        return joint_logits(self.kind, self.rules, found).astype(np.float32)
