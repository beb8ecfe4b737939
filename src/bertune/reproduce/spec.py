"""What a reproduction consists of: data, encoders, and tables of trainings with the figures that were published."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from bertune.config import Config
from bertune.errors import ConfigError, listed, nearest
from bertune.evaluate.metrics import METRICS
from bertune.multitaskconfig import JointOptions, MultiConfig
from bertune.sections import check_names
from bertune.settings import nested, read_yaml, sentence

ENDING = ".yaml"
SHARING = ("sampling", "temperature", "uncertainty")  # options of a joint training that a row may have


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Data(_Part):
    """Files below the data folder, options of the data section, and how many rows of each split are drawn."""

    files: list[str]
    valid: str | float = 0.1
    test: str | float = 0.1
    options: dict[str, Any] = {}
    part: dict[Literal["train", "valid", "test"], Annotated[int, Field(ge=1)]] = {}
    note: str = ""


class Encoder(_Part):
    """An encoder that is pre-trained once for all seeds: on the training rows of `parts`, without their labels, and on
    files below the data folder. settings: by dotted names, such as pretrain.from_scratch; start: the encoder that it
    goes on from, one of those above it."""

    start: str | None = None
    parts: list[str] = []
    files: list[str] = []
    settings: dict[str, Any] = {}


class Row(_Part):
    """One way to train, and what was published for it: a figure, or one for each set of data.

    encoder: one of the encoders, where {data} stands for the set of data; only: the sets of data that have this row;
    against: the row that it is compared with, in place of the reference of the table.
    together: the row is one training of all sets of data of its table, its tasks, and shows what that came to (tasks),
    or each task after it was fine-tuned further without the others (alone). Rows that differ in nothing else share the
    training. joint: options of it, those in SHARING.
    """

    settings: dict[str, Any] = {}
    published: float | dict[str, float] | None = None
    encoder: str | None = None
    only: list[str] = []
    against: str | None = None
    together: Literal["tasks", "alone"] | None = None
    joint: dict[str, Any] = {}

    def encoder_on(self, data: str) -> str | None:
        """The name of its encoder for a set of data."""
        return None if self.encoder is None else self.encoder.replace("{data}", data)

    def figure(self, data: str) -> float | None:
        return self.published.get(data) if isinstance(self.published, dict) else self.published


class Table(_Part):
    """Rows that are compared with one of them on each set of data. unit: error (in percent), or a metric; seeds: at
    most so many of those that are asked for, where more would take longer than they teach."""

    title: str
    data: list[str]
    reference: str
    rows: dict[str, Row]
    unit: str = "error"
    seeds: int | None = Field(None, ge=1)
    settings: dict[str, Any] = {}
    note: str = ""

    def pairs(self) -> list[tuple[str, str]]:
        """(row, data) of every line."""
        rows = self.rows.items()
        return [(name, data) for data in self.data for name, row in rows if data in (row.only or self.data)]

    def other(self, row: str) -> str:
        """The row that one is compared with; the reference itself is compared with none but itself."""
        return self.rows[row].against or self.reference

    @property
    def metric(self) -> str:
        return "accuracy" if self.unit == "error" else self.unit

    def shown(self, value: float) -> float:
        """A value of the metric in the unit of the table."""
        return 100 * (1 - value) if self.unit == "error" else value


class Spec(_Part):
    """A reproduction. settings: of every training, by dotted names; those of a table and of a row are laid over them.
    Tables stand in the order of what they teach."""

    name: str = Field("", exclude=True)
    title: str
    source: str = ""
    note: str = ""
    data: dict[str, Data]
    encoders: dict[str, Encoder] = {}
    settings: dict[str, Any] = {}
    tables: dict[str, Table] = Field(min_length=1)

    @model_validator(mode="after")
    def _known_names(self) -> Spec:
        for names in (self.data, self.encoders):
            check_names(names, "part of a file's name")
        for name, encoder in self.encoders.items():
            absent = [part for part in encoder.parts if part not in self.data]
            if absent:
                raise ValueError(f"encoder {name}: '{absent[0]}' is not one of the data, {listed(self.data)}")
            wrong = _wrong_start(encoder, list(self.encoders)[: list(self.encoders).index(name)])
            if not wrong and not encoder.parts and not encoder.files:
                wrong = "has no texts to learn from; name parts or files"
            if wrong:
                raise ValueError(f"encoder {name}: {wrong}")
        wrong = _wrong_settings(self.settings)
        if wrong:
            raise ValueError(wrong)
        for name, table in self.tables.items():
            wrong = _wrong_settings(table.settings)
            if wrong:
                raise ValueError(f"table {name}: {wrong}")
            unknown = [data for data in table.data if data not in self.data]
            if unknown:
                raise ValueError(f"table {name}: '{unknown[0]}' is not one of the data, {listed(self.data)}")
            if table.reference not in table.rows:
                raise ValueError(f"table {name}: the reference '{table.reference}' is not one of its rows")
            for row, one in table.rows.items():
                wrong = _wrong_names(table, one) or _wrong_settings(one.settings, encoder=one.encoder)
                wrong = wrong or _wrong_against(table, row) or _wrong_together(table, one)
                if wrong:
                    raise ValueError(f"table {name}, {row}: {wrong}")
            for row, data in table.pairs():
                known = table.rows[row].encoder_on(data)
                if known is not None and known not in self.encoders:
                    raise ValueError(f"table {name}, {row}: '{known}' is not one of the encoders")
            if table.metric not in METRICS:
                raise ValueError(f"table {name}: the unit '{table.unit}' is neither error nor a metric")
        return self


def _wrong_start(encoder: Encoder, above: list[str]) -> str:
    """What is wrong with the encoder that one goes on from, as a sentence; empty where all is well."""
    if encoder.start is None:
        return ""
    if encoder.start not in above:
        known = listed(above) or "of which there are none"
        return f"start: '{encoder.start}' is not one of the encoders above it, {known}"
    twice = [key for key in ("model.name", "pretrain.from_scratch") if key in encoder.settings]
    return f"start says what it begins with, and so does {twice[0]}; leave one of them out" if twice else ""


def _wrong_settings(settings: dict[str, Any], *, encoder: str | None = None) -> str:
    """What is wrong with the settings of trainings, as a sentence; empty where all is well."""
    for key in settings:
        if key.startswith("data.") and key != "data.share":
            return f"settings: {key} says what the rows are; write it under the data"
        if key == "train.seed":
            return "settings: train.seed changes with every seed that is asked for; leave it out"
        if key in ("model.name", "model.revision") and encoder is not None:
            return f"settings: {key} names a model, and so does encoder; leave one of them out"
    return ""


def _wrong_names(table: Table, row: Row) -> str:
    """What a row says of data that its table does not have, as a sentence; empty where all is well."""
    for field in ("only", "published"):
        value = getattr(row, field)
        unknown = [] if isinstance(value, float) else [name for name in value or () if name not in table.data]
        if unknown:
            return f"{field}: '{unknown[0]}' is not one of the table's data, {listed(table.data) or 'none'}"
    return ""


def _wrong_against(table: Table, row: str) -> str:
    """What is wrong with the row that one is compared with, as a sentence; empty where all is well."""
    other = table.rows[row].against
    if other is None:
        return ""
    if other not in table.rows:
        return f"against: '{other}' is not one of the table's rows, {listed(table.rows)}"
    if other == row:
        return f"against: '{row}' is the row itself; name another one, or leave it out"
    return ""


def _wrong_together(table: Table, row: Row) -> str:
    """What a row says of a joint training that its table cannot have, as a sentence; empty where all is well."""
    unknown = [option for option in row.joint if option not in SHARING]
    if row.together is None:
        return "joint has no effect without together: tasks or together: alone; add one of them" if row.joint else ""
    if unknown:
        return f"joint: '{unknown[0]}' is not one of its options, {listed(SHARING)}"
    if len(set(table.data)) < 2:
        return f"together takes two sets of data or more, and the table has {listed(table.data) or 'none'}"
    if row.only:
        return f"only: a joint training is of all data of its table, {listed(table.data)}; leave only out"
    if row.encoder_on("") != row.encoder:
        return f"encoder '{row.encoder}': a joint training begins with one for all data; name one without {{data}}"
    return ""


@dataclass(frozen=True)
class Cell:
    """One result of a training of a table. config: without the data; encoder: what its model.name stands for, as the
    stages that it is pre-trained in, each a name and a configuration; joint: where the training is one of several
    tasks, of which this is `data`; its then_alone says whether the cell is the task after its further training."""

    table: str
    data: str
    row: str
    seed: int
    config: Config
    encoder: tuple[tuple[str, Config], ...] = ()
    joint: JointOptions | None = None

    @property
    def tasks(self) -> tuple[str, ...]:
        """The sets of data that its training is of."""
        return (self.data,) if self.joint is None else tuple(self.joint.tasks)

    @property
    def alone(self) -> bool:
        return self.joint is not None and self.joint.then_alone


def known_specs() -> list[str]:
    """Names of those that are installed."""
    here = files("bertune.reproduce")
    return sorted(entry.name.removesuffix(ENDING) for entry in here.iterdir() if entry.name.endswith(ENDING))


def read_spec(name: str) -> Spec:
    """An installed reproduction by its name, or one from a YAML file; ConfigError where it is neither or wrong."""
    if name in known_specs():
        path = str(files("bertune.reproduce") / f"{name}{ENDING}")
    elif name.endswith((ENDING, ".yml")) or Path(name).exists():
        path = name
    else:
        near = nearest(name, known_specs()) or f"; choose {listed(known_specs())}, or pass a YAML file."
        raise ConfigError(f"'{name}' is not a reproduction{near}")
    values = read_yaml(path, what="reproduction", holds="title, data and tables")
    try:
        return Spec.model_validate(values).model_copy(update={"name": Path(path).name.rsplit(".", 1)[0]})
    except ValidationError as error:
        first = error.errors()[0]
        if first["loc"]:
            raise ConfigError(sentence(error, name)) from None
        raise ConfigError(f"{name}: {first['msg'].removeprefix('Value error, ')}.") from None


def cells(
    spec: Spec, tables: list[str], *, seeds: int, own: Callable[[Config], Config] = lambda config: config
) -> Iterator[Cell]:
    """Every training of the tables: all of the first seed, then of the next, so that tables are whole early.

    own: lays what a caller sets over a configuration: over what the study and the table say, and below what a row says,
    since rows are what is compared. ConfigError for a setting that is none.
    """
    base = own(Config())
    for turn in range(seeds):
        seed = base.train.seed + turn
        for name in tables:
            table = spec.tables[name]
            if turn >= (table.seeds or seeds):
                continue
            common = own(_with(Config(), {**spec.settings, **table.settings}, f"{spec.name}, table {name}"))
            for row, data in table.pairs():
                one, place = table.rows[row], f"{spec.name}, table {name}, {row}"
                config = _with(common, one.settings, place).updated({"train": {"seed": seed}})
                if config.data.share < 1:
                    config = config.updated({"data": {"share_seed": seed}})
                encoder = _stages(spec, one.encoder_on(data), base)
                if encoder:
                    known, start = encoder[-1]
                    config = config.updated({"model": {"name": f"{known} of {start.model.name}"}})
                joint = None if one.together is None else _joint(one, table, config, place)
                yield Cell(name, data, row, seed, config, encoder, joint)


def _stages(spec: Spec, name: str | None, base: Config) -> tuple[tuple[str, Config], ...]:
    """What an encoder is pre-trained in, the first stage first; nothing for no encoder."""
    if name is None:
        return ()
    encoder = spec.encoders[name]
    before = _stages(spec, encoder.start, base)
    # What to compute on, and the model to go on with; the rest of `base` is of no use to a pre-training.
    machine = {"device", "precision", "threads", "token_budget", "kernels", "compile"}
    own: Any = {"train": machine | {"checkpoint_minutes", "checkpoint_steps"}, "cache": True}
    if encoder.start is None and "pretrain.from_scratch" not in encoder.settings:
        own["model"] = {"name", "revision"}
    config = Config().updated(base.model_dump(include=own))
    if encoder.start is not None:
        config = config.updated({"model": {"name": encoder.start}})
    return *before, (name, _with(config, encoder.settings, f"{spec.name}, encoder {name}"))


def _joint(row: Row, table: Table, config: Config, place: str) -> JointOptions:
    """The options of a row's joint training; ConfigError for what no joint training can have."""
    options = {**row.joint, "then_alone": row.together == "alone", "tasks": {name: {} for name in table.data}}
    together = MultiConfig(config, JointOptions()).updated(options, place=place)
    try:
        together.check()
    except ConfigError as error:
        raise ConfigError(f"{place}: {error}") from None
    return together.options


def _with(config: Config, settings: dict[str, Any], place: str) -> Config:
    for key, value in settings.items():
        config = config.updated(nested(key, value), place=place)
    return config
