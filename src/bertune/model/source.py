"""From a model's name to a folder that can be loaded, and `bertune convert`: any source to a clean folder."""

from __future__ import annotations

import contextlib
import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from safetensors import SafetensorError, safe_open

from bertune.errors import BertuneError, ModelError, listed
from bertune.files import is_disk_full, sync, temporary_path, write_json
from bertune.hub import CONFIG, D2L_FILES, TOKENIZER_FILES, WEIGHT_NAMES, Source, resolve, weight_files
from bertune.model.archive import Archive, open_archive
from bertune.model.d2l import config_of, read_published
from bertune.model.weights import SAFETENSORS, read_weights, write_weights
from bertune.paths import ENTRY, cache_entry, cached_digest, mark_used, standing

_FORMAT = 1  # of converted folders in the cache; raised when they would be written differently
_KEPT = (*TOKENIZER_FILES, "LICENSE", "LICENSE.txt")


def open_source(name: str | Path, *, revision: str | None = None, offline: bool = False) -> tuple[Path, Source]:
    """(folder, source) of a model: `folder` has config.json, weights and tokenizer files, ready for model/load.py.

    Archives are converted into the cache folder once, keyed by their content, and found there afterwards.
    Raises ModelError where the model is absent, damaged or of no known form.
    """
    source = resolve(name, revision=revision, offline=offline)
    if source.kind != "archive":
        return source.path, source
    folder = cache_entry("models", f"{_FORMAT} {_content_key(source.path)}")
    if (folder / CONFIG).is_file():
        mark_used(folder)
        return folder, source
    try:
        _convert_archive(source.path, folder, heads=None, overwrite=False)
        with contextlib.suppress(OSError):  # without it the folder works, but is not counted
            write_json(folder / ENTRY, {"source": source.title})
    except BertuneError:
        if not (folder / CONFIG).is_file():  # else another process was quicker
            raise
    return folder, source


def convert(
    src: str | Path, out: Path, *, heads: int | None = None, overwrite: bool = False, revision: str | None = None,
    offline: bool = False,
) -> str:
    """Write the model `src` (anything `resolve` takes) as a clean folder `out`, and say so in a sentence.

    The folder holds config.json, model.safetensors and the tokenizer's files; it appears whole or not at all. heads:
    number of attention heads of a published archive of the book, where it is not the usual one.
    Raises InputError; an existing `out` is one, unless `overwrite`.
    """
    out = Path(out)
    _check_target(out, overwrite)
    source = resolve(src, revision=revision, offline=offline)
    if overwrite and out.resolve() in (source.path.resolve(), *source.path.resolve().parents):
        raise ModelError(f"{out} holds the source {source.path} itself; name another folder.")
    if source.kind != "archive" and (source.path / "bertune.json").is_file():
        _merge_result(source.path, out, overwrite=overwrite)
        return f"{src}: merged with its base model, {_sizes(out)} written to {out}."
    if source.kind == "archive":
        tied = _convert_archive(source.path, out, heads=heads, overwrite=overwrite)
    else:
        if heads is not None:
            raise ModelError(f"{src} says its number of attention heads in {CONFIG}; it cannot be given.")
        tied = _convert_folder(source.path, out, overwrite=overwrite)
    shared = f"; {len(tied)} tied weight(s) stored once" if tied else ""
    return f"{src} ({source.title}): {_sizes(out)} written to {out}{shared}."


