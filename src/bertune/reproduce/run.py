"""Every training of a reproduction, once: what it answered is kept, the model is not.

A cell is known by its data and its whole configuration, so that tables share cells, and a changed recipe makes new
ones. Stop at any time; what is done stays done, and a training that was stopped goes on from its checkpoint.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bertune.config import Config, DataConfig, TrainConfig
from bertune.data.splits import share_of_rows
from bertune.errors import ConfigError, listed
from bertune.evaluate.metrics import METRICS
from bertune.files import atomic_path
from bertune.multitaskconfig import MultiConfig
from bertune.reproduce.keep import MACHINE, cell_key, digest, encoder_record, is_kept, keep_cell, rows_of, training_key
from bertune.reproduce.spec import Cell, Data, Spec
from bertune.settings import read_yaml
from bertune.training.listen import Listener
from bertune.training.multitask import ALONE, TASKS, multitask
from bertune.training.prepare import Prepared, Split, read_splits
from bertune.training.pretrain import is_pretrained, pretrain
from bertune.training.run import run

LABEL, TEXTS = "label", "text {}"  # columns of the parts that are drawn
LABEL_SEP = "\x1f"  # between labels of a row; no name of a label has it
PART_SEED = 0


def make_cells(
    spec: Spec, wanted: Iterable[Cell], *, out: Path, data: Path, hours: float | None, listener: Listener
) -> bool:
    """Train what is not there yet; False where `hours` were over before the last. Raises what `run` raises."""
    end = None if hours is None else time.monotonic() + 3600 * hours
    todo = _trainings(spec, wanted, out)
    _check_files(spec, [cell for made in todo.values() for cell in made.values()], data)
    parts: dict[str, DataConfig] = {}
    for number, (key, made) in enumerate(todo.items(), 1):
        if end is not None and time.monotonic() > end:
            listener.say(f"{len(todo) - number + 1} trainings are left; run the same command again to go on.")
            return False
        cell = next(iter(made.values()))
        for name in _parts(spec, cell):
            if name not in parts:
                parts[name] = draw_part(name, spec.data[name], out=out, folder=data, listener=listener)
        for one in made.values():
            _check_unit(spec, one, parts[one.data])
        on = cell.data if cell.joint is None else f"{listed(cell.tasks)} together"
        listener.say(f"{number} of {len(todo)}: table {cell.table}, {on}, {cell.row}, seed {cell.seed}")
        model = cell.config.model.name
        for place in range(len(cell.encoder)):
            stages = cell.encoder[: place + 1]
            start = model if place else None
            model = str(make_encoder(spec, stages, parts, start=start, out=out, folder=data, listener=listener))
        make = _make if cell.joint is None else _make_together
        make(made, parts, out=out, place=out / "running" / key, model=model, listener=listener)
    return True


def _parts(spec: Spec, cell: Cell) -> tuple[str, ...]:
    """The sets of data that a cell is made of, its encoder included."""
    return *cell.tasks, *(part for name, _ in cell.encoder for part in spec.encoders[name].parts)


def _check_files(spec: Spec, wanted: list[Cell], folder: Path) -> None:
    """Raise ConfigError for a file that is not there, before the first training and not at the last."""
    files: dict[Path, None] = {}
    for cell in wanted:
        for name in _parts(spec, cell):
            files |= dict.fromkeys(_files(spec.data[name], folder))
        for name, _ in cell.encoder:
            files |= dict.fromkeys(folder / file for file in spec.encoders[name].files)
    missing = [str(path) for path in files if not path.exists()]
    if missing:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise ConfigError(f"{missing[0]}: no such file{more}. Pass the folder that holds the data sets with --data.")


def _files(data: Data, folder: Path) -> list[Path]:
    """Those of its rows, then those of splits that have files of their own."""
    own = [value for value in (data.valid, data.test) if isinstance(value, str)]
    return [folder / file for file in (*data.files, *own)]


def _check_unit(spec: Spec, cell: Cell, part: DataConfig) -> None:
    table = spec.tables[cell.table]
    if part.task not in METRICS[table.metric].kinds:
        choices = [name for name, metric in METRICS.items() if part.task in metric.kinds]
        task = "single-label" if part.task == "single" else "multi-label"
        raise ConfigError(
            f"table {cell.table}: '{table.unit}' cannot be measured on {cell.data}, which is {task}. Write another "
            f"unit, one of {listed(choices, 20)}, or leave {cell.data} out."
        )


def _trainings(spec: Spec, wanted: Iterable[Cell], out: Path) -> dict[str, dict[str, Cell]]:
    """The cells of each training that has to be made, by their keys: one, or those of a joint training."""
    found: dict[str, dict[str, Cell]] = {}
    for cell in wanted:
        found.setdefault(training_key(spec, cell), {})[cell_key(spec, cell)] = cell
    return {
        name: made for name, made in found.items() if not all(is_kept(key, cell, out) for key, cell in made.items())
    }


def make_encoder(
    spec: Spec, stages: tuple[tuple[str, Config], ...], parts: dict[str, DataConfig], *, start: str | None,
    out: Path, folder: Path, listener: Listener,
) -> Path:
    """The folder of a pre-trained encoder, which is made where it is not there, or goes on where it was stopped.

    start: the folder of the stage before its last one, where there is one.
    """
    import polars as pl

    name, config = stages[-1]
    encoder = spec.encoders[name]
    name = next(other for other, known in spec.encoders.items() if known == encoder)  # one for all that are alike
    place = out / "encoders" / f"{name}-{digest(encoder_record(spec, stages))[:8]}"
    files = [folder / file for file in encoder.files]
    for part in encoder.parts:
        rows = Path(parts[part].files[0])
        path = rows.with_name(f"{rows.stem}-texts.parquet")
        if not path.is_file():
            frame = pl.read_parquet(rows, glob=False)
            columns = [*parts[part].text, *parts[part].text_pair]
            with atomic_path(path) as temporary:
                frame.select(pl.concat_str(columns, separator="\n").alias("text")).write_parquet(temporary)
        files.append(path)
    if not is_pretrained(place):
        listener.say(f"Pre-training the encoder {name}.")
    config = config.updated({"data": {"files": [str(path) for path in files]}})
    if start is not None:
        config = config.updated({"model": {"name": start}})
    return pretrain(config.updated(_as_begun(place)), out=place, resume=place.exists(), listener=listener).out


def _as_begun(place: Path) -> dict[str, Any]:
    """The settings of the machine that a stopped training in `place` was begun with: a key does not depend on them, and
    they stay as they are until its end."""
    record = place / "run" / "config.yaml"
    if not record.is_file():
        return {}
    begun = read_yaml(record).get("train") or {}
    plain = TrainConfig()
    return {"train": {name: begun.get(name, getattr(plain, name)) for name in MACHINE}}


def _make(
    made: dict[str, Cell], parts: dict[str, DataConfig], *, out: Path, place: Path, model: str, listener: Listener
) -> None:
    """Train a cell alone."""
    [(key, cell)] = made.items()
    config = _plain(cell, model).updated({"data": _section(cell, parts[cell.data])})
    config = config.updated(_as_begun(place))
    begin = time.monotonic()
    result = run(config, out=place, resume=place.exists(), listener=listener)
    # What was trained before a stop counts, too.
    seconds = max(time.monotonic() - begin, result.metrics["train"]["seconds"])
    keep_cell(key, cell, out=out, place=place, metrics=result.metrics, seconds=seconds)
    shutil.rmtree(place)


def _make_together(
    made: dict[str, Cell], parts: dict[str, DataConfig], *, out: Path, place: Path, model: str, listener: Listener
) -> None:
    """Train the tasks of these cells together, and further alone where one of the cells asks for it.

    The time is shared out as the training was: of the joint part each task has as much as it had of the tokens, and a
    cell of a task that was trained further has that of its further training, too.
    """
    cell = next(iter(made.values()))
    assert cell.joint is not None
    further = any(one.alone for one in made.values())
    tasks = {name: {"data": _section(cell, parts[name])} for name in cell.tasks}
    config = MultiConfig(_plain(cell, model), cell.joint).updated({"tasks": tasks, "then_alone": further})
    place = place.with_name(f"{place.name}-{ALONE}") if further else place  # which is gone on with as it was begun
    config = config.updated({}, shared=config.shared.updated(_as_begun(place)))
    begin = time.monotonic()
    metrics = multitask(config, out=place, resume=place.exists(), listener=listener).metrics
    whole = time.monotonic() - begin
    tokens = metrics["train"]["tokens_by_task"]
    joint = {name: metrics["train"]["seconds"] * read / sum(tokens.values()) for name, read in tokens.items()}
    alone = {name: found["train"]["seconds"] for name, found in metrics.get(ALONE, {}).items()}
    # Reading, measuring and writing are shared out, too; what was trained before a stop is not in `whole`.
    scale = max(1.0, whole / (sum(joint.values()) + sum(alone.values())))
    for key, one in made.items():
        if not is_kept(key, one, out):
            name, result = one.data, ALONE if one.alone else TASKS
            seconds = scale * (joint[name] + (alone[name] if one.alone else 0))
            keep_cell(key, one, out=out, place=place / result / name, metrics=metrics[result][name], seconds=seconds)
    shutil.rmtree(place)


def _plain(cell: Cell, model: str) -> Config:
    """The sections of a cell without what a reproduction has no use for; an encoder's folder has no revision."""
    named = {"name": model} | ({"revision": None} if cell.encoder else {})
    return cell.config.updated({
        "check": {"enabled": False}, "model": named, "report": {"baselines": False, "page": False},
    })  # fmt: skip


def _section(cell: Cell, part: DataConfig) -> dict[str, Any]:
    """The section data of a training on a part that was drawn."""
    data = cell.config.data
    return part.model_dump(mode="json") | {"share": data.share, "share_seed": data.share_seed}


def draw_part(name: str, data: Data, *, out: Path, folder: Path, listener: Listener) -> DataConfig:
    """The rows that all cells of a set of data share, drawn once with a fixed seed, as files with a split each.

    Validation rows come from the training rows, never from the test rows.
    """
    given: dict[str, Any] = {"files": [str(folder / file) for file in data.files]}
    for split in ("valid", "test"):
        value = getattr(data, split)
        given[split] = str(folder / value) if isinstance(value, str) else value
    values = {"data": {**given, **data.options}}
    prepared = read_splits(None, Config().updated(values, place=f"data {name}").data, listener.say)
    known = digest([rows_of(data)])[:8]
    places = {split: out / "data" / f"{name}-{known}-{split}.parquet" for split in prepared.splits}
    (out / "data").mkdir(parents=True, exist_ok=True)
    rows: dict[str, int] = {str(split): number for split, number in data.part.items()}
    for split, path in places.items():
        if not path.is_file():
            _write_part(prepared, prepared.splits[split], rows.get(split), path)
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
