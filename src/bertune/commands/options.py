"""Options: what every command takes, and those made from the fields of config.py, where alone they are declared.

A command is a dataclass: its fields are its arguments and options, and `run` does the work. Typer reads the fields, and
`with_flags` adds one for each configuration field that the command takes. Their values travel as text; the
configuration checks them, so the command line, YAML and Python accept the same things and complain in the same words.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, ClassVar, Literal, TypeVar, get_args, get_origin, get_type_hints

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from bertune.config import Config, ReadConfig
from bertune.errors import ConfigError, listed
from bertune.sections import takes_commas
from bertune.settings import parse_setting, read_yaml

SECTIONS: dict[str, type[BaseModel]] = {name: type(value) for name, value in Config()}
READING = tuple(f"data.{name}" for name in ReadConfig.model_fields)

Values = dict[str, Any]
Say = Callable[[str], None]
T = TypeVar("T")


@dataclass(frozen=True)
class Flag:
    """An option such as `--lr`, which sets `train.lr` of the configuration."""

    name: str
    section: str
    field: str
    info: FieldInfo
    told: str | None = None  # its help, where that is not what the field says of itself
    more: bool = False  # whether its help names the fields that belong to it and have no option

    @property
    def key(self) -> str:
        return f"{self.section}.{self.field}"

    @property
    def attribute(self) -> str:
        """The field of a command's dataclass that holds its value: None or [] where it was not given."""
        return f"{self.section}_{self.field}"

    @property
    def declared(self) -> Values:
        extra = self.info.json_schema_extra
        assert isinstance(extra, dict)
        return extra

    @property
    def is_list(self) -> bool:
        return get_origin(self.info.annotation) is list

    @property
    def takes_commas(self) -> bool:
        """Whether one value holds the whole list, a,b,c; other lists grow by repeating the option."""
        return self.is_list and takes_commas(self.info)

    @property
    def metavar(self) -> str:
        kinds = [kind for kind in get_args(self.info.annotation) or (self.info.annotation,) if kind is not NoneType]
        if get_origin(self.info.annotation) is Literal:
            return "|".join(kinds)
        return str(self.declared["metavar"] or {int: "N", float: "NUMBER"}.get(kinds[0], "TEXT"))

    def help(self, default: Any) -> str:
        if self.told is not None:
            return self.told
        text = str(self.info.description)
        if default is not None and default != []:
            text += f" Default: {default}."
        more = self.declared["more"]
        return f"{text} With --set also {more}." if more and self.more else text


def flags_of(keys: Iterable[str] | None = None, told: Mapping[str, str] | None = None) -> tuple[Flag, ...]:
    """The flags of the fields `keys` (`train.lr`), or of all fields that `train` has one for, in config.py's order.

    told: help for some of them, where they are for something else than in `train`.
    """
    found, told = [], told or {}
    for section, model in SECTIONS.items():
        for field, info in model.model_fields.items():
            extra = info.json_schema_extra
            if not isinstance(extra, dict) or "flag" not in extra:
                continue
            if extra["command"] is None if keys is None else f"{section}.{field}" in keys:
                found.append(Flag(
                    str(extra["flag"]), section, field, info, told.get(f"{section}.{field}"), more=keys is None
                ))  # fmt: skip
    return tuple(found)


def switch(name: str, text: str, *, panel: str | None = None) -> Any:
    """An option without a value."""
    return typer.Option(name, help=text, metavar="", rich_help_panel=panel)


@dataclass(kw_only=True)
class Command:
    """What every command takes. `run` does the work; what goes wrong is raised as an error of errors.py."""

    details: ClassVar[str] = ""  # help beyond the sentence in cli.py
    examples: ClassVar[tuple[str, ...]] = ()
    flags: ClassVar[tuple[Flag, ...]] = ()

    as_json: Annotated[bool, switch("--json", "JSON on stdout, everything else on stderr.", panel="Output")] = False
    quiet: Annotated[bool, switch("--quiet", "Say nothing but results, warnings and errors.", panel="Output")] = False

    def run(self) -> None:
        """Do it."""


@dataclass(kw_only=True)
class Configured(Command):
    """A command that a configuration file and single settings say more about."""

    config: Annotated[str | None, typer.Option(metavar="FILE.yaml", help="Configuration file.")] = None
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="A.B=C", help="Any option of the file, over it; may be repeated."),
    ] = None


