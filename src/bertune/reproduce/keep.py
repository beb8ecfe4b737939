"""What is kept of the trainings of a reproduction: the answers of each cell on test, under a key of what made them.

A key is a digest of the data and of what the configuration sets. The rest of a spec (tables, names of rows, published
figures) and options at their defaults are no part of it, so that a recipe may be written on, and options may be added
to the program, without making anything anew. Where a default has become another one since, the record tells.
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
from bertune.model.machine import check_device, processor_name
from bertune.multitaskconfig import JointOptions
from bertune.reproduce.spec import SHARING, Cell, Data, Spec
from bertune.training.outcome import Outcome

# Where and how something is computed, which makes no other cell of it.
MACHINE = {
    "device", "measure_precision", "threads", "token_budget", "kernels", "compile", "checkpoint_minutes",
    "checkpoint_steps",
}


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
    own = _sections(cell.config, set_only=True)
    content: list[Any]
    if cell.joint is None:
        content = [cell.data, rows_of(spec.data[cell.data]), own]
    else:
        tasks = [[name, rows_of(spec.data[name])] for name in cell.tasks]
        content = [tasks, _sharing(cell.joint), own]
    if cell.encoder:
        content.append(encoder_record(spec, cell.encoder))
    return digest(content)[:16]


def encoder_record(spec: Spec, stages: tuple[tuple[str, Config], ...]) -> list[Any]:
    """What a pre-trained encoder depends on, the stages before its last one included."""
    *before, (name, config) = stages
    encoder = spec.encoders[name]
    drawn = [rows_of(spec.data[part]) for part in encoder.parts]
    record = [encoder.model_dump(mode="json", exclude={"start"}), drawn, _sections(config, set_only=True)]
    return [*record, encoder_record(spec, tuple(before))] if before else record


def rows_of(data: Data) -> dict[str, Any]:
    """What the rows depend on that are drawn of a set of data."""
    return data.model_dump(mode="json", exclude={"note"})


def digest(content: list[Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode("utf-8")).hexdigest()


def is_kept(key: str, cell: Cell, out: Path) -> bool:
    """Whether the cell was made with the values that its options have today, as far as they were options then."""
    if not _file(out, key).is_file():
        return False
    before = json.loads(_file(out, key).read_text(encoding="utf-8"))["config"]
    return all(
        before[section][name] == value
        for section, values in _sections(cell.config).items() for name, value in values.items()
        if name in before.get(section, {})
    )  # fmt: skip


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
        "machine": processor_name(check_device(cell.config.train.device)),
    }  # fmt: skip
    if cell.joint is not None:
        record["joint"] = {"tasks": list(cell.tasks), **_sharing(cell.joint), "then_alone": cell.alone}
    write_json(_file(out, key), record)


def read_cell(spec: Spec, cell: Cell, out: Path) -> Done | None:
    """What was kept of a cell; None where it was not made yet."""
    key = cell_key(spec, cell)
    if not is_kept(key, cell, out):
        return None
    path = _file(out, key)
    record = json.loads(path.read_text(encoding="utf-8"))
    with np.load(path.with_suffix(".npz")) as stored:
        return Done(Scores(record["kind"], stored["logits"], stored["targets"]), record)


def _sharing(joint: JointOptions) -> dict[str, Any]:
    return joint.model_dump(mode="json", include=set(SHARING))


def _sections(config: Config, *, set_only: bool = False) -> dict[str, Any]:
    """What a cell depends on beside its data; set_only: without what is as it comes."""
    include: Any = {**dict.fromkeys(("model", "train", "decide", "pretrain"), True), "data": {"share", "share_seed"}}
    found = config.model_dump(mode="json", include=include, exclude={"train": MACHINE}, exclude_defaults=set_only)
    return {section: found.get(section, {}) for section in include}


def _scalars(metrics: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if isinstance(value, int | float)}


def _file(out: Path, key: str) -> Path:
    return out / "cells" / f"{key}.json"
