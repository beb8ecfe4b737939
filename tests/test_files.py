"""Files are whole or absent, JSON is strict, and a full disk is said in words."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import numpy as np
import pytest

from bertune.errors import TrainingError
from bertune.files import TEMPORARY, atomic_path, disk_full, sha256_of, to_json, write_atomic, write_json


def test_a_written_file_holds_the_content_and_nothing_else_stays(tmp_path: Path) -> None:
    write_atomic(tmp_path / "a.txt", "Größe\n")
    write_atomic(tmp_path / "b.bin", b"\r\n")
    assert (tmp_path / "a.txt").read_bytes() == "Größe\n".encode()
    assert (tmp_path / "b.bin").read_bytes() == b"\r\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "b.bin"]


def test_a_failed_write_leaves_the_old_file_and_no_temporary_one(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_text("old", encoding="utf-8")
    with pytest.raises(RuntimeError), atomic_path(path) as temporary:
        temporary.write_text("half", encoding="utf-8")
        assert temporary.name.startswith(TEMPORARY)
        raise RuntimeError("killed")
    assert path.read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_hash_is_that_of_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256_of(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_json_is_strict_and_reads_back(tmp_path: Path) -> None:
    value = {"a": float("nan"), 1: np.float32(0.5), "b": np.arange(2), "c": (np.inf, "ä\ud800"), "d": tmp_path}
    write_json(tmp_path / "x.json", value)
    text = (tmp_path / "x.json").read_text(encoding="utf-8")
    assert "NaN" not in text and "Infinity" not in text and "ä" in text
    assert json.loads(text) == {"a": None, "1": 0.5, "b": [0, 1], "c": [None, "ä\ud800"], "d": str(tmp_path)}
    assert to_json({"a": 1}) == '{"a": 1}'


@pytest.mark.parametrize("error", [
    OSError(errno.ENOSPC, "No space left on device"),
    RuntimeError('Error while serializing: IoError(Os { code: 28, kind: StorageFull, message: "..." })'),
])
def test_a_full_disk_is_said_with_what_is_kept(error: Exception) -> None:
    said = r"disk is full: the checkpoint could not be written\. Step 4 is safe\..*--resume"
    with pytest.raises(TrainingError, match=said), disk_full("the checkpoint", kept="Step 4 is safe."):
        raise error


def test_other_errors_pass_the_disk_guard_unchanged() -> None:
    with pytest.raises(PermissionError), disk_full("x", kept="y"):
        raise PermissionError(errno.EACCES, "no")
