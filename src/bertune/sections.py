"""What the sections of a configuration have in common: lists that may be one value, and fields with a flag."""

from __future__ import annotations

import csv
import re
from collections.abc import Collection
from os import PathLike
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator
from pydantic.fields import FieldInfo


def flag(
    name: str, *, group: str, metavar: str | None = None, command: str | None = None, more: str = ""
) -> dict[str, Any]:
    """What `json_schema_extra` says of a field that has an option.

    command: the only one that has it; None: `train` has it, and others that ask for it. more: fields that belong to it
    and have no option of their own, for its help: "train.betas, train.eps".
    """
    return {"flag": name, "group": group, "metavar": metavar, "command": command, "more": more}


def takes_commas(field: FieldInfo) -> bool:
    """Whether one value on the command line holds the whole list, a,b,c; other lists grow by repeating the option."""
    extra = field.json_schema_extra
    return isinstance(extra, dict) and "," in str(extra.get("metavar") or "")


def split_list(text: str) -> list[str]:
    """`a, b,"c, d"` -> a | b | c, d; ValueError where the text is no such list."""
    try:
        return next(csv.reader([text], skipinitialspace=True), [])
    except csv.Error:  # a line break outside quotes
        raise ValueError("a list a,b,c stands on one line") from None


def check_names(names: Collection[str], what: str) -> None:
    """Raise ValueError for a name that cannot be `what` ("a folder's name") on every system, and for two that are one
    on some."""
    for name in names:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
            raise ValueError(f"'{name}' is {what}, too: letters, digits, - and _ only")
        if len(name) > 100:
            raise ValueError(f"'{name[:20]}...' is {what}, too: 100 characters at most")
        alike = [other for other in names if other != name and other.casefold() == name.casefold()]
        if alike:
            raise ValueError(f"'{name}' and '{alike[0]}' are one folder on some systems; rename one")


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", validate_assignment=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _as_list(cls, value: object, info: ValidationInfo) -> object:
        """A list may be written as one value (`text: TITLE`), or as on the command line (`labels: a,b,c`); a path is
        its text."""
        field = cls.model_fields[str(info.field_name)]
        if isinstance(value, PathLike):  # from Python
            value = str(value)
        if get_origin(field.annotation) is not list:
            return value
        if isinstance(value, str):
            return split_list(value) if takes_commas(field) else [value]
        values = [] if value is None else list(value) if isinstance(value, list | tuple) else [value]
        if any(isinstance(item, bool) for item in values):
            raise ValueError("unquoted yes, no, on and off are true and false in YAML; put them in quotes")
        return [str(item) if isinstance(item, int | PathLike) else item for item in values]

    @field_validator("*", mode="before")
    @classmethod
    def _yes_or_no(cls, value: object, info: ValidationInfo) -> object:
        """In YAML an unquoted yes or no is true or false; a choice that has both knows what is meant."""
        choices = get_args(cls.model_fields[str(info.field_name)].annotation)
        if isinstance(value, bool) and "yes" in choices and "no" in choices:
            return "yes" if value else "no"
        return value

    @field_validator("*", mode="before")
    @classmethod
    def _without_nul(cls, value: object) -> object:
        """No path can hold a NUL, and no cell that is read does."""
        if any("\0" in str(item) for item in (value if isinstance(value, list | tuple) else [value])):
            raise ValueError("a NUL character is in it, which no option takes; write it without")
        return value
