"""The directory that a run leaves and everything else opens: its description (bertune.json), reading, and writing.

A bundle's files are first written, whole and flushed, into a temporary folder inside the output folder (the same disk).
One rename marks that folder as complete; then its files move into place one by one, bertune.json last. A crash before
the rename leaves the old bundle, a crash after it is made good by the next reader or writer, who finishes the move.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from bertune.data.tasks import Task
from bertune.errors import ConfigError, ModelError, listed
from bertune.evaluate.rule import Rule
from bertune.files import TEMPORARY, disk_full, sha256_of, sync, temporary_path, write_json
from bertune.longtext import LongText

BUNDLE_FILE = "bertune.json"
RUN_FOLDER = "run"
SCHEMA_VERSION = 1

PRETRAINED = "pretrained.json"  # in run/ of a pre-training: the files that it leaves beside run/
MULTITASK = "multitask.json"  # in run/ of a joint training: the names of its tasks
_JOINT = ("encoder", "tasks", "alone")  # its folders beside run/
_CARD = "README.md"  # may be edited by its owner, so it has no hash
_INCOMING = ".bertune-incoming"  # a complete bundle on its way in
_OLD = ".bertune-old"  # an old result on its way out
_MARKER = ".bertune-run"  # in run/ from its first moment: this folder was made by a run
_JUNK = {".DS_Store", "Thumbs.db", "desktop.ini"}  # file managers leave these anywhere
_HOW = "Make a result folder with: bertune train DATA --out FOLDER."


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
        for name, digest in files.items():
            parts = PurePosixPath(name).parts
            if not parts or name.startswith("/") or ".." in parts or re.search(r'[\\:*?"<>|\x00]', name):
                raise ValueError(f"'{name}' is not the name of a file in the folder")
            if not re.fullmatch(r"[0-9a-f]{64}", digest):
                raise ValueError(f"the hash of '{name}' is not a SHA-256")
        return files

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
        _finish_move(folder)
        try:
            content = path.read_text(encoding="utf-8")
        except (FileNotFoundError, NotADirectoryError):
            raise ModelError(f"{folder}: {_what_it_is(folder)}") from None
        except (OSError, UnicodeDecodeError) as error:
            raise ModelError(f"{path}: not readable: {error}.") from None
        bundle = cls._parse(content, path).model_copy(update={"folder": folder})
        complaint = _damage(folder, bundle.files) if verify else None
        if complaint is None:
            return bundle
        if (folder / _INCOMING).exists() or path.read_text(encoding="utf-8") != content:
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
            raise ModelError(f"{path}: no schema_version; the file is not bertune's or is damaged. {_HOW}")
        if version > SCHEMA_VERSION:
            raise ModelError(
                f"{path}: schema version {version} was written by bertune {values.get('bertune_version', '(newer)')}; "
                f"this one reads versions up to {SCHEMA_VERSION}. Update: pip install -U bertune."
            )
        try:
            return cls.model_validate({**values, "task": Task.from_dict(values.get("task") or {})})
        except ValidationError as error:
            first = error.errors()[0]
            place, reason = ".".join(map(str, first["loc"])), first["msg"].removeprefix("Value error, ")
            raise ModelError(f"{path}: '{place}': {reason}; the file is damaged. Copy the folder again.") from None
        except (ConfigError, TypeError) as error:
            raise ModelError(f"{path}: {error} The file is damaged; copy the folder again.") from None


def write_bundle(folder: Path, bundle: Bundle, write_files: Callable[[Path], None]) -> Bundle:
    """Write a complete bundle into `folder` (which exists), in place of one that may be there; returns it with hashes.

    `write_files(staging)` writes config.json, model.safetensors, the tokenizer's files and README.md into the folder it
    is given; each file but README.md is hashed. Files of the old bundle that the new one lacks are removed; run/ is not
    touched. A full disk is a TrainingError; after any error the folder holds what it held before.
    """
    _finish_move(folder)
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
            hashes = {name: sha256_of(staging / name) for name in names if name not in (_CARD, BUNDLE_FILE)}
            bundle = Bundle.model_validate({**dict(bundle), "files": hashes, "folder": folder})
            write_json(staging / BUNDLE_FILE, bundle.to_dict())
            sync(staging)
            staging.replace(folder / _INCOMING)
            sync(folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    _finish_move(folder)
    return bundle


def keep_rule(folder: Path, bundle: Bundle, rule: Rule) -> Bundle:
    """Write the decision rule into the bundle in `folder`, whose other files stay; returns it."""
    bundle = bundle.model_copy(update={"decision": rule})
    write_json(folder / BUNDLE_FILE, bundle.to_dict())
    return bundle


def check_output(out: Path, *, resume: bool = False, overwrite: bool = False) -> None:
    """Raise the ConfigError that `prepare_output` would raise, and change nothing: for before the long work."""
    if resume and overwrite:
        raise ConfigError("--resume goes on with a run and --overwrite throws it away; pass one of them.")
    existing = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise ConfigError(f"--out {out}: {existing} is a file; the output is a folder. Choose another name.")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ConfigError(f"--out {out}: {existing} cannot be written to. Choose another folder.")
    if not out.exists() or _is_blank(out):
        return
    if not resume and not overwrite:
        what = "holds an earlier run" if _is_output(out) else "is not empty"
        raise ConfigError(
            f"--out {out}: the folder {what}. Choose another one, or pass --resume to go on with an earlier run or "
            "--overwrite to replace it."
        )
    if not _is_output(out):
        found = listed(sorted(path.name for path in out.iterdir()), 5)
        raise ConfigError(
            f"--out {out}: the folder holds {found}, and nothing that bertune made; such a folder is never "
            f"{'written into' if resume else 'replaced'}. Choose another one."
        )
    foreign = _foreign(out)
    if overwrite and foreign:
        raise ConfigError(
            f"--overwrite: {out} also holds {listed(foreign, 5)}, which bertune did not write and will not delete. "
            "Move that away, or choose another --out."
        )


def prepare_output(out: Path, *, resume: bool = False, overwrite: bool = False) -> None:
    """Make `out` ready for a run: `check_output`, then an existing folder with run/ in it.

    Call it when everything that can be wrong with the input has been checked: with `overwrite` the old result leaves
    here. It is moved aside (after an error it is moved back) and then deleted; only what bertune wrote is touched. With
    `resume` everything stays, except unfinished files of a killed writer.
    """
    check_output(out, resume=resume, overwrite=overwrite)
    try:
        out.mkdir(parents=True, exist_ok=True)
        if overwrite or (out / _OLD).exists():
            _remove_old(out)
        _finish_move(out)
        for folder in (out, out / RUN_FOLDER):
            for leftover in folder.glob(f"{TEMPORARY}*"):
                _remove(leftover)
        (out / RUN_FOLDER).mkdir(exist_ok=True)
        (out / RUN_FOLDER / _MARKER).write_bytes(b"")
    except OSError as error:
        raise ConfigError(f"--out {out}: cannot be written to: {error}. Choose another folder.") from None


def _finish_move(folder: Path) -> None:
    """Move a complete incoming bundle into its place. Several processes may do so at once; a crash loses nothing."""
    incoming = folder / _INCOMING
    if not incoming.is_dir():
        return
    try:
        new, old = _hashed_names(incoming), _hashed_names(folder)
        names = sorted(path.relative_to(incoming) for path in incoming.rglob("*") if path.is_file())
        for name in names:
            if name.name != BUNDLE_FILE:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                with suppress(FileNotFoundError):
                    (incoming / name).replace(folder / name)
        for stale in old - new if new else ():
            (folder / stale).unlink(missing_ok=True)
            for inner in [parent for parent in PurePosixPath(stale).parents if parent.parts]:
                with suppress(OSError):  # not empty yet
                    (folder / inner).rmdir()
        sync(folder)
        with suppress(FileNotFoundError):
            (incoming / BUNDLE_FILE).replace(folder / BUNDLE_FILE)
        sync(folder)
    except OSError as error:
        raise ModelError(
            f"{folder}: a new result is on its way in from {_INCOMING}, and moving it failed: {error}. "
            "Make the folder writable, close programs that use its files, and run again."
        ) from None
    shutil.rmtree(incoming, ignore_errors=True)


def _own_names(folder: Path) -> set[str]:
    """The files that bertune wrote into `folder`, beside those that every result has."""
    try:
        kept = json.loads((folder / RUN_FOLDER / PRETRAINED).read_text(encoding="utf-8"))["files"]
        pretrained = {str(name) for name in kept}
    except (OSError, ValueError, KeyError, TypeError):
        pretrained = set()
    return _hashed_names(folder) | pretrained


def _hashed_names(folder: Path) -> set[str]:
    """The files that the bertune.json in `folder` names; empty where there is none that can be read."""
    try:
        return set(Bundle._parse((folder / BUNDLE_FILE).read_text(encoding="utf-8"), folder / BUNDLE_FILE).files)
    except (OSError, UnicodeDecodeError, ModelError):
        return set()


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


def _what_it_is(folder: Path) -> str:
    if not folder.exists():
        return f"no such folder. {_HOW}"
    if folder.is_file():
        return f"a file, not the result folder of a run. {_HOW}"
    for several in ("folds", "curve"):
        inner = sorted(path.parent for path in (folder / RUN_FOLDER / several).glob(f"*/{BUNDLE_FILE}"))
        if inner:
            return f"several trainings, and no model of its own. Each is a result, for example {inner[0]}."
    if (folder / RUN_FOLDER / MULTITASK).is_file() and (folder / RUN_FOLDER / "metrics.json").is_file():
        tasks = sorted(path.parent for path in (folder / "tasks").glob(f"*/{BUNDLE_FILE}"))
        return f"several tasks over one encoder. Each is a result, for example {tasks[0]}."
    if (folder / RUN_FOLDER / "lr-range.json").is_file():
        return f"a test of learning rates, and no model. {_HOW}"
    if (folder / RUN_FOLDER / PRETRAINED).is_file() and (folder / RUN_FOLDER / "metrics.json").is_file():
        return f"a pre-trained encoder without a classifier. Train one: bertune train DATA --model {folder} --out DIR."
    if _is_output(folder):
        return "a run that has not finished: it has no bertune.json yet. Go on with: bertune train ... --resume."
    if (folder / "config.json").is_file():
        return f"a plain model folder, not the result of a run (no {BUNDLE_FILE}). Train from it with --model {folder}."
    return f"not the result folder of a run (no {BUNDLE_FILE}). {_HOW}"


def _is_blank(folder: Path) -> bool:
    """Nothing in it, or no more than the first moment of a run leaves."""
    names = {path.name for path in folder.iterdir()} - _JUNK
    if names == {RUN_FOLDER} and (folder / RUN_FOLDER).is_dir():
        return all(path.name == _MARKER for path in (folder / RUN_FOLDER).iterdir())
    return not names


def _is_output(folder: Path) -> bool:
    run = folder / RUN_FOLDER
    return (folder / BUNDLE_FILE).is_file() or (run / _MARKER).is_file() or (folder / _OLD).is_dir()


def _foreign(folder: Path) -> list[str]:
    """Entries that bertune did not write; of a folder within, such as members/, all files have to be the bundle's."""
    hashed = _own_names(folder) | _own_names(folder / _OLD)
    own = {BUNDLE_FILE, RUN_FOLDER, _CARD, _INCOMING, _OLD} | _JUNK | hashed
    own |= {name for name in _JOINT if _is_of_joint(folder, name) or _is_of_joint(folder / _OLD, name)}
    for inner in {name.split("/")[0] for name in hashed if "/" in name}:
        files = (path for path in (folder / inner).rglob("*") if path.is_file() and path.name not in _JUNK)
        if all(path.relative_to(folder).as_posix() in hashed for path in files):
            own.add(inner)
    return sorted({path.name for path in folder.iterdir() if not path.name.startswith(TEMPORARY)} - own)


