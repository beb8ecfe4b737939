"""The folder that a run leaves: whose it is, making it ready for another run, and the move of new files into place.

Only what bertune wrote is ever removed. A new bundle arrives whole in a folder of its own (see bundle.py); its files
then move into place one by one, bertune.json last, and whoever comes next finishes a move that was broken off.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

from bertune.data.sources import local_files
from bertune.errors import ConfigError, ModelError, listed
from bertune.files import TEMPORARY, sync
from bertune.paths import standing

BUNDLE_FILE = "bertune.json"
RUN_FOLDER = "run"
SCHEMA_VERSION = 1  # of bertune.json

PRETRAINED = "pretrained.json"  # in run/ of a pre-training: the files that it leaves beside run/
MULTITASK = "multitask.json"  # in run/ of a joint training: the names of its tasks
CARD = "README.md"  # may be edited by its owner, so it has no hash
INCOMING = ".bertune-incoming"  # a complete bundle on its way in
HOW = "Make a result folder with: bertune train DATA --out FOLDER."
_JOINT = ("encoder", "tasks", "alone")  # folders of a joint training beside run/
_OLD = ".bertune-old"  # an old result on its way out
_MARKER = ".bertune-run"  # in run/ from its first moment: this folder was made by a run; holds the name of its command
_JUNK = {".DS_Store", "Thumbs.db", "desktop.ini"}  # file managers leave these anywhere


def checked_names(files: Mapping[str, str]) -> Mapping[str, str]:
    """`files`, name -> SHA-256, as bertune.json has them. Raises ValueError for a name that leads out of the folder."""
    for name, digest in files.items():
        parts = PurePosixPath(name).parts
        if not parts or name.startswith("/") or ".." in parts or re.search(r'[\\:*?"<>|\x00]', name):
            raise ValueError(f"'{name}' is not the name of a file in the folder")
        if not re.fullmatch(r"[0-9a-f]{64}", digest):
            raise ValueError(f"the hash of '{name}' is not a SHA-256")
    return files


def check_output(
    out: Path, *, resume: bool = False, overwrite: bool = False, by: str = "train", inputs: Iterable[str] = ()
) -> None:
    """Raise the ConfigError that `prepare_output` would raise, and change nothing: for before the long work. by: the
    command, which goes on with nothing that another one began; inputs: files that are read, which must not lie in
    `out` where `overwrite` deletes run/ with all that is in it."""
    if resume and overwrite:
        raise ConfigError("--resume goes on with a run and --overwrite throws it away; pass one of them.")
    existing = standing(out, f"--out {out}")
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
    marker = out / RUN_FOLDER / _MARKER
    maker = marker.read_text(encoding="utf-8") if resume and marker.is_file() else ""  # empty: an earlier version
    if maker and maker != by:
        raise ConfigError(
            f"--resume: {out} was made by bertune {maker}, which bertune {by} cannot go on with. Use that command, or "
            "choose another --out."
        )
    foreign = _foreign(out)
    if overwrite and foreign:
        raise ConfigError(
            f"--overwrite: {out} also holds {listed(foreign, 5)}, which bertune did not write and will not delete. "
            "Move that away, or choose another --out."
        )
    for path in (path for name in inputs if overwrite for path in local_files(name)):
        if out.resolve() in path.resolve().parents:
            raise ConfigError(f"--overwrite: {path} lies in --out {out} and would be deleted. Move it first.")


def check_model_stays(model: Sequence[Path], out: Path) -> None:
    """Raise ConfigError where a folder that a model needs, its own the first, lies in `out`, whose old result
    `overwrite` deletes."""
    for place in model:
        if out.resolve() in (place.resolve(), *place.resolve().parents):
            needs = "" if place == model[0] else f" needs {place}, which"
            raise ConfigError(
                f"--model {model[0]}{needs} lies in --out {out}; --overwrite would delete it. Choose another --out."
            )


def prepare_output(out: Path, *, resume: bool = False, overwrite: bool = False, by: str = "train") -> None:
    """Make `out` ready for a run: `check_output`, then an existing folder with run/ in it.

    Call it when everything that can be wrong with the input has been checked: with `overwrite` the old result leaves
    here. It is moved aside (after an error it is moved back) and then deleted; only what bertune wrote is touched. With
    `resume` everything stays, except unfinished files of a killed writer.
    """
    check_output(out, resume=resume, overwrite=overwrite, by=by)
    try:
        out.mkdir(parents=True, exist_ok=True)
        if overwrite or (out / _OLD).exists():
            _remove_old(out)
        finish_move(out)
        for folder in (out, out / RUN_FOLDER):
            for leftover in folder.glob(f"{TEMPORARY}*"):
                _remove(leftover)
        (out / RUN_FOLDER).mkdir(exist_ok=True)
        (out / RUN_FOLDER / _MARKER).write_text(by, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--out {out}: cannot be written to: {error}. Choose another folder.") from None


def replace_output(new: Path, out: Path) -> None:
    """The complete result in `new`, on the same disk, takes the place of the one in `out`, of which only what bertune
    wrote goes."""
    _remove_old(out)
    for entry in sorted(new.iterdir(), key=lambda path: path.name == BUNDLE_FILE):
        entry.replace(out / entry.name)
    sync(out)
    new.rmdir()


def finish_move(folder: Path) -> None:
    """Move a complete incoming bundle into its place. Several processes may do so at once; a crash loses nothing."""
    incoming = folder / INCOMING
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
            f"{folder}: a new result is on its way in from {INCOMING}, and moving it failed: {error}. "
            "Make the folder writable, close programs that use its files, and run again."
        ) from None
    shutil.rmtree(incoming, ignore_errors=True)


def read_record(path: Path, *names: str) -> dict[str, Any]:
    """What a JSON file that bertune wrote into run/ holds, `names` at least. Raises ModelError where it does not."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        missing = [name for name in names if name not in found]
        if not isinstance(found, dict) or missing:
            raise ValueError(f"'{missing[0]}' is missing" if missing else "no JSON object")
    except FileNotFoundError:
        raise ModelError(f"{path}: missing. Copy the folder again, or train anew with --overwrite.") from None
    except (OSError, ValueError, TypeError) as error:
        raise ModelError(f"{path}: damaged, {error}. Copy the folder again, or train anew with --overwrite.") from None
    return found


