"""Every training of a reproduction, once: what it answered is kept, the model is not.

A cell is known by its data and its whole configuration, so that tables share cells, and a changed recipe makes new
ones. Stop at any time; what is done stays done, and a training that was stopped goes on from its checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bertune.config import Config, DataConfig
from bertune.data.splits import share_of_rows
from bertune.errors import ConfigError
from bertune.evaluate.resample import Scores
from bertune.files import atomic_path, write_json
from bertune.reproduce.spec import Cell, Data, Spec
from bertune.training.listen import Listener
from bertune.training.outcome import Outcome
from bertune.training.prepare import Prepared, Split, read_splits
from bertune.training.pretrain import is_pretrained, pretrain
from bertune.training.run import run

LABEL, TEXTS = "label", "text {}"  # columns of the parts that are drawn
LABEL_SEP = "\x1f"  # between labels of a row; no name of a label has it
PART_SEED = 0
# Where and how something is computed, which makes no other cell of it.
MACHINE = {"device", "threads", "token_budget", "kernels", "compile", "checkpoint_minutes", "checkpoint_steps"}


@dataclass(frozen=True)
class Done:
    """A finished cell: answers on test, and what the training was."""

    scores: Scores
    record: dict[str, Any]


def make_cells(
    spec: Spec, wanted: Iterable[Cell], *, out: Path, data: Path, hours: float | None, listener: Listener
) -> bool:
    """Train what is not there yet; False where `hours` were over before the last. Raises what `run` raises."""
    end = None if hours is None else time.monotonic() + 3600 * hours
    todo = {key: cell for cell in wanted for key in [cell_key(spec, cell)] if not _file(out, key).is_file()}
    parts: dict[str, DataConfig] = {}
    for number, (key, cell) in enumerate(todo.items(), 1):
        if end is not None and time.monotonic() > end:
            listener.say(f"{len(todo) - number + 1} trainings are left; run the same command again to go on.")
            return False
        if cell.data not in parts:
            parts[cell.data] = draw_part(cell.data, spec.data[cell.data], out=out, folder=data, listener=listener)
        listener.say(f"{number} of {len(todo)}: table {cell.table}, {cell.data}, {cell.row}, seed {cell.seed}")
        model = cell.config.model.name
        if cell.encoder is not None:
            for name in spec.encoders[cell.encoder[0]].parts:
                if name not in parts:
                    parts[name] = draw_part(name, spec.data[name], out=out, folder=data, listener=listener)
            model = str(make_encoder(spec, *cell.encoder, parts, out=out, folder=data, listener=listener))
        _make(cell, key, parts[cell.data], out, model, listener)
    return True


def make_encoder(
    spec: Spec, name: str, config: Config, parts: dict[str, DataConfig], *, out: Path, folder: Path, listener: Listener
) -> Path:
    """The folder of a pre-trained encoder, which is made where it is not there, or goes on where it was stopped."""
    import polars as pl

    encoder = spec.encoders[name]
    name = next(other for other, known in spec.encoders.items() if known == encoder)  # one for all that are alike
    place = out / "encoders" / f"{name}-{_digest(encoder_record(spec, name, config))[:8]}"
    files = [folder / file for file in encoder.files]
    missing = [str(path) for path in files if not path.exists()]
    if missing:
        raise ConfigError(f"{missing[0]}: no such file. Pass the folder that holds the data sets with --data.")
    for part in encoder.parts:
        path = out / "data" / f"{part}-texts.parquet"
        if not path.is_file():
            frame = pl.read_parquet(parts[part].files[0])
            columns = [*parts[part].text, *parts[part].text_pair]
            with atomic_path(path) as temporary:
                frame.select(pl.concat_str(columns, separator="\n").alias("text")).write_parquet(temporary)
        files.append(path)
    if not is_pretrained(place):
        listener.say(f"Pre-training the encoder {name}.")
    config = config.updated({"data": {"files": [str(path) for path in files]}})
    return pretrain(config, out=place, resume=place.exists(), listener=listener).out


def encoder_record(spec: Spec, name: str, config: Config) -> list[Any]:
    """What a pre-trained encoder depends on."""
    encoder = spec.encoders[name]
    drawn = [spec.data[part].model_dump(mode="json") for part in encoder.parts]
    return [encoder.model_dump(mode="json"), drawn, _sections(config)]


def _make(cell: Cell, key: str, part: DataConfig, out: Path, model: str, listener: Listener) -> None:
    share = {"share", "share_seed"}
    config = cell.config.updated({
        "data": part.model_dump(mode="json", exclude=share), "check": {"enabled": False}, "model": {"name": model},
        "report": {"baselines": False, "page": False},
    })  # fmt: skip
    place = out / "running" / key
    begin = time.monotonic()
    result = run(config, out=place, resume=place.exists(), listener=listener)
    outcome = Outcome.read(place, "test")
    # In the order of the names, which does not depend on the row that is met first.
    labels = tuple(sorted(result.task.labels))
    logits = outcome.frame.select([f"logit:{label}" for label in labels]).to_numpy().astype(np.float32)
    (out / "cells").mkdir(exist_ok=True)
    with atomic_path(_file(out, key).with_suffix(".npz")) as path, path.open("wb") as stream:
        np.savez_compressed(stream, logits=logits, targets=outcome.targets(labels))
    metrics = result.metrics
    record = {
        "table": cell.table, "data": cell.data, "row": cell.row, "seed": cell.seed, "kind": result.task.kind,
        "labels": list(labels), "config": _sections(cell.config),
        "train": {name: metrics["train"].get(name) for name in ("rows", "epochs", "seconds", "examples_per_second")},
        "seconds": time.monotonic() - begin, "valid": _scalars(metrics.get("valid", {})),
        "test": _scalars(metrics["test"]), "versions": metrics["versions"],
    }  # fmt: skip
    write_json(_file(out, key), record)
    shutil.rmtree(place)


def _scalars(metrics: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if isinstance(value, int | float)}


def read_cell(spec: Spec, cell: Cell, out: Path) -> Done | None:
    """What was kept of a cell; None where it was not made yet."""
    path = _file(out, cell_key(spec, cell))
    if not path.is_file():
        return None
    record = json.loads(path.read_text(encoding="utf-8"))
    with np.load(path.with_suffix(".npz")) as stored:
        return Done(Scores(record["kind"], stored["logits"], stored["targets"]), record)


def cell_key(spec: Spec, cell: Cell) -> str:
    """Sixteen hexadecimal digits of the SHA-256 over the data and the configuration, its seed and encoder included."""
    content = [cell.data, spec.data[cell.data].model_dump(mode="json"), _sections(cell.config)]
    if cell.encoder is not None:
        content.append(encoder_record(spec, *cell.encoder))
    return _digest(content)[:16]


def _sections(config: Config) -> dict[str, Any]:
    """What a cell depends on beside its data."""
    data = {"share": config.data.share, "share_seed": config.data.share_seed}
    rest = config.model_dump(mode="json", include={"model", "train", "decide", "pretrain"})
    rest["train"] = {name: value for name, value in rest["train"].items() if name not in MACHINE}
    return rest | {"data": data}


def _digest(content: list[Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode("utf-8")).hexdigest()


def _file(out: Path, key: str) -> Path:
    return out / "cells" / f"{key}.json"


def draw_part(name: str, data: Data, *, out: Path, folder: Path, listener: Listener) -> DataConfig:
    """The rows that all cells of a set of data share, drawn once with a fixed seed, as files with a split each.

    Validation rows come from the training rows, never from the test rows.
    """
    paths = [folder / file for file in data.files]
    given: dict[str, Any] = {"files": [str(path) for path in paths]}
    for split in ("valid", "test"):
        value = getattr(data, split)
        given[split] = str(folder / value) if isinstance(value, str) else value
        paths += [folder / value] if isinstance(value, str) else []
    missing = [str(path) for path in paths if not path.exists()]
    if missing:
        raise ConfigError(f"{missing[0]}: no such file. Pass the folder that holds the data sets with --data.")
    prepared = read_splits(None, Config().updated({"data": {**given, **data.options}}).data, listener.say)
    places = {split: out / "data" / f"{name}-{split}.parquet" for split in prepared.splits}
    (out / "data").mkdir(parents=True, exist_ok=True)
    for split, path in places.items():
        if not path.is_file():
            _write_part(prepared, prepared.splits[split], data.part.get(split), path)
    task = prepared.task
    sides = [TEXTS.format(number) for number in range(len(task.text) + len(task.text_pair))]
    return DataConfig(
        files=[str(places["train"])], valid=str(places["valid"]), test=str(places["test"]),
        text=sides[: len(task.text)], text_pair=sides[len(task.text) :], label=[LABEL], task=task.kind,
        labels=list(task.labels), label_sep=LABEL_SEP if task.kind == "multi" else None,
    )  # fmt: skip


def _write_part(prepared: Prepared, split: Split, rows: int | None, path: Path) -> None:
    import polars as pl

    task, table, targets = prepared.task, split.table, split.targets
    if rows is not None and rows < len(split):
        chosen = share_of_rows(targets, task.kind, share=rows / len(split), seed=PART_SEED)
        table, targets = table.take(chosen), targets[chosen]
    said = task.names(targets if task.kind == "single" else targets > 0.5)
    cells = said if task.kind == "single" else [LABEL_SEP.join(labels) for labels in said]
    columns = {TEXTS.format(place): table.frame[name] for place, name in enumerate((*task.text, *task.text_pair))}
    with atomic_path(path) as temporary:
        pl.DataFrame({**columns, LABEL: cells}).write_parquet(temporary)
