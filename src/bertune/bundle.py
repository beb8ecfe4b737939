"""The directory that a run leaves and everything else opens: its description (bertune.json), reading, and writing.

A bundle's files are first written, whole and flushed, into a temporary folder inside the output folder (the same disk).
One rename marks that folder as complete; then its files move into place one by one, bertune.json last. A crash before
the rename leaves the old bundle, a crash after it is made good by the next reader or writer, who finishes the move.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from bertune.data.tasks import Task
from bertune.errors import ConfigError, ModelError
from bertune.evaluate.rule import Rule
from bertune.files import disk_full, sha256_of, sync, temporary_path, write_json
from bertune.folder import BUNDLE_FILE, CARD, HOW, INCOMING, SCHEMA_VERSION, checked_names, finish_move, what_it_is
from bertune.longtext import LongText


class HeadSpec(BaseModel):
    """The head, as decided: see `model.heads.HeadConfig`."""

    kind: str
    pooling: str
    dropout: float
    hidden: int
    layers: tuple[int, ...] = ()
    combine: str = "mean"
    join: str | None = None


class BaseModelInfo(BaseModel):
    """Where training started; `name` is what the user passed as --model, without the folders before it."""

    name: str
    title: str = ""
    licence: str | None = None
    note: str | None = None
    revision: str | None = None
    sha256: str | None = None  # of its weights, where they are one file

    @field_validator("licence")
    @classmethod
    def _known_licence(cls, value: str | None) -> str | None:
        return None if value in ("", "not stated") else value


class Bundle(BaseModel):
    """What bertune.json says, schema version 1; `folder` is where it was read from and is not stored."""

    model_config = ConfigDict(frozen=True)

    schema_version: int = SCHEMA_VERSION
    bertune_version: str
    task: Task
    activation: Literal["softmax", "sigmoid"]
    max_length: int = Field(ge=1)
    truncation: str
    long_text: LongText = LongText()
    encoder: str  # architecture
    head: HeadSpec
    base_model: BaseModelInfo
    opens_in_transformers: bool
    decision: Rule = Rule()
    members: tuple[Rule, ...] = ()  # of an ensemble: what calibrates each of the models in members/0 and on
    files: dict[str, str] = {}  # name -> SHA-256 of everything that the answers depend on; filled in by `write_bundle`
    folder: Path | None = Field(None, exclude=True)

    @field_validator("files")
    @classmethod
    def _plain_names(cls, files: dict[str, str]) -> dict[str, str]:
        return dict(checked_names(files))

    @model_validator(mode="after")
    def _rule_of_these_labels(self) -> Bundle:
        count, rule = self.task.num_labels, self.decision
        heats = (0, 1) if self.task.kind == "single" else (0, count)
        others = {len(rule.biases), len(rule.thresholds), len(rule.shares), len(rule.curves)}
        cuts = len(rule.sets.cutoffs) if rule.sets is not None else heats[1]
        if len(rule.temperatures) not in heats or not others <= {0, count} or cuts != heats[1]:
            raise ValueError(f"the decision rule is not one for {count} labels")
        for member in self.members:
            if len(member.temperatures) not in heats or not {len(member.biases), len(member.curves)} <= {0, count}:
                raise ValueError(f"the decision rule of a member is not one for {count} labels")
        return self

    @property
    def reading(self) -> dict[str, Any]:
        """How texts become tokens: arguments of `Tokenizer.encode`."""
        return {"max_length": self.max_length, "truncation": self.truncation, "long_text": self.long_text}

    def member(self, number: int) -> str:
        """The folder of a model of an ensemble, within the bundle."""
        return f"members/{number}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as in bertune.json."""
        return {**self.model_dump(mode="json", exclude={"task"}), "task": self.task.to_dict()}

    @classmethod
    def read(cls, folder: str | Path, *, verify: bool = True) -> Bundle:
        """The bundle in `folder`; `verify` compares the hash of every file.

        Raises ModelError for a folder that is no result, a schema from a newer version, and a missing, damaged or
        altered file, which is named.
        """
        folder = Path(folder)
        path = folder / BUNDLE_FILE
        finish_move(folder)
        try:
            content = path.read_text(encoding="utf-8")
        except (FileNotFoundError, NotADirectoryError):
            raise ModelError(f"{folder}: {what_it_is(folder)}") from None
        except (OSError, UnicodeDecodeError) as error:
            raise ModelError(f"{path}: not readable: {error}.") from None
        bundle = cls._parse(content, path).model_copy(update={"folder": folder})
        complaint = _damage(folder, bundle.files) if verify else None
        if complaint is None:
            return bundle
        if (folder / INCOMING).exists() or path.read_text(encoding="utf-8") != content:
            return cls.read(folder, verify=verify)  # it was replaced while we read
        raise ModelError(complaint)

    @classmethod
    def _parse(cls, content: str, path: Path) -> Bundle:
        try:
            values = json.loads(content)
        except ValueError as error:
            raise ModelError(f"{path}: not valid JSON ({error}); the file is damaged. Copy the folder again.") from None
        version = values.get("schema_version") if isinstance(values, dict) else None
        if not isinstance(version, int):
            raise ModelError(f"{path}: no schema_version; the file is not bertune's or is damaged. {HOW}")
        if version > SCHEMA_VERSION:
            raise ModelError(
                f"{path}: schema version {version} was written by bertune {values.get('bertune_version', '(newer)')}; "
                f"this one reads versions up to {SCHEMA_VERSION}. Update: pip install -U bertune."
            )
        try:
            return cls.model_validate({**values, "task": Task.from_dict(values.get("task") or {})})
        except ValidationError as error:
            first = error.errors()[0]
            inner, reason = ".".join(map(str, first["loc"])), first["msg"].removeprefix("Value error, ")
            place = f"{path}: '{inner}'" if inner else f"{path}"  # of fields that do not go together no one is named
            raise ModelError(f"{place}: {reason}; the file is damaged. Copy the folder again.") from None
        except (ConfigError, TypeError) as error:
            raise ModelError(f"{path}: {error} The file is damaged; copy the folder again.") from None


