"""The cache of encoded rows: equal to fresh, keyed by content, bounded, and never in the way of a run."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bertune.config import Config
from bertune.data.cache import cache_entries, cache_limit, cache_root, clear_cache, read_entry, write_entry
from bertune.data.tasks import Rows
from bertune.data.tokens import Encoded, Tokenizer, encode_cached
from bertune.errors import ConfigError
from shell import call

ROWS = Rows((["the dog", "a dog runs far", "\ud800"],), (["runs", "a", "the"],))


@pytest.fixture
def tokenizer(tmp_path: Path) -> Tokenizer:
    words = ["<unk>", "<pad>", "<mask>", "<cls>", "<sep>", "the", "a", "dog", "runs"]
    (tmp_path / "vocab.json").write_text(json.dumps(words), encoding="utf-8")
    return Tokenizer.load(tmp_path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def encode(tokenizer: Tokenizer, root: Path | None, rows: Rows = ROWS, max_length: int | None = 6) -> Encoded:
    return encode_cached(tokenizer, rows, max_length=max_length, truncation="longest-first", cache=root)


def same(one: Encoded, two: Encoded) -> bool:
    arrays = all(
        np.array_equal(getattr(one, name), getattr(two, name)) and getattr(one, name).dtype == getattr(two, name).dtype
        for name in ("ids", "types", "offsets", "full_lengths")
    )
    return arrays and one.truncation() == two.truncation()


def test_a_hit_equals_a_fresh_result_and_is_memory_mapped(
    tokenizer: Tokenizer, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh = encode(tokenizer, None)
    first = encode(tokenizer, root)
    monkeypatch.setattr(tokenizer, "encode", None)  # a hit encodes nothing
    second = encode(tokenizer, root)
    assert same(first, fresh) and same(second, fresh)
    assert isinstance(second.ids, np.memmap) and not second.ids.flags.writeable
    assert [entry.kind for entry in cache_entries(root)] == ["tokens"]


def test_other_content_or_options_are_other_entries(tokenizer: Tokenizer, root: Path, tmp_path: Path) -> None:
    encode(tokenizer, root)
    encode(tokenizer, root, max_length=7)
    encode(tokenizer, root, Rows((["the dog", "a dog runs far", "\ud801"],), ROWS.second))
    encode(tokenizer, root, Rows((*ROWS.first, *(ROWS.second or ()))))
    encode(tokenizer, root, Rows((["the dog", "a dogruns far", " \ud800"],), ROWS.second))
    (tmp_path / "vocab.json").write_text('["<pad>", "<unk>", "<cls>", "<sep>"]', encoding="utf-8")
    encode(Tokenizer.load(tmp_path), root)
    assert len(cache_entries(root)) == 6


def truncate(folder: Path) -> None:
    with (folder / "ids.npy").open("r+b") as file:
        file.truncate(130)


def flip(folder: Path) -> None:
    content = bytearray((folder / "ids.npy").read_bytes())
    content[-1] ^= 1
    (folder / "ids.npy").write_bytes(content)


def remove(folder: Path) -> None:
    (folder / "types.npy").unlink()


def spoil(folder: Path) -> None:
    (folder / "meta.json").write_text('{"files": 3', encoding="utf-8")


@pytest.mark.parametrize("damage", [truncate, flip, remove, spoil])
def test_a_damaged_entry_is_made_again_with_a_word(
    tokenizer: Tokenizer, root: Path, caplog: pytest.LogCaptureFixture, damage: Callable[[Path], None]
) -> None:
    fresh = encode(tokenizer, None)
    encode(tokenizer, root)
    damage(cache_entries(root)[0].path)
    with caplog.at_level(logging.WARNING, "bertune"):
        assert same(encode(tokenizer, root), fresh)
    assert "is damaged" in caplog.text and "made again" in caplog.text
    caplog.clear()
    assert same(encode(tokenizer, root), fresh) and not caplog.records


def test_a_place_that_cannot_be_written_falls_back_to_memory(
    tokenizer: Tokenizer, root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root.write_text("a file, not a folder", encoding="utf-8")
    assert same(encode(tokenizer, root), encode(tokenizer, None))
    assert "cannot be written" in caplog.text


def test_a_full_disk_falls_back_to_memory_and_leaves_nothing(
    tokenizer: Tokenizer, root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object, allow_pickle: bool) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    assert same(encode(tokenizer, root), encode(tokenizer, None))
    assert "No space left on device" in caplog.text and not list((root / "tokens").iterdir())


def entry(root: Path, digit: str, used: float, numbers: int = 250) -> None:
    write_entry(root, "tokens", digit * 64, {"ids": np.zeros(numbers, dtype=np.int32)}, {})
    if (root / "tokens" / (digit * 64)).is_dir():
        os.utime(root / "tokens" / (digit * 64) / "meta.json", (used, used))


def test_the_entry_used_least_recently_goes_first(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BERTUNE_CACHE_LIMIT", "5000")
    entry(root, "a", used=100.0)
    entry(root, "b", used=200.0)
    entry(root, "c", used=300.0)
    assert read_entry(root, "tokens", "a" * 64) is not None, "used now, later than b and c"
    entry(root, "d", used=400.0)
    left = cache_entries(root)
    assert [one.path.name[0] for one in left] == ["c", "d", "a"]
    assert sum(one.bytes for one in left) <= 5000


def test_a_converted_model_that_this_run_reads_later_stays(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BERTUNE_CACHE_LIMIT", "5000")
    now = time.time()
    model, earlier = root / "models" / ("a" * 64), root / "models" / ("b" * 64)
    for folder, used in ((model, now), (earlier, 100.0)):
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(bytes(2000))
        (folder / "meta.json").write_text("{}", encoding="utf-8")
        os.utime(folder / "meta.json", (used, used))
    entry(root, "c", used=now + 60)
    entry(root, "d", used=now + 60, numbers=400)

    assert model.is_dir() and not earlier.is_dir()
    assert [one.path.name[0] for one in cache_entries(root)] == ["a", "d"]
    entry(root, "e", used=now + 60, numbers=700)
    assert [one.path.name[0] for one in cache_entries(root)] == ["a", "d"], "nothing goes for what cannot be kept"


def test_what_is_larger_than_the_limit_is_not_kept(
    tokenizer: Tokenizer, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BERTUNE_CACHE_LIMIT", "0")
    assert same(encode(tokenizer, root), encode(tokenizer, None)) and not cache_entries(root)


def test_clearing_removes_entries_and_leftovers_and_nothing_else(tokenizer: Tokenizer, root: Path) -> None:
    encode(tokenizer, root)
    (root / "tokens" / ".bertune-left").mkdir()
    (root / "tokens" / "mine").mkdir()
    (root / "notes.txt").write_text("mine", encoding="utf-8")
    size = cache_entries(root)[0].bytes
    assert clear_cache(root) == size > 0 and cache_entries(root) == []
    assert sorted(path.name for path in root.rglob("*")) == ["mine", "notes.txt", "tokens"]


def test_what_a_killed_download_left_is_counted_and_cleared(root: Path) -> None:
    folder = root / "downloads" / ("a" * 64)
    folder.mkdir(parents=True)
    (folder / ".bertune-tmp-1-ab.zip").write_bytes(bytes(700))

    assert [one.bytes for one in cache_entries(root)] == [700]
    assert clear_cache(root) == 700 and not folder.exists()


def test_a_download_that_goes_on_is_not_removed_to_make_room(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BERTUNE_CACHE_LIMIT", "5000")
    unfinished = root / "downloads" / ("a" * 64) / ".bertune-tmp-1-ab.zip"
    unfinished.parent.mkdir(parents=True)
    unfinished.write_bytes(bytes(2000))
    entry(root, "b", used=time.time() + 60, numbers=700)
    assert unfinished.exists()

    os.utime(unfinished, (100.0, 100.0))  # nothing was written to it for long
    entry(root, "b", used=time.time() + 60, numbers=700)
    assert not unfinished.exists()


def test_an_entry_that_is_in_use_stays(tokenizer: Tokenizer, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encode(tokenizer, root)

    def in_use(*_: object) -> None:
        raise PermissionError(13, "in use")

    monkeypatch.setattr(Path, "replace", in_use)
    assert clear_cache(root) == 0 and len(cache_entries(root)) == 1


@pytest.mark.parametrize(
    ("text", "size"), [("123", 123), ("500MB", 500 * 10**6), ("1.5 GB", 1_500_000_000), ("2k", 2000)]
)
def test_the_limit_is_a_size(monkeypatch: pytest.MonkeyPatch, text: str, size: int) -> None:
    monkeypatch.setenv("BERTUNE_CACHE_LIMIT", text)
    assert cache_limit() == size


def test_a_wrong_limit_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BERTUNE_CACHE_LIMIT", "much")
    with pytest.raises(ConfigError, match="'much' is not a size"):
        cache_limit()


def test_a_limit_larger_than_any_disk_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BERTUNE_CACHE_LIMIT", "9999999TB")
    with pytest.raises(ConfigError, match="'9999999TB' is larger than any disk; expected bytes, or such as 500MB"):
        cache_limit()
    with pytest.raises(ConfigError, match=r"'cache\.limit' cannot be 4+: larger than any disk"):
        Config().updated({"cache": {"limit": int("4" * 400)}})


def test_an_empty_name_is_no_cache_folder_and_never_the_platforms() -> None:
    with pytest.raises(ConfigError) as caught:
        Config().updated({"cache": {"folder": ""}})
    assert str(caught.value) == (
        "options: 'cache.folder' cannot be '': name a folder, or leave it out for BERTUNE_CACHE, else the platform's "
        "place."
    )


@pytest.mark.parametrize(("below", "reason"), [
    ("", ": {file} is a file; the cache is a folder. Choose another name."),
    ("/deep/er", ": {file} is a file; the cache is a folder. Choose another name."),
    pytest.param(
        "s" * 300, ": there can be no such name (File name too long). Choose another one.",
        marks=pytest.mark.skipif(os.name == "nt", reason="Windows says that such a name is not there"),
    ),
])  # fmt: skip
def test_what_can_be_no_folder_is_no_cache(below: str, reason: str, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("mine", encoding="utf-8")
    for command in ("cache", "models"):
        done = call(command, "--set", f"cache.folder={file}{below}")
        place = f"the cache (cache.folder, else BERTUNE_CACHE) {file}{below}"
        assert (done.code, done.err) == (2, f"Error: {place}{reason.format(file=file)}\n")


def test_where_the_platforms_place_can_be_no_folder_there_is_no_cache(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "home").write_text("a file", encoding="utf-8")
    monkeypatch.delenv("BERTUNE_CACHE", raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    assert same(encode(tokenizer, cache_root()), encode(tokenizer, None))
    assert "cannot be written" in caplog.text and "going on without it" in caplog.text
    assert "damaged" not in caplog.text


@pytest.mark.parametrize(
    ("platform", "environment", "place"),
    [
        ("linux", {"XDG_CACHE_HOME": "/xdg"}, Path("/xdg/bertune")),
        ("linux", {}, Path.home() / ".cache" / "bertune"),
        ("darwin", {}, Path.home() / "Library" / "Caches" / "bertune"),
        ("win32", {"LOCALAPPDATA": "/local"}, Path("/local/bertune/cache")),
        ("linux", {"BERTUNE_CACHE": "/chosen"}, Path("/chosen")),
    ],
)
def test_the_place_is_the_platforms_or_the_chosen_one(
    monkeypatch: pytest.MonkeyPatch, platform: str, environment: dict[str, str], place: Path
) -> None:
    for name in ("BERTUNE_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "platform", platform)
    assert cache_root() == place


def test_importing_the_tokenizers_room_brings_neither_torch_nor_polars() -> None:
    code = "import sys, bertune.data.tokens; print([m for m in ('torch', 'polars', 'sklearn') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
