"""Every training of a reproduction, once: what it answered is kept, the model is not.

A cell is known by its data and its whole configuration, so that tables share cells, and a changed recipe makes new
ones. Stop at any time; what is done stays done, and a training that was stopped goes on from its checkpoint.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from bertune.config import Config, DataConfig, TrainConfig
from bertune.data.splits import share_of_rows
from bertune.errors import ConfigError, listed
from bertune.evaluate.metrics import METRICS
from bertune.files import atomic_path
from bertune.model.machine import usable_cores
from bertune.multitaskconfig import MultiConfig
from bertune.reproduce.beside import Job, Work, run_beside, run_in_order
from bertune.reproduce.keep import MACHINE, cell_key, digest, encoder_record, is_kept, keep_cell, rows_of, training_key
from bertune.reproduce.spec import Cell, Data, Spec
from bertune.settings import read_yaml
from bertune.training.listen import Listener
from bertune.training.loop import Diverged
from bertune.training.multitask import ALONE, TASKS, multitask
from bertune.training.prepare import Prepared, Split, read_splits
from bertune.training.pretrain import is_pretrained, pretrain
from bertune.training.run import run

LABEL, TEXTS = "label", "text {}"  # columns of the parts that are drawn
LABEL_SEP = "\x1f"  # between labels of a row; no name of a label has it
PART_SEED = 0


def make_cells(
    spec: Spec, wanted: Iterable[Cell], *, out: Path, data: Path, hours: float | None, listener: Listener, jobs: int = 1
) -> bool:
    """Train what is not there yet, `jobs` at a time; False where `hours` were over before the last began.

    Raises what `run` raises; Diverged, where some training diverged, once the others have been made.
    """
    end = None if hours is None else time.monotonic() + 3600 * hours
    out, data = out.absolute(), data.absolute()  # so that a stopped training goes on however the folders are named
    if jobs > 1:
        wanted = [_with_threads(cell, max(1, usable_cores() // jobs)) for cell in wanted]
    todo = _trainings(spec, wanted, out)
    _check_files(spec, [cell for made in todo.values() for cell in made.values()], data)
    queue = _Queue(spec, out, data, listener, len(todo))
    for key, made in todo.items():
        queue.add(key, made)

    def late() -> bool:
        return end is not None and time.monotonic() > end

    if jobs > 1:
        ended = run_beside(queue.jobs, at_once=jobs, late=late)
    else:
        ended = run_in_order(queue.jobs, late=late, listener=listener)
    trainings = sum(job.left for job in ended.left)
    if trainings:
        more = "1 training is" if trainings == 1 else f"{trainings} trainings are"
        listener.say(f"{more} left; run the same command again to go on.")
    if ended.lost:
        others = f" {len(ended.lost) - 1} more diverged, too." if len(ended.lost) > 1 else ""
        raise Diverged(f"{ended.lost[0]}{others}")
    return not ended.left


def _with_threads(cell: Cell, threads: int) -> Cell:
    """The cell with its share of the processor's cores, where it does not say how many threads it has."""

    def shared(config: Config) -> Config:
        return config if config.train.threads else config.updated({"train": {"threads": threads}})

    stages = tuple((name, shared(config)) for name, config in cell.encoder)
    return replace(cell, config=shared(cell.config), encoder=stages)


class _Queue:
    """The jobs of a reproduction: trainings, each after the pre-training of the encoder that it begins with."""

    def __init__(self, spec: Spec, out: Path, folder: Path, listener: Listener, trainings: int) -> None:
        self.spec, self.out, self.folder, self.listener = spec, out, folder, listener
        self.trainings = trainings
        self.jobs: list[Job] = []
        self._parts: dict[str, DataConfig] = {}

    def add(self, key: str, made: dict[str, Cell]) -> None:
        """The training with this key, which makes these cells."""
        cell = next(iter(made.values()))
        encoder = self._encoder(cell.encoder)
        number = 1 + sum(job.left for job in self.jobs)
        on = cell.data if cell.joint is None else f"{listed(cell.tasks)} together"
        said = f"table {cell.table}, {on}, {cell.row}, seed {cell.seed}"

        def prepare() -> Work:
            parts = self._draw(_parts(self.spec, cell))
            for one in made.values():
                _check_unit(self.spec, one, parts[one.data])
            self.listener.say(f"{number} of {self.trainings}: {said}")
            model = str(encoder_place(self.spec, cell.encoder, self.out)) if cell.encoder else cell.config.model.name
            make = _make if cell.joint is None else _make_together
            return partial(make, made, parts, out=self.out, place=self.out / "running" / key, model=model)

        self.jobs.append(Job(said, encoder, prepare))

    def _encoder(self, stages: tuple[tuple[str, Config], ...]) -> tuple[str, ...]:
        """The pre-training to wait for, with those before it, where it has to be made first."""
        if not stages or is_pretrained(place := encoder_place(self.spec, stages, self.out)):
            return ()
        name = f"encoder {place.name}"
        if name not in [job.name for job in self.jobs]:
            before = self._encoder(stages[:-1])

            def prepare() -> Work:
                parts = self._draw(self.spec.encoders[stages[-1][0]].parts)
                self.listener.say(f"Pre-training the encoder {place.name.rpartition('-')[0]}.")
                return partial(make_encoder, self.spec, stages, parts, out=self.out, folder=self.folder)

            self.jobs.append(Job(name, before, prepare, left=0))
        return (name,)

    def _draw(self, names: Iterable[str]) -> dict[str, DataConfig]:
        """The parts that all cells share, by their names; each is drawn when it is first asked for."""
        for name in names:
            if name not in self._parts:
                self._parts[name] = draw_part(
                    name, self.spec.data[name], out=self.out, folder=self.folder, listener=self.listener
                )
        return {name: self._parts[name] for name in names}


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
    """The cells of each training that has to be made, by their keys: one, or those of a joint training. What is left of
    trainings whose cells are all kept is removed."""
    found: dict[str, dict[str, Cell]] = {}
    for cell in wanted:
        found.setdefault(training_key(spec, cell), {})[cell_key(spec, cell)] = cell
    done = {name for name, made in found.items() if all(is_kept(key, cell, out) for key, cell in made.items())}
    for name in done:  # where a stop came between keeping its cells and tidying up
        for place in (out / "running" / name, out / "running" / f"{name}-{ALONE}"):
            shutil.rmtree(place, ignore_errors=True)
    return {name: made for name, made in found.items() if name not in done}


def encoder_place(spec: Spec, stages: tuple[tuple[str, Config], ...], out: Path) -> Path:
    """The folder of a pre-trained encoder, whether or not it is there: one for all that are made alike."""
    encoder = spec.encoders[stages[-1][0]]
    name = next(other for other, known in spec.encoders.items() if known == encoder)
    return out / "encoders" / f"{name}-{digest(encoder_record(spec, stages))[:8]}"


def make_encoder(
    spec: Spec, stages: tuple[tuple[str, Config], ...], parts: dict[str, DataConfig], *, out: Path, folder: Path,
    listener: Listener,
) -> None:
    """Pre-train an encoder, or go on where that was stopped; the stage before its last one is there."""
    import polars as pl

    name, config = stages[-1]
    encoder = spec.encoders[name]
    place = encoder_place(spec, stages, out)
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
    config = config.updated({"data": {"files": [str(path) for path in files]}})
    if len(stages) > 1:
        config = config.updated({"model": {"name": str(encoder_place(spec, stages[:-1], out))}})
    pretrain(config.updated(_as_begun(place)), out=place, resume=place.exists(), listener=listener)


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