def joint_tasks(folder: str | Path) -> tuple[str, ...]:
    """The names of the tasks of the finished joint training in `folder`, () where it holds none.

    Raises ModelError where it has not finished.
    """
    run = Path(folder) / RUN_FOLDER
    try:
        names = json.loads((run / MULTITASK).read_text(encoding="utf-8"))["tasks"]
    except (FileNotFoundError, NotADirectoryError):
        return ()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{run / MULTITASK}: not readable: {error}. Copy the folder again.") from None
    if not (run / "metrics.json").is_file():
        way = f"bertune multitask --resume --out {folder}"
        raise ModelError(f"{folder}: a joint training that has not finished. Go on with: {way}.")
    return tuple(map(str, names))


def _is_of_joint(folder: Path, name: str) -> bool:
    """Whether `name` is a folder of the joint training in `folder`, and nothing else lies in it than what that made."""
    try:
        tasks = json.loads((folder / RUN_FOLDER / MULTITASK).read_text(encoding="utf-8"))["tasks"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    entries = [] if name == "encoder" or not (folder / name).is_dir() else list((folder / name).iterdir())
    ours = all(path.name in tasks and not _foreign(path) for path in entries if path.name not in _JUNK)
    return ours and (folder / name).is_dir()


def _remove_old(out: Path) -> None:
    """What bertune wrote in `out` goes aside, bertune.json first so that nobody takes a half for a whole; then away.

    A new run starts only after this: where a crash left the folder of things set aside, all the rest is old as well.
    """
    aside = out / _OLD
    foreign = {*_foreign(out), _OLD}
    entries = sorted((p for p in out.iterdir() if p.name not in foreign), key=lambda path: path.name != BUNDLE_FILE)
    aside.mkdir(exist_ok=True)
    moved: list[Path] = []
    try:
        for entry in entries:
            entry.replace(aside / entry.name)
            moved.append(entry)
    except OSError:
        for entry in reversed(moved):
            (aside / entry.name).replace(entry)
        raise
    sync(out)
    shutil.rmtree(aside)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
