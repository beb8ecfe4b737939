"""Names of files -> open streams: plain, gzip, a member of a zip or a file of the hub; what is missing or damaged.

`train.csv`, `parts/*.csv`            a file, a pattern
`snli_1.0.zip`, `snli_1.0`            the official archive or folder of SNLI: its training file, read in place
`snli_1.0.zip!dev`, `snli_1.0!test`   another of its files; `name.zip!inner/file.csv` names any member of any zip
`hf://datasets/user/name/file.csv`    a file of a hub data set
"""

from __future__ import annotations

import codecs
import glob
import gzip
import io
import re
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, cast

from bertune.errors import ConfigError, DataError, listed, nearest
from bertune.paths import expanded

# A zip member that claims to unpack to more is refused; nothing is ever unpacked to disk.
MAX_UNPACKED = 4 * 2**30
SUFFIXES = {
    ".csv": "csv", ".tsv": "tsv", ".tab": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl",
    ".parquet": "parquet", ".pq": "parquet", ".arrow": "arrow", ".feather": "arrow", ".ipc": "arrow",
}  # fmt: skip
# How a NUL, and a byte that is not of the encoding (U+DC80 + byte - 0x80), travel until `check_text` names their place.
NUL = "\udc00"
BAD = re.compile("[\udc00\udc80-\udcff]")
_GZIP = b"\x1f\x8b"
_PATTERN = re.compile(r"[*?\[]")
_HUB = "hf://"


@dataclass(frozen=True)
class Source:
    """One file to read; `name` is what messages call it."""

    name: str
    path: str
    member: str | None = None

    @property
    def suffix(self) -> str:
        """`.csv` for `Train.CSV.gz`."""
        name = PurePosixPath(self.member or self.path.replace("\\", "/")).name.lower()
        return PurePosixPath(name.removesuffix(".gz")).suffix

    @property
    def on_hub(self) -> bool:
        return self.path.startswith(_HUB)

    @contextmanager
    def open(self) -> Iterator[IO[bytes]]:
        """The unpacked bytes; whatever fails while they are read becomes a `DataError`."""
        with reading(self.name), _hub_stream(self.name) if self.on_hub else nullcontext(), self._raw() as raw:
            if raw.peek(2)[:2] == _GZIP or (self.member or self.path).lower().endswith(".gz"):
                with gzip.GzipFile(fileobj=raw) as unpacked:
                    yield cast(IO[bytes], unpacked)
            else:
                yield raw

    @contextmanager
    def text(self, encoding: str) -> Iterator[io.TextIOWrapper]:
        """The text. Line ends stay as they are; a byte that is not of this encoding arrives as U+DC80..U+DCFF."""
        with self.open() as raw:
            yield io.TextIOWrapper(raw, encoding=encoding, errors="surrogateescape", newline="")

    def plain_path(self) -> Path | None:
        """The path of an ordinary local file, None for anything that must be unpacked or fetched."""
        if self.member is not None or self.on_hub:
            return None
        with self._raw() as raw:
            return None if raw.peek(2)[:2] == _GZIP else Path(self.path)

    def _raw(self) -> io.BufferedReader:
        if self.on_hub:
            return _open_hub(self.path)
        if self.member is None:
            return Path(self.path).open("rb")
        with zipfile.ZipFile(self.path) as archive:  # an open member keeps the file itself open
            try:
                return io.BufferedReader(cast(io.RawIOBase, archive.open(self.member)))
            except NotImplementedError:  # Deflate64 and the like
                raise DataError(
                    f"{self.name}: '{self.member}' is packed by a method that Python cannot unpack. "
                    "Unpack it yourself, and name the file."
                ) from None