def what_it_is(folder: Path) -> str:
    if not folder.exists():
        return f"no such folder. {HOW}"
    if folder.is_file():
        return f"a file, not the result folder of a run. {HOW}"
    for several in ("folds", "curve"):
        inner = sorted(path.parent for path in (folder / RUN_FOLDER / several).glob(f"*/{BUNDLE_FILE}"))
        if inner:
            return f"several trainings, and no model of its own. Each is a result, for example {inner[0]}."
    if (folder / RUN_FOLDER / MULTITASK).is_file() and (folder / RUN_FOLDER / "metrics.json").is_file():
        tasks = sorted(path.parent for path in (folder / "tasks").glob(f"*/{BUNDLE_FILE}"))
        return f"several tasks over one encoder. Each is a result, for example {tasks[0]}."
    if (folder / RUN_FOLDER / "lr-range.json").is_file():
        return f"a test of learning rates, and no model. {HOW}"
    if (folder / RUN_FOLDER / PRETRAINED).is_file() and (folder / RUN_FOLDER / "metrics.json").is_file():
        return f"a pre-trained encoder without a classifier. Train one: bertune train DATA --model {folder} --out DIR."
    if _is_output(folder):
        return "a run that has not finished: it has no bertune.json yet. Go on with: bertune train ... --resume."
    if (folder / "config.json").is_file():
        return f"a plain model folder, not the result of a run (no {BUNDLE_FILE}). Train from it with --model {folder}."
    return f"not the result folder of a run (no {BUNDLE_FILE}). {HOW}"


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
        values = json.loads((folder / BUNDLE_FILE).read_text(encoding="utf-8"))
        return set(checked_names(values["files"])) if values["schema_version"] <= SCHEMA_VERSION else set()
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return set()


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
    own = {BUNDLE_FILE, RUN_FOLDER, CARD, INCOMING, _OLD} | _JUNK | hashed
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
