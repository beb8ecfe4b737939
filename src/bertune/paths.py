"""Where bertune keeps what it can make again (encoded texts, downloads, converted models), and digests of big files."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Literal

from bertune.files import write_json

ENTRY = "meta.json"  # in every folder that data/cache.py counts as an entry of the cache


def cache_root() -> Path:
    """The cache folder: BERTUNE_CACHE where it is set, else the platform's own place. It need not exist yet."""
    chosen = os.environ.get("BERTUNE_CACHE")
    if chosen:
        return Path(chosen).expanduser()
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
