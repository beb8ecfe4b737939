"""The result of one task of several: its head in a small file, and the encoder of all tasks kept once beside them.

    OUT/encoder/            config.json, model.safetensors and the tokenizer: a model folder without a head
    OUT/tasks/NAME/         a result with head.safetensors in place of model.safetensors

The header of head.safetensors has the SHA-256 of the encoder's file; both together are what model.safetensors would be.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from bertune.errors import ModelError
from bertune.files import atomic_path, sha256_of, to_json, write_json
from bertune.hub import weight_files
from bertune.model.classifier import ClassifierModel
from bertune.model.weights import SAFETENSORS, read_weights

HEAD = "head.safetensors"
ENCODER = "encoder"  # beside tasks/


def is_shared(folder: Path) -> bool:
    """Whether a folder holds a head alone."""
    return (folder / HEAD).is_file() and not weight_files({path.name for path in folder.iterdir()})


def encoder_of(folder: Path) -> Path:
    """The folder of the encoder that a head in `folder`, OUT/tasks/NAME, belongs to."""
    return folder.resolve().parents[1] / ENCODER


def save_encoder(folder: Path, model: ClassifierModel, config: dict[str, Any]) -> str:
    """Write the encoder of `model` into `folder`, which exists, with `config` as config.json; returns its SHA-256."""
    from bertune.model.load import hub_state

    state, head = hub_state(model), head_names(model)
    with atomic_path(folder / SAFETENSORS) as path:
        save_file({name: value for name, value in state.items() if name not in head}, path, metadata={"format": "pt"})
    write_json(folder / "config.json", config)
    return sha256_of(folder / SAFETENSORS)


def save_head(folder: Path, model: ClassifierModel, *, digest: str) -> None:
    """Write the head of `model` into `folder`; digest: of the encoder's file."""
    from bertune.model.load import hub_state

    state, head = hub_state(model), head_names(model)
    header = {"encoder": {"sha256": digest}}
    with atomic_path(folder / HEAD) as path:
        save_file({name: state[name] for name in head}, path, metadata={"bertune": to_json(header)})


def head_names(model: ClassifierModel) -> set[str]:
    """The names in a hub file of the head's weights."""
    from bertune.model.names import hub_names

    arch, head = model.encoder.config.arch, model.head.config
    return {source for name in model.head.state_dict() for source in hub_names(arch, head, f"head.{name}")}


def read_shared(folder: Path) -> dict[str, Tensor] | None:
    """All weights of the result in `folder`, from both files; None where it has weights of its own.

    Raises ModelError for a damaged head, and where the encoder is not there or is another one.
    """
    if not is_shared(folder):
        return None
    path, encoder = folder / HEAD, encoder_of(folder)
    try:
        with safe_open(path, framework="pt") as opened:
            digest = json.loads((opened.metadata() or {})["bertune"])["encoder"]["sha256"]
            head = {name: opened.get_tensor(name).clone() for name in opened.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
        raise ModelError(f"{path}: not readable as the head of a task, so it is damaged or cut: {error}") from None
    if not (encoder / SAFETENSORS).is_file():
        raise ModelError(
            f"{folder}: holds the head of one task of several; the encoder of all belongs at {encoder}, and is not "
            f"there. Copy the whole folder of the joint training, or make one that stands alone: bertune convert."
        )
    found = sha256_of(encoder / SAFETENSORS)
    if found != digest:
        raise ModelError(
            f"{encoder / SAFETENSORS}: SHA-256 {found}, but {path.name} of {folder} belongs to {digest}: the encoder "
            "was damaged or replaced after training. Copy the folder again, or train again."
        )
    return read_weights(encoder) | head
