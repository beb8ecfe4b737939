"""Files of weights: safetensors, or PyTorch's own format read without running code that a pickle may hold."""

from __future__ import annotations

import json
import pickle
import re
import struct
import warnings
import zipfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import IO

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from bertune.errors import ModelError, listed
from bertune.hub import weight_files

SAFETENSORS = "model.safetensors"
# What torch.load raises on a file that is cut, altered or no tensor file at all.
_DAMAGED = (RuntimeError, ValueError, TypeError, KeyError, IndexError, AttributeError, AssertionError, EOFError,
            OSError, OverflowError, struct.error, zipfile.BadZipFile)  # fmt: skip


def load_pickled(file: Path | IO[bytes], *, place: str) -> dict[str, Tensor]:
    """Tensors by name of a file that torch.save wrote (zip or legacy format), on the CPU.

    Only tensors are rebuilt: a pickle that asks for anything else is refused before any of its code runs.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about kinds of pickles that are refused below
            state = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch's own words go on to say how the file can be loaded all the same, which is bad advice here.
        asked = re.search(r"GLOBAL (\S+)", str(error))
        why = f"it asks to run '{asked[1]}' on being opened" if asked else "it is damaged, or not written by torch.save"
        raise ModelError(
            f"{place}: refused: {why}, and must hold tensors alone. "
            "Get the file from its publisher, or a safetensors version of it."
        ) from None
    except _DAMAGED as error:
        reason = " ".join(str(error).split())[:160]
        raise ModelError(f"{place}: not readable as a PyTorch tensor file: {reason}") from None
    if not isinstance(state, Mapping):
        raise ModelError(f"{place}: expected tensors by name, found {type(state).__name__}.")
    strange = [str(name) for name, value in state.items() if not isinstance(name, str) or not isinstance(value, Tensor)]
    if strange or not state:
        found = f"not tensors are {listed(strange, 4)}" if strange else "it is empty"
        raise ModelError(f"{place}: expected tensors by name; {found}.")
    # Models trained on several GPUs often carry this in front of every name.
    wrapped = all(name.startswith("module.") for name in state)
    return {name.removeprefix("module.") if wrapped else name: value.detach() for name, value in state.items()}


def read_weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of a model folder by the names in its files: one file or shards, safetensors or pytorch_model.bin."""
    files = weight_files({child.name for child in folder.iterdir() if child.is_file()})
    if not files:
        raise ModelError(f"{folder} has no weights: expected {SAFETENSORS} or pytorch_model.bin beside config.json.")
    if files[0].endswith(".index.json"):
        files = _shards(folder / files[0], files[1:])
    state: dict[str, Tensor] = {}
    for name in files:
        path = folder / name
        if path.suffix == ".bin":
            state.update(load_pickled(path, place=str(path)))
            continue
        try:
            state.update(load_file(path))
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{path}: not readable as safetensors, so it is damaged or cut: {error}") from None
    return state


def write_weights(path: Path, state: Mapping[str, Tensor]) -> list[str]:
    """Write `state` as safetensors; a tensor under several names is stored once, the other names are returned.

    Of several names the one in the embeddings stays, because a model without its task's head needs it.
    """
    kept: dict[tuple[object, ...], str] = {}
    dropped: dict[str, str] = {}
    for name in sorted(state, key=_preference):
        tensor = state[name]
        same = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride(), tensor.numel() > 0 or name)
        if same in kept:
            dropped[name] = kept[same]
        else:
            kept[same] = name
    tensors = {name: tensor for name, tensor in state.items() if name not in dropped}
    users = Counter(tensor.untyped_storage().data_ptr() for tensor in tensors.values())
    for name, tensor in tensors.items():  # safetensors takes no two tensors of one storage, such as slices of another
        alone = users[tensor.untyped_storage().data_ptr()] == 1
        tensors[name] = tensor.contiguous() if alone else tensor.clone(memory_format=torch.contiguous_format)
    save_file(tensors, path, metadata={"format": "pt", **dropped})
    return sorted(dropped)


def _preference(name: str) -> tuple[bool, bool, str]:
    return "embeddings" not in name, "decoder" in name or "lm_head" in name, name


def _shards(index: Path, present: list[str]) -> list[str]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise ModelError(f"{index}: not readable as the index of a model in several files.") from None
    absent = [name for name in names if name not in present]
    if absent:
        raise ModelError(f"{index} names files that are not beside it: {listed(absent, 4)}.")
    return names
