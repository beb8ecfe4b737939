"""Where bertune keeps what it can make again (encoded texts, downloads, converted models), and digests of big files."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from bertune.errors import ConfigError
from bertune.files import write_json

ENTRY = "meta.json"  # in every folder that data/cache.py counts as an entry of the cache
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_MOST = 2**63  # bytes that a file system can count


@contextlib.contextmanager
def cache_settings(folder: str | None, limit: str | None) -> Iterator[None]:
    """`cache.folder` and `cache.limit` of a configuration over what the environment says, for as long as this lasts.

    They are put into the environment, so that processes started meanwhile agree. ConfigError where there can be no such
    folder.
    """
    chosen = {"BERTUNE_CACHE": folder, "BERTUNE_CACHE_LIMIT": limit}
    before = {name: os.environ.get(name) for name in chosen}
    os.environ.update({name: value for name, value in chosen.items() if value is not None})
    try:
        cache_root()  # before any work
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def size_in_bytes(text: str) -> int:
    """The bytes that `500MB`, `20 GiB` or `1000000` says; ValueError for anything else. A unit is a power of 1000."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?\s*", text, re.IGNORECASE)
    if match is None:
        raise ValueError("not a size; expected bytes, or such as 500MB or 20GB")
    size = float(match[1]) * _UNITS[match[2].upper()]
    if size > _MOST:
        raise ValueError("larger than any disk; expected bytes, or such as 500MB or 20GB")
    return int(size)


def expanded(path: str | Path) -> Path:
    """A path with `~` as the home folder; where `~name` names no user of this machine it is a name like any other."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def standing(path: Path, place: str) -> Path:
    """The nearest of `path` and the folders above it that is there, absolute.

    ConfigError, which begins with `place`, where the system takes no such name: it is too long.
    """
    path = path.absolute()
    try:
        found = next(part for part in (path, *path.parents) if _is_there(part))
        for name in path.relative_to(found).parts:
            _is_there(found / name)
    except OSError as error:
        raise ConfigError(f"{place}: there can be no such name ({error.strerror}). Choose another one.") from None
    return found


def _is_there(path: Path) -> bool:
    """OSError where there can be no such path."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return False
    return True


def cache_root() -> Path:
    """The cache folder: BERTUNE_CACHE where it is set, else the platform's own place. It need not exist yet.

    ConfigError where BERTUNE_CACHE names what can be no folder.
    """
    chosen = os.environ.get("BERTUNE_CACHE")
    if chosen:
        root, place = expanded(chosen), f"the cache (cache.folder, else BERTUNE_CACHE) {chosen}"
        found = standing(root, place)
        if not found.is_dir():
            raise ConfigError(f"{place}: {found} is a file; the cache is a folder. Choose another name.")
        return root
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA")
        return (Path(local) if local else Path.home() / "AppData" / "Local") / "bertune" / "cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "bertune"
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache") / "bertune"


def cache_entry(kind: str, key: str) -> Path:
    """Folder for what belongs to `key`; with a file ENTRY in it, it counts and is cleared as an entry of the cache."""
    return cache_root() / kind / hashlib.sha256(key.encode("utf-8")).hexdigest()


def mark_used(entry: Path) -> None:
    """Note that an entry was used now; the least recently used ones go first when the cache is full."""
    with contextlib.suppress(OSError):  # a read-only cache keeps no order of use
        os.utime(entry / ENTRY)


def cached_digest(path: Path, algorithm: Literal["sha1", "sha256"]) -> str:
    """Hexadecimal digest of a file; known at once as long as the file's size and time of change stay the same."""
    path = path.resolve()
    state = path.stat()
    store = cache_root() / "digests.json"
    key, stamp = f"{algorithm} {path}", [state.st_size, state.st_mtime_ns]
    known = _digests(store)
    if known.get(key, [])[:2] == stamp:
        return str(known[key][2])
    digest = hashlib.new(algorithm)
    with path.open("rb") as stream:
        while piece := stream.read(1 << 20):
            digest.update(piece)
    known = {name: entry for name, entry in known.items() if Path(name.partition(" ")[2]).exists()}
    known[key] = [*stamp, digest.hexdigest()]
    with contextlib.suppress(OSError):  # a cache that cannot be written costs time, nothing else
        store.parent.mkdir(parents=True, exist_ok=True)
        write_json(store, known)
    return digest.hexdigest()


def _digests(store: Path) -> dict[str, list[object]]:
    """What `cached_digest` wrote: [size, time of change, digest] by algorithm and path; empty where unreadable."""
    try:
        entries = json.loads(store.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(entries, dict):
        return {}
    return {str(key): entry for key, entry in entries.items() if isinstance(entry, list) and len(entry) == 3}
