"""What is kept of the trainings of a reproduction: the answers of each cell on test, under a key of what made them.

A key is a digest of data and configuration. The rest of a spec (tables, names of rows, published figures) is no part
of it, so that a recipe may be written on without making anything anew.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bertune.config import Config
from bertune.evaluate.resample import Scores
from bertune.files import atomic_path, write_json
from bertune.multitaskconfig import JointOptions
from bertune.reproduce.spec import SHARING, Cell, Spec
from bertune.training.outcome import Outcome

# Where and how something is computed, which makes no other cell of it.
MACHINE = {"device", "threads", "token_budget", "kernels", "compile", "checkpoint_minutes", "checkpoint_steps"}


@dataclass(frozen=True)
class Done:
    """A finished cell: answers on test, and what the training was."""

    scores: Scores
    record: dict[str, Any]


def cell_key(spec: Spec, cell: Cell) -> str:
    """Sixteen hexadecimal digits of the SHA-256 over the data and the configuration, its seed and encoder included; of
    a joint training, over the data of all tasks, how they share it, and which of its results the cell is."""
    if cell.joint is None:
        return training_key(spec, cell)
    return digest([training_key(spec, cell), cell.data, cell.alone])[:16]


def training_key(spec: Spec, cell: Cell) -> str:
    """The same for the training that makes a cell: one for all cells of a joint training."""
    own = _sections(cell.config)
    content: list[Any]
    if cell.joint is None:
        content = [cell.data, spec.data[cell.data].model_dump(mode="json"), own]
    else:
        tasks = [[name, spec.data[name].model_dump(mode="json")] for name in cell.tasks]
        content = [tasks, _sharing(cell.joint), own]
    if cell.encoder is not None:
        content.append(encoder_record(spec, *cell.encoder))
    return digest(content)[:16]


def encoder_record(spec: Spec, name: str, config: Config) -> list[Any]:
    """What a pre-trained encoder depends on."""
    encoder = spec.encoders[name]
    drawn = [spec.data[part].model_dump(mode="json") for part in encoder.parts]
    return [encoder.model_dump(mode="json"), drawn, _sections(config)]


def digest(content: list[Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode("utf-8")).hexdigest()


def is_kept(key: str, out: Path) -> bool:
    return _file(out, key).is_file()


def keep_cell(key: str, cell: Cell, *, out: Path, place: Path, metrics: dict[str, Any], seconds: float) -> None:
    """Keep what the result in `place` answered on test, its metrics, and how long it took."""
    outcome = Outcome.read(place, "test")
    # In the order of the names, which does not depend on the row that is met first.
    labels = tuple(sorted(outcome.task.labels))
    logits = outcome.frame.select([f"logit:{label}" for label in labels]).to_numpy().astype(np.float32)
    (out / "cells").mkdir(exist_ok=True)
    with atomic_path(_file(out, key).with_suffix(".npz")) as path, path.open("wb") as stream:
        np.savez_compressed(stream, logits=logits, targets=outcome.targets(labels))
    record = {
        "table": cell.table, "data": cell.data, "row": cell.row, "seed": cell.seed, "kind": outcome.task.kind,
        "labels": list(labels), "config": _sections(cell.config),
        "train": {name: metrics["train"].get(name) for name in ("rows", "epochs", "seconds", "examples_per_second")},
        "seconds": seconds, "valid": _scalars(metrics.get("valid", {})),
        "test": _scalars(metrics["test"]), "versions": metrics["versions"],
    }  # fmt: skip
    if cell.joint is not None:
        record["joint"] = {"tasks": list(cell.tasks), **_sharing(cell.joint), "then_alone": cell.alone}
    write_json(_file(out, key), record)


def read_cell(spec: Spec, cell: Cell, out: Path) -> Done | None:
    """What was kept of a cell; None where it was not made yet."""
    path = _file(out, cell_key(spec, cell))
    if not path.is_file():
        return None
    record = json.loads(path.read_text(encoding="utf-8"))
    with np.load(path.with_suffix(".npz")) as stored:
        return Done(Scores(record["kind"], stored["logits"], stored["targets"]), record)


def _sharing(joint: JointOptions) -> dict[str, Any]:
    return joint.model_dump(mode="json", include=set(SHARING))


def _sections(config: Config) -> dict[str, Any]:
    """What a cell depends on beside its data."""
    data = {"share": config.data.share, "share_seed": config.data.share_seed}
    rest = config.model_dump(mode="json", include={"model", "train", "decide", "pretrain"})
    rest["train"] = {name: value for name, value in rest["train"].items() if name not in MACHINE}
    return rest | {"data": data}


def _scalars(metrics: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if isinstance(value, int | float)}


def _file(out: Path, key: str) -> Path:
    return out / "cells" / f"{key}.json"