def write_bundle(folder: Path, bundle: Bundle, write_files: Callable[[Path], None]) -> Bundle:
    """Write a complete bundle into `folder` (which exists), in place of one that may be there; returns it with hashes.

    `write_files(staging)` writes config.json, model.safetensors, the tokenizer's files and README.md into the folder it
    is given; each file but README.md is hashed. Files of the old bundle that the new one lacks are removed; run/ is not
    touched. A full disk is a TrainingError; after any error the folder holds what it held before.
    """
    finish_move(folder)
    staging = temporary_path(folder)
    kept = "The folder holds what it held before."
    try:
        with disk_full(f"the result in {folder}", kept=kept):
            staging.mkdir()
            write_files(staging)
            paths = [path for path in sorted(staging.rglob("*")) if path.is_file()]
            for path in paths:
                sync(path)
            names = [path.relative_to(staging).as_posix() for path in paths]
            hashes = {name: sha256_of(staging / name) for name in names if name not in (CARD, BUNDLE_FILE)}
            bundle = Bundle.model_validate({**dict(bundle), "files": hashes, "folder": folder})
            write_json(staging / BUNDLE_FILE, bundle.to_dict())
            sync(staging)
            staging.replace(folder / INCOMING)
            sync(folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    finish_move(folder)
    return bundle


def keep_rule(folder: Path, bundle: Bundle, rule: Rule) -> Bundle:
    """Write the decision rule into the bundle in `folder`, whose other files stay; returns it."""
    bundle = bundle.model_copy(update={"decision": rule})
    write_json(folder / BUNDLE_FILE, bundle.to_dict())
    return bundle


def _damage(folder: Path, files: dict[str, str]) -> str | None:
    """What is wrong with the first file that is not as it was written; None where all are."""
    for name, digest in files.items():
        try:
            found = sha256_of(folder / name)
        except FileNotFoundError:
            return f"{folder}: the file {name} is missing, which {BUNDLE_FILE} names. Copy the whole folder again."
        except OSError as error:
            return f"{folder / name}: not readable: {error}."
        if found != digest:
            return (
                f"{folder / name}: SHA-256 {found}, but {BUNDLE_FILE} says {digest}: the file was damaged or altered "
                "after training. Copy the folder again, or train again."
            )
    return None