@contextmanager
def reading(name: str) -> Iterator[None]:
    """Turn what the system reports about file `name` into a `DataError`."""
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile, zipfile.BadZipFile) as error:
        raise DataError(f"{name}: the packed file is damaged or cut off ({error}). Fetch or write it again.") from None
    except UnicodeDecodeError as error:
        raise DataError(
            f"{name}: byte 0x{error.object[error.start]:02X} is not {error.encoding}. "
            "Pass the --encoding that the file was written in, for example latin-1."
        ) from None
    except UnicodeError as error:  # a UTF-16 or UTF-32 decoder that finds no byte order mark
        raise DataError(f"{name}: {error}. Pass the --encoding that it was written in, for example utf-8.") from None
    except OSError as error:
        raise DataError(f"{name}: cannot be read ({error.strerror or error}).") from None


def check_encoding(encoding: str) -> str:
    """The name to decode with: UTF-8 loses its byte order mark; a name that Python does not know is an error."""
    try:
        name = codecs.lookup(encoding).name
        b"a".decode(name, "ignore")
    except (LookupError, UnicodeError):
        raise ConfigError(
            f"--encoding: '{encoding}' is not a text encoding; use utf-8, latin-1, cp1252, gb18030, utf-16 or the like."
        ) from None
    return "utf-8-sig" if name == "utf-8" else name


def check_text(text: str, place: str, encoding: str) -> None:
    """Raise a `DataError` that begins with `place` where `text` holds a NUL or a byte that could not be decoded."""
    found = None if text.isascii() else BAD.search(text)
    if found is None:
        return
    around = " ".join(BAD.sub("?", text[max(0, found.start() - 20) : found.end() + 20]).split())
    if found[0] == NUL:
        raise DataError(f"{place}: a NUL byte in '{around}'. Remove it, or pass --encoding utf-16 if the file is that.")
    name = encoding.removesuffix("-sig")
    raise DataError(
        f"{place}: byte 0x{ord(found[0]) - 0xDC00:02X} in '{around}' is not {name}. "
        "Pass the --encoding that the file was written in, for example latin-1."
    )


def local_files(name: str) -> list[Path]:
    """The files of this machine that a name or pattern stands for; none for stdin and the hub."""
    return [] if name == "-" or name.startswith(_HUB) else [Path(source.path) for source in find_sources(name)]


def find_sources(path: str | Path) -> list[Source]:
    """The files that one name stands for, sorted; a file that exists wins over a pattern of the same spelling."""
    name = str(path)
    if not name.strip():
        raise DataError("The name of a data file is empty; expected a path or a pattern such as data/*.csv.")
    if name.startswith(_HUB):
        return _find_hub(name)
    with reading(name):
        local = expanded(path)
        if local.is_file():
            return [_in_zip(name, local, None) if local.suffix.lower() == ".zip" else Source(name, str(local))]
        if local.is_dir():
            return [_in_folder(name, local, None)]
        if local.exists():
            raise DataError(
                f"{name}: is a pipe or a device, and a file is read more than once. Write it to a file first, and name "
                "that."
            )
        outer, mark, inner = name.rpartition("!")
        base = expanded(outer)
        if mark and inner and base.is_dir():
            return [_in_folder(name, base, inner)]
        if mark and inner and base.is_file():
            return [_in_zip(name, base, inner)]
        if _PATTERN.search(name):
            found = [file for file in sorted(glob.glob(str(local), recursive=True)) if Path(file).is_file()]  # noqa: PTH207
            if not found:
                raise DataError(f"{name}: no file matches this pattern.")
            return [source for file in found for source in find_sources(file)]
        raise DataError(_absent(name, base if mark and inner else local))


def _absent(name: str, path: Path) -> str:
    if name == "-":
        return "'-': standard input is read by bertune predict alone; name a file here."
    folder = path.parent
    if not folder.is_dir():
        return f"{name}: no such file, and no folder '{folder}'."
    names = sorted(entry.name for entry in folder.iterdir())
    return f"{name}: no such file{nearest(path.name, names) or '.'}"


