"""What a reproduction consists of: data, encoders, and tables of trainings with the figures that were published."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from bertune.config import Config
from bertune.errors import ConfigError, listed, nearest
from bertune.evaluate.metrics import METRICS
from bertune.settings import nested, read_yaml, sentence

ENDING = ".yaml"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Data(_Part):
    """Files below the data folder, options of the data section, and how many rows of each split are drawn."""

    files: list[str]
    valid: str | float | None = 0.1
    test: str | float | None = 0.1
    options: dict[str, Any] = {}
    part: dict[str, int] = {}
    note: str = ""


class Row(_Part):
    """One way to train, and what was published for it: a figure, or one for each set of data."""

    settings: dict[str, Any] = {}
    published: float | dict[str, float] | None = None

    def figure(self, data: str) -> float | None:
        return self.published.get(data) if isinstance(self.published, dict) else self.published


class Table(_Part):
    """Rows that are compared with one of them on each set of data. unit: error (in percent), or a metric."""

    title: str
    data: list[str]
    reference: str
    rows: dict[str, Row]
    unit: str = "error"
    settings: dict[str, Any] = {}
    note: str = ""

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
    settings: dict[str, Any] = {}
    tables: dict[str, Table]

    @model_validator(mode="after")
    def _known_names(self) -> Spec:
        for name, table in self.tables.items():
            unknown = [data for data in table.data if data not in self.data]
            if unknown:
                raise ValueError(f"table {name}: '{unknown[0]}' is not one of the data, {listed(self.data)}")
            if table.reference not in table.rows:
                raise ValueError(f"table {name}: the reference '{table.reference}' is not one of its rows")
            if table.metric not in METRICS:
                raise ValueError(f"table {name}: the unit '{table.unit}' is neither error nor a metric")
        return self


@dataclass(frozen=True)
class Cell:
    """One training of a table."""

    table: str
    data: str
    row: str
    seed: int
    config: Config  # without the data


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
        raise ConfigError(sentence(error, name)) from None


def cells(spec: Spec, tables: list[str], *, seeds: int, base: Config) -> Iterator[Cell]:
    """Every training of the tables: all of the first seed, then of the next, so that tables are whole early.

    base: what a caller sets for all of them; the settings of a table and a row are laid over it. ConfigError for a
    setting that is none.
    """
    for seed in range(seeds):
        for name in tables:
            table = spec.tables[name]
            for data in table.data:
                for row, one in table.rows.items():
                    config = base
                    for settings in (spec.settings, table.settings, one.settings):
                        for key, value in settings.items():
                            config = config.updated(nested(key, value), place=f"{spec.name}, table {name}, {row}")
                    yield Cell(name, data, row, seed, config.updated({"train": {"seed": seed}}))
