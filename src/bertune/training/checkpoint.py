"""Checkpoints: everything needed to go on bit for bit, written atomically and verified on reading.

    checkpoints/step-00000120/state.json  weights.safetensors  optimizer.safetensors  running.safetensors
    checkpoints/best-00000100.safetensors

A folder gets its name only when all in it is on the disk; state.json holds the hash of every other file and its own.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from bertune.files import TEMPORARY, atomic_path, disk_full, sha256_of, sync, temporary_path, to_json, write_json

KEEP = 2  # the newest may be torn by a dying disk; the one before it is then used


@dataclass
class Checkpoint:
    """One point of a run. state: JSON values; tensors: groups of named tensors, a file each."""

    step: int
    state: dict[str, Any]
    tensors: dict[str, dict[str, Tensor]]


def save(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write a checkpoint and drop those that are no longer needed; returns its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    _clean(folder)
    final = folder / f"step-{checkpoint.step:08d}"
    temporary = temporary_path(folder)
    with disk_full("a checkpoint", kept=_what_is_kept(folder)):
        try:
            temporary.mkdir()
            hashes = {}
            for group, tensors in checkpoint.tensors.items():
                path = temporary / f"{group}.safetensors"
                save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
                sync(path)
                hashes[path.name] = sha256_of(path)
            state = {"step": checkpoint.step, "files": hashes, **checkpoint.state}
            write_json(temporary / "state.json", {"sha256": _digest(state), **state})
            if final.exists():
                final.replace(temporary_path(folder))
            temporary.replace(final)
            sync(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    _prune(folder)
    return final


def load_newest(folder: Path, say: Callable[[str], None], *, before: int | None = None) -> Checkpoint | None:
    """The newest whole checkpoint (of a step before `before`), or None; a damaged one is skipped with a word."""
    for path in sorted(folder.glob("step-*"), reverse=True):
        if before is not None and path.name >= f"step-{before:08d}":
            continue
        try:
            return _load(path)
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            say(f"Skipped the damaged checkpoint {path.name}: {' '.join(str(error).split())}")
    return None


def _load(path: Path) -> Checkpoint:
    state = json.loads((path / "state.json").read_text(encoding="utf-8"))
    if not isinstance(state, dict) or state.pop("sha256", None) != _digest(state):
        raise ValueError("state.json is not what was written")
    tensors = {}
    for name, digest in state.pop("files").items():
        if sha256_of(path / name) != digest:
            raise ValueError(f"{name} is not what was written")
        tensors[name.removesuffix(".safetensors")] = load_file(path / name)
    best = state.get("best") or {}  # it has no file where the last weights count
    if "file" in best and sha256_of(path.parent / best["file"]) != best["sha256"]:
        raise ValueError(f"{best['file']} is not what was written")
    return Checkpoint(int(state.pop("step")), state, tensors)


def _digest(state: dict[str, Any]) -> str:
    """SHA-256 of JSON values, the same before they are written and after they are read."""
    return hashlib.sha256(to_json(state).encode("utf-8", errors="backslashreplace")).hexdigest()


def save_best(folder: Path, step: int, weights: dict[str, Tensor]) -> dict[str, str]:
    """Write the weights of the best evaluation so far; returns the entry that checkpoints keep about it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"best-{step:08d}.safetensors"
    with disk_full("the best weights", kept=_what_is_kept(folder)), atomic_path(path) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in weights.items()}, temporary)
    return {"file": path.name, "sha256": sha256_of(path)}


def load_best(folder: Path, entry: dict[str, str]) -> dict[str, Tensor]:
    """Weights that `save_best` wrote."""
    # Copies: what load_file gives stays mapped to the file, which goes when a better one comes.
    return {name: value.clone() for name, value in load_file(folder / entry["file"]).items()}


def remove(folder: Path) -> None:
    """Delete all checkpoints of a complete run."""
    shutil.rmtree(folder, ignore_errors=True)


def _what_is_kept(folder: Path) -> str:
    """For the message about a full disk."""
    if any(folder.glob("step-*")):
        return f"Earlier checkpoints in {folder} are intact."
    return "No checkpoint was written before, so training will begin anew."


def _prune(folder: Path) -> None:
    paths = sorted(folder.glob("step-*"))
    for path in paths[:-KEEP]:
        shutil.rmtree(path, ignore_errors=True)
    needed = set()
    for path in paths[-KEEP:]:
        try:
            needed.add((json.loads((path / "state.json").read_text(encoding="utf-8")).get("best") or {}).get("file"))
        except (OSError, ValueError):
            continue
    newest = max((p.name for p in folder.glob("best-*")), default=None)
    for path in folder.glob("best-*"):
        if path.name not in needed and path.name != newest:
            path.unlink(missing_ok=True)


def _clean(folder: Path) -> None:
    for path in folder.glob(f"{TEMPORARY}*"):
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