def _in_folder(name: str, folder: Path, wanted: str | None) -> Source:
    """A file of the official SNLI folder; any other folder is an error that lists its tables."""
    files = [entry.name for entry in folder.iterdir() if entry.is_file()]
    found = _pick(files, wanted)
    if found is None:
        tables = sorted(file for file in files if PurePosixPath(file.lower().removesuffix(".gz")).suffix in SUFFIXES)
        holds = f"; it holds {listed(tables)}" if tables else ""
        if wanted is not None:
            raise DataError(f"{name}: the folder has no file '{wanted}'{nearest(wanted, files) or holds + '.'}")
        raise DataError(f"{name}: is a folder{holds}. Name a file, or a pattern such as {name.rstrip('/')}/*.csv.")
    shown = name if wanted is None else name.rpartition("!")[0]
    return Source(str(Path(shown) / found), str(folder / found))


def _in_zip(name: str, path: Path, wanted: str | None) -> Source:
    """A member of a zip: the one asked for, SNLI's training file, or the only table."""
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: info for info in archive.infolist() if _visible(info)}
    found = _pick(list(members), wanted)
    if found is None and wanted is None and len(members) == 1:
        found = next(iter(members))
    if found is None:
        missing = "several files" if wanted is None else f"no file '{wanted}'"
        raise DataError(
            f"{name}: the archive has {missing}; it holds {listed(members) or 'nothing'}. Name one as {path.name}!FILE."
        )
    info = members[found]
    if info.file_size > MAX_UNPACKED:
        raise DataError(
            f"{name}: '{found}' would unpack to {info.file_size:,} bytes, and the limit is {MAX_UNPACKED:,}. "
            "If you trust it, unpack it and name the file."
        )
    if info.flag_bits & 1:
        raise DataError(f"{name}: '{found}' is encrypted. Unpack it yourself, and name the file.")
    return Source(name, str(path), found)


def _visible(info: zipfile.ZipInfo) -> bool:
    parts = PurePosixPath(info.filename).parts
    return not info.is_dir() and not any(part.startswith((".", "__MACOSX")) for part in parts)


def _pick(names: Sequence[str], wanted: str | None) -> str | None:
    """The file that `wanted` names: in full, or as a part of SNLI (train, dev, test; .txt before .jsonl)."""
    if wanted in names:
        return wanted
    part = re.compile(rf"nli[^/]*_{re.escape(wanted or 'train')}\.(txt|jsonl)(\.gz)?$", re.IGNORECASE)
    return min((name for name in names if part.search(name)), key=lambda name: (".jsonl" in name, name), default=None)


def _hub_failures() -> tuple[type[Exception], ...]:
    """What the HTTP library below the hub raises; which library that is depends on the version of the hub's package."""
    from huggingface_hub.errors import HfHubHTTPError

    return cast(tuple[type[Exception], ...], HfHubHTTPError.__bases__)


def _hub_error(name: str, error: BaseException) -> DataError:
    if isinstance(error, FileNotFoundError):
        return DataError(f"{name}: the hub has no such file, or does not show it. Check the name, and HF_TOKEN.")
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return DataError(f"{name}: the hub cannot be reached ({reason}). Download the file, and give its local path.")


@contextmanager
def _hub_stream(name: str) -> Iterator[None]:
    """A network that fails in the middle of a file; what `reading` handles is left to it."""
    failures = tuple(kind for kind in _hub_failures() if not issubclass(OSError, kind))
    try:
        yield
    except failures as error:
        raise _hub_error(name, error) from None


def _find_hub(name: str) -> list[Source]:
    if not _PATTERN.search(name):
        return [Source(name, name)]
    from huggingface_hub import HfFileSystem

    failures: tuple[type[Exception], ...] = (OSError, ValueError, *_hub_failures())
    try:
        found = [_HUB + file for file in sorted(HfFileSystem().glob(name))]
    except failures as error:
        raise _hub_error(name, error) from None
    if not found:
        raise DataError(f"{name}: no file of the hub matches this pattern.")
    return [Source(file, file) for file in found]


def _open_hub(name: str) -> io.BufferedReader:
    from huggingface_hub import HfFileSystem

    failures: tuple[type[Exception], ...] = (OSError, ValueError, *_hub_failures())
    try:
        return io.BufferedReader(HfFileSystem().open(name, "rb"))
    except failures as error:
        raise _hub_error(name, error) from None
