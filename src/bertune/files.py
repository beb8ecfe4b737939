"""Files that are either whole or absent: atomic writing, hashes, strict JSON, and a full disk said in words."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from bertune.errors import TrainingError

TEMPORARY = ".bertune-tmp-"  # how the name of every unfinished file or folder starts

_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}
# Libraries written in Rust (safetensors, polars) hand on the system's error as text, not as an OSError.
_FULL_TEXTS = ("No space left on device", "StorageFull", "os error 28", "os error 112", "Disk quota exceeded")


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while piece := stream.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def to_json(value: Any, *, indent: int | None = None) -> str:
    """Strict JSON that stays readable: text as it is, NaN and infinities as null, numpy values as plain ones."""
    return json.dumps(_plain(value), ensure_ascii=False, allow_nan=False, indent=indent)


def write_json(path: Path, value: Any) -> None:
    """`value` as an indented UTF-8 JSON file, written atomically."""
    write_atomic(path, to_json(value, indent=2) + "\n")


def write_atomic(path: Path, content: bytes | str) -> None:
    """Make `path` hold `content` (text as UTF-8, line feeds as they are); after a crash it holds the old or the new."""
    with atomic_path(path) as temporary:
        # A half character (lone surrogate) in a name or a cell must not cost a file; in JSON its escape means the same.
        raw = content.encode("utf-8", errors="backslashreplace") if isinstance(content, str) else content
        temporary.write_bytes(raw)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, for a writer that wants a path; it replaces `path` when the block ends well.

    The file is flushed to the disk first. After an error nothing of it stays, and `path` is as it was.
    """
    temporary = temporary_path(path.parent, path.suffix)
    try:
        yield temporary
        sync(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync(path.parent)


def temporary_path(folder: Path, suffix: str = "") -> Path:
    """A new name in `folder`, known as unfinished by its start; writers can run side by side."""
    return folder / f"{TEMPORARY}{os.getpid()}-{secrets.token_hex(4)}{suffix}"


def sync(path: Path) -> None:
    """Flush a file, or the names in a folder, to the disk."""
    if path.is_dir():
        if os.name == "nt":  # Windows neither needs nor allows this for folders
            return
        handle = os.open(path, os.O_RDONLY)
    else:
        handle = os.open(path, os.O_RDWR | getattr(os, "O_BINARY", 0))
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems have no fsync
            raise
    finally:
        os.close(handle)


def is_disk_full(error: BaseException) -> bool:
    """Whether `error` says that the disk or a quota is full, also as text from a library."""
    if isinstance(error, OSError) and error.errno in _FULL:
        return True
    return any(text in str(error) for text in _FULL_TEXTS)


class disk_full:
    """`with disk_full("the checkpoint", kept="Step 400 is safe."):` turns a full disk into a TrainingError.

    `what` could not be written; `kept` is a whole sentence about what is safe. Other errors pass unchanged.
    A class, because a generator would have to catch every exception to look into it.
    """

    def __init__(self, what: str, *, kept: str) -> None:
        self.what = what
        self.kept = kept

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, Exception) and not isinstance(error, TrainingError) and is_disk_full(error):
            raise TrainingError(
                f"The disk is full: {self.what} could not be written. {self.kept} "
                "Free some space and run again with --resume."
            ) from error


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):  # a numpy array or number; numpy is not imported for it
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value
