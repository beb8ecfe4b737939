"""Options as nested mappings: read from YAML or from `a.b=c`, and laid over others. What they mean is config.py's."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bertune.errors import ConfigError, nearest

if TYPE_CHECKING:
    from pydantic import ValidationError


def read_yaml(
    path: str | Path, *, what: str = "configuration file", holds: str = "sections data, model, train and cache"
) -> dict[str, Any]:
    """The mapping a YAML file holds; `what` it is and `holds`, for errors."""
    import yaml

    if not str(path).strip():
        raise ConfigError(f"The name of the {what} is empty; expected a file of YAML.")
    try:
        values = _read(Path(path).read_text(encoding="utf-8"), str(path))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such {what}.") from None
    except (OSError, ValueError, yaml.YAMLError) as error:  # ValueError: no UTF-8, or a date such as 2024-02-30
        raise ConfigError(f"{path}: not readable as YAML: {' '.join(str(error).split())}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected {holds}, found {type(values).__name__}.")
    return values


def parse_setting(setting: str) -> dict[str, Any]:
    """`train.lr=1e-4` as a nested mapping; the value is read as YAML, but a lone mark such as | or - is itself."""
    import yaml

    key, equals, text = setting.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--set {setting}: expected section.option=value, for example train.lr=1e-4.")
    try:
        value = text if text in {*"|->#?,:"} else _read(text, f"--set {key.strip()}")
    except (yaml.YAMLError, ValueError):
        value = text
    if isinstance(value, date):  # no option is a date, but a name may look like one
        value = text
    return nested(key.strip(), value)


def _read(text: str, place: str) -> Any:
    """What YAML text holds; YAMLError or ValueError where it is none.

    ConfigError, which begins with `place`, for what YAML takes and nothing here can use: a name twice in one mapping,
    of which the last would count in silence, an alias inside what it stands for, and thousands of brackets.
    """
    import yaml

    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        _check_names(node, place, above=(), seen=set())
        return None if node is None else loader.construct_document(node)
    except RecursionError:
        raise ConfigError(f"{place}: brackets or levels are nested too deeply to be read; take some away.") from None
    finally:
        loader.dispose()


def _check_names(node: Any, place: str, *, above: tuple[int, ...], seen: set[int]) -> None:
    """ConfigError for a name that stands twice in a mapping, and for a node below itself. above, seen: the `id` of the
    nodes above this one, and of those that have been looked at."""
    import yaml

    if id(node) in above:
        line = node.start_mark.line + 1
        raise ConfigError(f"{place} line {line}: what & names here holds itself, as an *; write out what is meant.")
    if id(node) in seen or not isinstance(node, yaml.CollectionNode):
        return
    seen.add(id(node))
    lines: dict[object, int] = {}
    for entry in node.value:
        key, value = entry if isinstance(node, yaml.MappingNode) else (None, entry)
        # Of what `<<` merges, a name that stands here itself overrules the other, as it should.
        if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
            line = key.start_mark.line + 1
            truth = key.tag == "tag:yaml.org,2002:bool"  # yes and true are one name
            name = yaml.SafeLoader.bool_values[key.value.lower()] if truth else key.value
            if name in lines:
                raise ConfigError(
                    f"{place} line {line}: '{key.value}' stands there twice, first in line {lines[name]}; make "
                    "one of the two, or rename one."
                )
            lines[name] = line
        _check_names(value, place, above=(*above, id(node)), seen=seen)


def nested(name: str, value: Any) -> dict[str, Any]:
    """`nested("train.lr", 1e-4)` is `{"train": {"lr": 1e-4}}`."""
    for part in reversed(name.split(".")):
        value = {part: value}
    result: dict[str, Any] = value
    return result


def by_name(settings: Any) -> list[dict[str, Any]]:
    """What a Python caller gives as `settings`, as nested mappings; ConfigError for what has no options by name."""
    if settings is None:
        return []
    if not isinstance(settings, Mapping) or not all(isinstance(name, str) for name in settings):
        raise ConfigError(
            "settings: expected options by their dotted names, for example {'train.lr': 1e-4}; "
            f"found {settings!r:.60}."
        )
    return [nested(name, value) for name, value in settings.items()]


def merge(base: dict[str, Any], values: dict[str, Any], place: str, path: str = "") -> None:
    """Lay nested `values` over `base`; ConfigError for a name that `base` has not."""
    for key, value in values.items():
        name = f"{path}{key}"
        if key not in base:
            choices = list(base)
            hint = nearest(str(key), choices) or f"; choices: {', '.join(choices)}."
            raise ConfigError(f"{place}: '{name}' is not an option{hint}")
        if isinstance(base[key], dict):
            if not isinstance(value, dict):
                raise ConfigError(f"{place}: '{name}' is a section; set one of {', '.join(base[key])}.")
            merge(base[key], value, place, f"{name}.")
        else:
            base[key] = value


def sentence(error: ValidationError, place: str) -> str:
    """The first thing that is wrong, as one sentence."""
    first = error.errors()[0]
    # A union (file or fraction) reports its branches as the last part of the place.
    where = ".".join(str(part) for part in first["loc"] if part not in ("str", "float"))
    if first["type"] == "missing":
        return f"{place}: '{where}' is missing."
    if first["type"] == "extra_forbidden":
        return f"{place}: '{where}' is not an option."
    if where.endswith(".[key]"):
        name = where.removesuffix(".[key]")
        return f"{place}: '{name}' is no name as YAML reads it; put it in quotes."
    if first["type"] in ("model_type", "dict_type"):
        found = "nothing" if first["input"] is None else repr(first["input"])
        return f"{place}: '{where}' holds {found}; write its options below it, NAME: VALUE each."
    message = first["msg"].removeprefix("Value error, ")
    if isinstance(first["input"], dict):
        return f"{place}: '{where}': {message}."
    return f"{place}: '{where}' cannot be {first['input']!r}: {message[0].lower() + message[1:]}."
