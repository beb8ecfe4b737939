"""A result folder is whole or absent, says what is wrong with it, and is never overwritten silently."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path

import pytest

from bertune.bundle import BaseModelInfo, Bundle, HeadSpec, write_bundle
from bertune.data.tasks import Task
from bertune.errors import ConfigError, ModelError, TrainingError
from bertune.folder import BUNDLE_FILE, check_output, prepare_output

TASK = Task("single", ("ja", "nein"), ("title", "text"), label=("label",))


def some_bundle(**changes: object) -> Bundle:
    values = {
        "bertune_version": "0.1.0", "task": TASK, "activation": "softmax", "max_length": 128,
        "truncation": "longest-first", "encoder": "bert",
        "head": HeadSpec(kind="own", pooling="cls", dropout=0.1, hidden=50),
        "base_model": BaseModelInfo(name="mini", title="all-MiniLM-L6-v2", licence="Apache-2.0", sha256="ab" * 32),
        "opens_in_transformers": True,
    }  # fmt: skip
    return Bundle.model_validate({**values, **changes})


def files(content: str, *extra: str):
    def write(folder: Path) -> None:
        for name in ("config.json", "model.safetensors", "tokenizer.json", "README.md", *extra):
            (folder / name).write_text(f"{name} {content}", encoding="utf-8")

    return write


def contents(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): path.read_text(encoding="utf-8")
        for path in sorted(folder.rglob("*")) if path.is_file()
    }  # fmt: skip


@pytest.fixture
def result(tmp_path: Path) -> Path:
    out = tmp_path / "out"
    prepare_output(out)
    write_bundle(out, some_bundle(), files("one"))
    return out


def test_a_written_bundle_reads_back_equal(result: Path) -> None:
    bundle = Bundle.read(result)
    assert bundle.task == TASK and bundle.folder == result and bundle.head.pooling == "cls"
    assert sorted(bundle.files) == ["config.json", "model.safetensors", "tokenizer.json"]
    assert bundle == write_bundle(result, some_bundle(), files("one"))
    stored = json.loads((result / BUNDLE_FILE).read_text(encoding="utf-8"))
    assert stored["schema_version"] == 1 and stored["task"]["labels"] == ["ja", "nein"] and "folder" not in stored
    assert not [path.name for path in result.iterdir() if path.name.startswith(".bertune")]


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_an_altered_or_missing_file_is_named(result: Path, name: str) -> None:
    (result / name).write_text("altered", encoding="utf-8")
    with pytest.raises(ModelError, match=rf"{name}: SHA-256 .* damaged or altered"):
        Bundle.read(result)
    assert Bundle.read(result, verify=False).task == TASK
    (result / name).unlink()
    with pytest.raises(ModelError, match=f"the file {name} is missing"):
        Bundle.read(result)


def test_the_card_may_be_edited(result: Path) -> None:
    (result / "README.md").write_text("mine", encoding="utf-8")
    assert Bundle.read(result).task == TASK


@pytest.mark.parametrize(("change", "message"), [
    ({"schema_version": 2, "bertune_version": "9.9"}, "schema version 2 was written by bertune 9.9.*pip install -U"),
    ({"schema_version": None}, "no schema_version"),
    ({"activation": "relu"}, "'activation': .*softmax.*damaged"),
    ({"task": {"kind": "single", "labels": ["a"], "text": ["t"], "colour": 1}}, "'colour' is not one of its fields"),
    ({"task": None}, "damaged"),
    ({"task": [1]}, r"bertune\.json: task: expected its fields, found list\. The file is damaged"),
    ({"decision": {"biases": [0.0]}}, r"bertune\.json: the decision rule is not one for 2 labels; the file is damaged"),
    ({"files": {"../x": "0" * 64}}, "'../x' is not the name of a file in the folder"),
    ({"files": {"x": "0"}}, "not a SHA-256"),
])
def test_a_description_that_cannot_be_right_is_refused(result: Path, change: dict[str, object], message: str) -> None:
    path = result / BUNDLE_FILE
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **change}), encoding="utf-8")
    with pytest.raises(ModelError, match=message):
        Bundle.read(result)


def test_what_is_no_result_is_told_apart(tmp_path: Path, result: Path) -> None:
    with pytest.raises(ModelError, match=r"no such folder. Make a result folder with: bertune train"):
        Bundle.read(tmp_path / "absent")
    with pytest.raises(ModelError, match="a file, not the result folder"):
        Bundle.read(result / "config.json")
    (result / BUNDLE_FILE).unlink()
    with pytest.raises(ModelError, match=r"has not finished.*--resume"):
        Bundle.read(result)
    shutil.rmtree(result / "run")
    with pytest.raises(ModelError, match=r"plain model folder.*--model"):
        Bundle.read(result)
    (result / "config.json").unlink()
    with pytest.raises(ModelError, match="not the result folder of a run"):
        Bundle.read(result)
    (result / BUNDLE_FILE).write_text("{", encoding="utf-8")
    with pytest.raises(ModelError, match="not valid JSON"):
        Bundle.read(result)


def test_a_new_bundle_replaces_the_old_one_whole(result: Path) -> None:
    write_bundle(result, some_bundle(), files("one", "vocab.txt"))
    (result / "run" / "config.yaml").write_text("kept", encoding="utf-8")
    write_bundle(result, some_bundle(max_length=64), files("two"))
    assert Bundle.read(result).max_length == 64
    found = contents(result)
    assert found["model.safetensors"] == "model.safetensors two" and found["run/config.yaml"] == "kept"
    assert "vocab.txt" not in found, "a tokenizer file of the old bundle must not be opened with the new one"


def test_a_full_disk_leaves_the_old_bundle_and_nothing_half(result: Path) -> None:
    before = contents(result)

    def full(folder: Path) -> None:
        files("two")(folder)
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(TrainingError, match=r"disk is full.*holds what it held before\. Free some space"):
        write_bundle(result, some_bundle(), full)  # there may be no checkpoint, and none is promised
    assert contents(result) == before
    assert Bundle.read(result).max_length == 128


def test_a_crash_at_any_rename_leaves_the_old_or_the_new_bundle(
    result: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    replace, seen = Path.replace, set()
    for allowed in range(20):
        folder = tmp_path / f"copy{allowed}"
        shutil.copytree(result, folder)
        left = allowed

        def stop(source: Path, target: Path) -> Path:
            nonlocal left
            if left == 0:
                raise Killed
            left -= 1
            return replace(source, target)

        monkeypatch.setattr(Path, "replace", stop)
        try:
            write_bundle(folder, some_bundle(max_length=64), files("two"))
            finished = True
        except Killed:
            finished = False
        monkeypatch.setattr(Path, "replace", replace)
        bundle = Bundle.read(folder)
        seen.add(bundle.max_length)
        words = {text.split()[-1] for name, text in contents(folder).items() if name in bundle.files}
        assert words == {"two" if bundle.max_length == 64 else "one"}
        if finished:
            break
    assert seen == {64, 128} and allowed >= 5


def test_a_run_starts_in_a_new_or_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for out in (tmp_path / "a" / "b" / "c", tmp_path / "empty"):
        prepare_output(out)
        assert (out / "run").is_dir()
        prepare_output(out)  # a run that ended before its first file left nothing to protect


def test_an_existing_folder_is_an_error_without_a_word_from_the_user(result: Path, tmp_path: Path) -> None:
    before = contents(result)
    with pytest.raises(ConfigError, match=r"holds an earlier run.*--resume.*--overwrite"):
        prepare_output(result)
    assert contents(result) == before
    (tmp_path / "notes.txt").write_text("x", encoding="utf-8")
    with pytest.raises(ConfigError, match="is not empty"):
        prepare_output(tmp_path)


def test_overwriting_replaces_a_result_and_resuming_keeps_it(result: Path) -> None:
    before = contents(result)
    prepare_output(result, resume=True)
    assert contents(result) == before
    check_output(result, overwrite=True)
    assert contents(result) == before
    prepare_output(result, overwrite=True)
    assert [path.name for path in result.iterdir()] == ["run"]
    assert not [path for path in (result / "run").iterdir() if not path.name.startswith(".")]


@pytest.mark.parametrize("options", [{"resume": True}, {"overwrite": True}])
def test_a_folder_of_somebody_else_is_never_touched(tmp_path: Path, options: dict[str, bool]) -> None:
    home = tmp_path / "home"
    (home / "run").mkdir(parents=True)
    (home / "run" / "config.yaml").write_text("mine", encoding="utf-8")
    (home / ".bertune-tmp-1").write_text("a stray temporary file makes it no result", encoding="utf-8")
    before = contents(home)
    with pytest.raises(ConfigError, match="nothing that bertune made"):
        prepare_output(home, **options)
    assert contents(home) == before


def test_a_users_file_inside_a_result_forbids_overwriting(result: Path) -> None:
    (result / "notes.txt").write_text("mine", encoding="utf-8")
    before = contents(result)
    with pytest.raises(ConfigError, match=r"also holds notes.txt, which bertune did not write"):
        prepare_output(result, overwrite=True)
    assert contents(result) == before
    prepare_output(result, resume=True)
    assert contents(result) == before


def test_a_killed_overwrite_is_finished_by_the_next_run(result: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(path: object, ignore_errors: bool = False) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        prepare_output(result, overwrite=True)
    monkeypatch.undo()
    with pytest.raises(ConfigError, match="earlier run"):
        prepare_output(result)
    prepare_output(result, resume=True)
    assert [path.name for path in result.iterdir()] == ["run"]


def test_an_old_result_that_cannot_be_moved_stays_as_it_was(result: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, replace = contents(result), Path.replace

    def refuse(source: Path, target: Path) -> Path:
        if source.name == "model.safetensors":
            raise PermissionError(errno.EACCES, "in use")
        return replace(source, target)

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(ConfigError, match=r"cannot be written to: .*in use"):
        prepare_output(result, overwrite=True)
    monkeypatch.undo()
    assert contents(result) == before
    prepare_output(result, overwrite=True)


def test_a_file_a_read_only_folder_and_both_options_are_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_text("x", encoding="utf-8")
    for out in (path, path / "below"):
        with pytest.raises(ConfigError, match="is a file; the output is a folder"):
            prepare_output(out, overwrite=True)
    with pytest.raises(ConfigError, match="pass one of them"):
        prepare_output(tmp_path / "new", resume=True, overwrite=True)
    monkeypatch.setattr(os, "access", lambda place, mode: False)
    with pytest.raises(ConfigError, match="cannot be written to"):
        prepare_output(tmp_path / "new")
    assert not (tmp_path / "new").exists()
