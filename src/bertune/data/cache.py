"""A cache of arrays on disk: where it lies, how large it grows, and how it is emptied.

An entry is a folder `<root>/<kind>/<key>` of .npy files, opened memory-mapped, and `meta.json` with their sizes and
checksums. It is written aside and moved into place whole. The root is `$BERTUNE_CACHE`, else the platform's place for
caches; `$BERTUNE_CACHE_LIMIT` (such as 500MB or 20GB; default 5GB; 0 switches the cache off) bounds its size, and the
entries used least recently go first. Everything in it can be deleted at any time.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import shutil
import tempfile
import time
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bertune.errors import ConfigError
from bertune.paths import ENTRY, cache_root, size_in_bytes

log = logging.getLogger("bertune")

_DEFAULT_LIMIT = "5GB"
_KEY = re.compile(r"[0-9a-f]{64}")
_ASIDE = re.compile(r"\.bertune-.*")  # an entry being written or removed
_ABANDONED = 3600.0  # seconds after which one that is still there was left by a killed process
_BEGAN = time.time()  # what was used since then, this process may read again


@dataclass(frozen=True)
class CacheEntry:
    """One entry: its folder, its kind (such as "tokens"), its size in bytes, its last use (seconds since 1970)."""

    path: Path
    kind: str
    bytes: int
    used: float


def cache_limit() -> int:
    """Most bytes the cache may take."""
    text = os.environ.get("BERTUNE_CACHE_LIMIT") or _DEFAULT_LIMIT
    try:
        return size_in_bytes(text)
    except ValueError as error:
        raise ConfigError(f"BERTUNE_CACHE_LIMIT: {text!r} is {error}.") from None


def cache_entries(root: Path | None = None) -> list[CacheEntry]:
    """All entries, least recently used first; one without meta.json is a download that goes on, or was killed."""
    entries = []
    for path in sorted((root or cache_root()).glob("*/*")):
        if not _KEY.fullmatch(path.name):
            continue
        try:
            found = {file.name: file.stat() for file in path.iterdir()}
            size = sum(state.st_size for state in found.values())
            written = max((state.st_mtime for state in found.values()), default=path.stat().st_mtime)
            used = found[ENTRY].st_mtime if ENTRY in found else written
            entries.append(CacheEntry(path, path.parent.name, size, used))
        except OSError:  # removed by another process at this moment
            continue
    return sorted(entries, key=lambda entry: entry.used)


def clear_cache(root: Path | None = None) -> int:
    """Removes all entries and what killed processes left; gives the bytes freed. An entry in use on Windows stays."""
    root = root or cache_root()
    freed = sum(entry.bytes for entry in cache_entries(root) if _remove(entry.path))
    _sweep(root, older_than=0.0)
    return freed


def read_entry(root: Path, kind: str, key: str) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
    """Arrays by name, memory-mapped read-only, and the values stored with them; None where absent or damaged.

    A damaged entry is said to be so, and removed.
    """
    folder = root / kind / key
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        for name, file in meta["files"].items():
            if _checksum(folder / name) != (file["bytes"], file["crc32"]):
                raise ValueError(f"{name} is not as it was written")
        arrays = {name.removesuffix(".npy"): np.load(folder / name, mmap_mode="r") for name in meta["files"]}
        values = dict(meta["values"])
    except (FileNotFoundError, NotADirectoryError) as error:
        if folder.is_dir():
            _report_damage(folder, error)
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        _report_damage(folder, error)
        return None
    with contextlib.suppress(OSError):  # a read-only cache keeps no order of use
        os.utime(folder / "meta.json")
    return arrays, values


def write_entry(root: Path, kind: str, key: str, arrays: dict[str, np.ndarray], values: dict[str, Any]) -> bool:
    """Stores an entry, making room for it first; False, with a word, where that is not possible (read-only, full)."""
    size = sum(array.nbytes for array in arrays.values()) + 1024  # file headers and meta.json
    return stream_entry(root, kind, key, arrays.items(), values, size=size)


def stream_entry(
    root: Path, kind: str, key: str, arrays: Iterable[tuple[str, np.ndarray]], values: dict[str, Any], *, size: int,
    limited: bool = True,
) -> bool:
    """`write_entry` of arrays that come one after another, and need not fit into memory together.

    size: bytes that they will take, about. limited: the limit of the cache holds, and older entries make room;
    otherwise `root` is a folder of its own, where nothing is left out.
    """
    limit = cache_limit()
    if limited and size > limit:
        log.info("Not cached: %d MB are over the limit of the cache (BERTUNE_CACHE_LIMIT).", size // 10**6)
        return False
    aside: Path | None = None
    try:
        (root / kind).mkdir(parents=True, exist_ok=True)
        _sweep(root, older_than=_ABANDONED)
        if limited and not _make_room(root, limit - size):
            log.info("Not cached: what is in use leaves no %d MB below the limit of the cache.", size // 10**6)
            return False
        aside = Path(tempfile.mkdtemp(prefix=".bertune-", dir=root / kind))
        files = {}
        for name, array in arrays:
            np.save(aside / f"{name}.npy", array, allow_pickle=False)
            count, crc = _checksum(aside / f"{name}.npy")
            files[f"{name}.npy"] = {"bytes": count, "crc32": crc}
        (aside / "meta.json").write_text(json.dumps({"files": files, "values": values}), encoding="utf-8")
        aside.replace(root / kind / key)
    except OSError as error:
        if aside is not None:
            shutil.rmtree(aside, ignore_errors=True)
        if (root / kind / key / "meta.json").is_file():
            return True  # another process stored the same meanwhile
        if not limited:
            raise
        log.warning("The cache %s cannot be written (%s); going on without it.", root, error.strerror or error)
        return False
    return True


def _report_damage(folder: Path, error: Exception) -> None:
    log.warning("Cache entry %s is damaged (%s); it is made again.", folder, error)
    _remove(folder)


def _checksum(path: Path) -> tuple[int, int]:
    """Size and CRC-32 of a file."""
    size, crc = 0, 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            size += len(block)
            crc = zlib.crc32(block, crc)
    return size, crc


def _make_room(root: Path, allowed: int) -> bool:
    """Removes entries, least recently used first, until `allowed` bytes or fewer are taken.

    False, and nothing is removed, where what has to stay takes more.
    """
    entries = cache_entries(root)
    needed = [entry for entry in entries if _is_needed(entry)]
    if sum(entry.bytes for entry in needed) > allowed:
        return False
    taken = sum(entry.bytes for entry in entries)
    for entry in entries:
        if taken <= allowed:
            break
        if entry not in needed and _remove(entry.path):
            taken -= entry.bytes
    return True


def _is_needed(entry: CacheEntry) -> bool:
    """Whether an entry is being written, or is a converted model that this process reads after its texts are stored."""
    if not (entry.path / ENTRY).is_file():
        return time.time() - entry.used < _ABANDONED
    return entry.kind == "models" and entry.used >= _BEGAN


def _remove(folder: Path) -> bool:
    """Moves an entry aside, so that nobody finds half of one, then deletes it."""
    aside = folder.with_name(f".bertune-{folder.name[:16]}-{os.getpid()}-{time.monotonic_ns()}")
    try:
        folder.replace(aside)
    except OSError:  # mapped by a process (Windows), or in a read-only place
        return False
    shutil.rmtree(aside, ignore_errors=True)
    return True


def _sweep(root: Path, *, older_than: float) -> None:
    for path in root.glob("*/.bertune-*"):
        try:
            if _ASIDE.fullmatch(path.name) and time.time() - path.stat().st_mtime >= older_than:
                shutil.rmtree(path, ignore_errors=True)
        except OSError:
            continue