@dataclass(kw_only=True)
class Resumable(Configured):
    """A command that leaves a trained model in a folder, and can be stopped."""

    out: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="Where the result goes; by default runs/ and a name from recipe or file.")
    ] = None
    resume: Annotated[
        bool, switch("--resume", "Go on from the newest checkpoint in --out; the files may then be left out.")
    ] = False
    overwrite: Annotated[bool, switch("--overwrite", "Replace the earlier result in --out.")] = False

    def folder(self, recipe: str | None, files: list[str] | None, *, example: str) -> str:
        """--out, or else a name from recipe or file; ConfigError where there is none."""
        out = self.out or default_out(recipe, files)
        if out is None:
            raise ConfigError(f"--out is missing: name the folder of the run, for example --out {example}.")
        return out


def default_out(recipe: str | None, files: list[str] | None) -> str | None:
    """`runs/NAME` after the recipe, or else the first file; None where neither is given."""
    source = recipe or (files[0] if files else None)
    name = re.sub(r"[^\w-]+", "-", Path(source).name.split(".")[0]).strip("-") if source else ""
    return f"runs/{name}" if name else None


def with_flags(*flags: Flag, base: Config | None = None) -> Callable[[type[T]], type[T]]:
    """Make a class a dataclass that typer can read, with a field for each flag; `base` has the defaults to tell."""
    defaults = base or Config()

    def extend(cls: type[T]) -> type[T]:
        for flag in flags:
            kind = list[str] if flag.is_list and not flag.takes_commas else str
            option = typer.Option(
                flag.name, metavar=flag.metavar, rich_help_panel=flag.declared["group"], show_default=False,
                help=flag.help(getattr(getattr(defaults, flag.section), flag.field)),
            )  # fmt: skip
            cls.__annotations__[flag.attribute] = Annotated[kind | None, option]
            setattr(cls, flag.attribute, None)
        cls.flags = flags  # type: ignore[attr-defined]
        made = dataclass(kw_only=True)(cls)
        # Names in annotations mean what they do where the class stands, which need not be where a base class does.
        made.__init__.__annotations__ = get_type_hints(made, include_extras=True)
        return made

    return extend


def configured(command: Configured, base: Config, *, keys: Iterable[str] | None = None, say: Say) -> Config:
    """`base`, and over it the configuration file, then each --set, then the flags.

    keys: what matters to this command (None: everything). Of a file the rest is passed over, with a word, since one
    file may serve several commands; a --set that could not matter is a ConfigError.
    """
    wanted = None if keys is None else set(keys)
    config = base
    if command.config == "":
        raise ConfigError("--config: is empty; expected FILE.yaml, or leave the option out.")
    if command.config is not None:
        values = read_yaml(command.config)
        config.updated(values, place=command.config)  # the whole file has to be right
        if wanted is not None:
            values, others = _divided(values, wanted)
            if others:
                say(f"{command.config}: {listed(others, 4)}: no effect here.")
        config = config.updated(values, place=command.config)
    for setting in command.settings or ():
        values, place = parse_setting(setting), f"--set {setting}"
        config = config.updated(values, place=place)
        if wanted is not None and _divided(values, wanted)[1]:
            raise ConfigError(f"{place}: has no effect here; what has is {listed(sorted(wanted), 30)}.")
    for flag in command.flags:
        given = getattr(command, flag.attribute)
        if given:
            values = {flag.section: {flag.field: given}}
            config = config.updated(values, place=flag.name)
        elif given == "":
            raise ConfigError(f"{flag.name}: is empty; expected {flag.metavar}, or leave the option out.")
    return config


def _divided(values: Mapping[str, Any], wanted: set[str]) -> tuple[dict[str, Values], list[str]]:
    """The part of a nested mapping whose keys are wanted, and the keys of the rest."""
    kept: dict[str, Values] = {}
    others: list[str] = []
    for section, fields in values.items():
        for field, value in fields.items():
            if f"{section}.{field}" in wanted:
                kept.setdefault(section, {})[field] = value
            else:
                others.append(f"{section}.{field}")
    return kept, others