@contextlib.contextmanager
def atomic_folder(out: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """An empty folder beside `out` that takes its place when the block ends well; otherwise nothing of it stays."""
    with _temporary_folder(out) as temporary:
        yield temporary
        for path in temporary.iterdir():
            sync(path)
        if not (overwrite and out.exists()):
            temporary.replace(out)
            sync(out.parent)
            return
        former = temporary_path(out.parent)
        out.replace(former)
        try:
            temporary.replace(out)
        except OSError:
            former.replace(out)
            raise
        sync(out.parent)
        shutil.rmtree(former, ignore_errors=True)


@contextlib.contextmanager
def _temporary_folder(out: Path) -> Iterator[Path]:
    """An empty folder beside `out`, removed at the end; failures to write are told in words that name `out`."""
    temporary = temporary_path(out.parent)
    try:
        temporary.mkdir(parents=True)
        yield temporary
    except (OSError, SafetensorError) as error:
        reason = "the disk is full; free some space" if is_disk_full(error) else str(error)
        raise BertuneError(f"{out} could not be written, and nothing of it stays: {reason}.") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _check_target(out: Path, overwrite: bool) -> None:
    there = standing(out, str(out))
    if there != out.absolute():
        if not there.is_dir():
            raise ModelError(f"{out}: {there} is a file, and nothing can be made below it. Name another folder.")
        return
    if not overwrite:
        raise ModelError(f"{out} exists already. Name another folder, or pass --overwrite.")
    if not (out / CONFIG).is_file():  # never delete what is not a model
        raise ModelError(f"{out} has no {CONFIG}, so it is no model folder and is not replaced. Name another folder.")
    names = {path.name for path in out.iterdir()}
    others = sorted(names - {CONFIG, "README.md", "bertune.json", SAFETENSORS, *weight_files(names), *_KEPT})
    if others:
        raise ModelError(
            f"{out} also holds {listed(others, 5)}, which a conversion did not write and will not delete. Name another "
            "folder."
        )


def _convert_archive(path: Path, out: Path, *, heads: int | None, overwrite: bool) -> list[str]:
    """The book's archive, or any archive with a model folder inside, as the folder `out`; names of tied weights."""
    if path.is_file():
        with open_archive(path) as archive:
            if archive.folder_of(*D2L_FILES) is None:
                if heads is not None:
                    raise ModelError(f"{path}: the number of attention heads is given only for the book's archives.")
                return _unpack(archive, out, overwrite=overwrite)
    state, words = read_published(path)
    config = config_of(state, words, place=str(path), heads=heads)
    with atomic_folder(out, overwrite=overwrite) as folder:
        tied = write_weights(folder / SAFETENSORS, state)
        (folder / "vocab.json").write_text(json.dumps(words, ensure_ascii=False), encoding="utf-8")
        write_json(folder / CONFIG, config)
    return tied


def _unpack(archive: Archive, out: Path, *, overwrite: bool) -> list[str]:
    """The known files of the model folder inside `archive`, converted."""
    # Of several folders with a config.json (sentence-transformers has one for pooling) the one with weights counts.
    roots = (archive.folder_of(CONFIG, name) for name in WEIGHT_NAMES)
    root = next((root for root in roots if root is not None), None)
    inside = {} if root is None else {name.removeprefix(root): name for name in archive.sizes if name.startswith(root)}
    inside = {short: name for short, name in inside.items() if PurePosixPath(short).name == short}
    weights = weight_files(inside)
    if not weights:
        raise ModelError(
            f"{archive.path}: expected one folder with {CONFIG}, {SAFETENSORS} and tokenizer files, or the book's "
            f"{' and '.join(D2L_FILES)}; it holds {archive.contents()}."
        )
    with _temporary_folder(out) as unpacked:
        for short in (CONFIG, *weights, *(name for name in _KEPT if name in inside)):
            with archive.open(inside[short]) as stream, (unpacked / short).open("wb") as target:
                shutil.copyfileobj(stream, target, 1 << 20)
        return _convert_folder(unpacked, out, overwrite=overwrite)


def _merge_result(source: Path, out: Path, *, overwrite: bool) -> None:
    """A result that was trained with LoRA, or is one task of several, as one that stands alone; others do already."""
    from bertune.model.lowrank import is_adapter, merge_folder
    from bertune.model.shared import is_shared

    if not is_adapter(source) and not is_shared(source):
        raise ModelError(
            f"{source} is a result of bertune, already in safetensors; converting would lose its task and labels. "
            "Copy the folder instead."
        )
    merge_folder(source, out, overwrite=overwrite)


def _convert_folder(source: Path, out: Path, *, overwrite: bool) -> list[str]:
    _read_config(source / CONFIG)
    state = read_weights(source)
    with atomic_folder(out, overwrite=overwrite) as folder:
        tied = write_weights(folder / SAFETENSORS, state)
        for name in (CONFIG, *_KEPT):
            if (source / name).is_file():
                shutil.copyfile(source / name, folder / name)
    return tied


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: not readable as JSON: {error}.") from None
    if not isinstance(config, dict) or "model_type" not in config:
        raise ModelError(f"{path}: expected a JSON object with model_type.")
    return config


def _content_key(path: Path) -> str:
    files = [path] if path.is_file() else [path / name for name in D2L_FILES]
    return " ".join(cached_digest(file, "sha256") for file in files)


def _sizes(folder: Path) -> str:
    with safe_open(folder / SAFETENSORS, framework="pt") as weights:
        shapes = [weights.get_slice(name).get_shape() for name in weights.keys()]  # noqa: SIM118 (not a mapping)
    return f"{len(shapes)} tensors with {sum(math.prod(shape) for shape in shapes):,} parameters"
