"""Files inside a .zip or .tar.gz, read in place after every name and size was checked."""

from __future__ import annotations

import gzip
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO

from bertune.errors import ModelError, listed

LARGEST = 16 * 2**30  # bytes of all files together; more is no model that is meant here
_IGNORED = {".DS_Store", "Thumbs.db"}


class Archive:
    """An open archive: `sizes` has the bytes of each file by its name, `open(name)` reads one."""

    def __init__(self, path: Path, sizes: dict[str, int], container: zipfile.ZipFile | tarfile.TarFile) -> None:
        self.path = path
        self.sizes = sizes
        self._container = container

    def open(self, name: str) -> IO[bytes]:
        if isinstance(self._container, zipfile.ZipFile):
            return self._container.open(name)
        stream = self._container.extractfile(name)
        assert stream is not None  # only regular files are listed in `sizes`
        return stream

    def read(self, name: str, *, limit: int) -> bytes:
        """All bytes of a file; ModelError where it is larger than `limit`."""
        if self.sizes[name] > limit:
            raise ModelError(f"{self.path}: '{name}' has {self.sizes[name]:,} bytes; at most {limit:,} are expected.")
        with self.open(name) as stream:
            return stream.read(limit)

    def folder_of(self, *names: str) -> str | None:
        """The only folder inside (a prefix that ends with '/', or '') that holds all of `names`, else None."""
        folders = {name.removesuffix(names[0]) for name in self.sizes if PurePosixPath(name).name == names[0]}
        folders = {folder for folder in folders if all(folder + name in self.sizes for name in names)}
        return folders.pop() if len(folders) == 1 else None

    def contents(self) -> str:
        """A few names for an error message."""
        return listed(sorted(self.sizes), 6) or "nothing"


@contextmanager
def open_archive(path: Path) -> Iterator[Archive]:
    """The archive at `path`; ModelError where it is damaged, or holds names or sizes that no honest archive has."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as zipped:
                yield Archive(path, _checked(path, _zip_members(path, zipped)), zipped)
        else:
            with tarfile.open(path, "r:" if path.suffix.lower() == ".tar" else "r:gz") as tarred:
                yield Archive(path, _checked(path, _tar_members(path, tarred)), tarred)
    except (zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise ModelError(f"{path} is not a readable archive (.zip or .tar.gz), or is damaged: {error}") from None


def _zip_members(path: Path, zipped: zipfile.ZipFile) -> Iterator[tuple[str, int]]:
    for member in zipped.infolist():
        kind = member.external_attr >> 28  # of the Unix mode; 0 where none was stored
        if kind == 0o12:
            raise ModelError(f"{path}: '{member.filename}' is a link; a model archive holds plain files only.")
        if member.flag_bits & 1:
            raise ModelError(f"{path}: '{member.filename}' is encrypted. Unpack the archive and pass the folder.")
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ModelError(f"{path}: '{member.filename}' is packed in an unusual way. Unpack it and pass the folder.")
        if not member.is_dir():
            yield member.filename, member.file_size


def _tar_members(path: Path, tarred: tarfile.TarFile) -> Iterator[tuple[str, int]]:
    for member in tarred.getmembers():
        if not member.isreg() and not member.isdir():
            raise ModelError(f"{path}: '{member.name}' is a link or device; a model archive holds plain files only.")
        if member.isreg():
            yield member.name, member.size


def _checked(path: Path, members: Iterator[tuple[str, int]]) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for name, size in members:
        parts = PurePosixPath(name).parts
        if name.startswith("/") or ".." in parts or "\\" in name or PureWindowsPath(name).drive:
            raise ModelError(f"{path}: '{name}' points outside the archive; such an archive is not opened.")
        if name in sizes:
            raise ModelError(f"{path}: '{name}' is in the archive twice, so its content is not certain.")
        if not name.startswith("__MACOSX/") and PurePosixPath(name).name not in _IGNORED:
            sizes[name] = size
    if sum(sizes.values()) > LARGEST:
        raise ModelError(f"{path} unpacks to {sum(sizes.values()):,} bytes; at most {LARGEST:,} are accepted.")
    return sizes
