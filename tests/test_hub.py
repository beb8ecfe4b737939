"""Finding a model: paths, presets, the hub, the book's archives. Nothing here reaches the network."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest

from bertune.hub import PRESETS, list_presets, resolve
from local_models import failure, make_folder

pytestmark = pytest.mark.usefixtures("alone")

# Paths.


def test_a_model_folder_is_taken_as_it_is(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "own", "config.json", "model.safetensors")
    source = resolve(str(folder))
    assert (source.path, source.kind, source.title) == (folder, "folder", "own")


def test_an_existing_path_wins_over_a_preset_and_a_hub_name(tmp_path: Path) -> None:
    make_folder(tmp_path / "bert", "config.json")
    make_folder(tmp_path / "google-bert" / "bert-base-uncased", "config.json")
    assert resolve("bert").kind == "folder"
    assert resolve("google-bert/bert-base-uncased").kind == "folder"


@pytest.mark.parametrize("name", ["model.zip", "model.tar.gz", "MODEL.ZIP"])
def test_an_archive_is_known_by_its_ending(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"")
    assert resolve(name).kind == "archive"


@pytest.mark.parametrize("inner", ["", "bert.small.torch"])
def test_the_unpacked_folder_of_the_book_counts_as_its_archive(tmp_path: Path, inner: str) -> None:
    folder = make_folder(tmp_path / "data" / inner, "vocab.json", "pretrained.params")
    source = resolve(tmp_path / "data")
    assert (source.kind, source.path) == ("archive", folder)


def test_a_folder_without_a_config_is_an_error_that_says_what_is_missing(tmp_path: Path) -> None:
    make_folder(tmp_path / "science", "notes.txt")
    message = failure("science")
    assert "no config.json; found notes.txt" in message
    assert "rename this folder" in message, "the preset of that name is out of reach"


def test_a_single_file_is_an_error_that_asks_for_its_folder(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert "pass the folder that holds it" in failure("model.safetensors")
    (tmp_path / "pretrained.params").write_bytes(b"")
    assert "one of the book's two files (pretrained.params and vocab.json); pass their folder" in failure(
        "pretrained.params"
    )


def test_a_revision_of_a_local_path_is_an_error(tmp_path: Path) -> None:
    make_folder(tmp_path / "own", "config.json")
    assert "Leave out --revision" in failure("own", revision="main")


# Names.


def test_a_misspelt_preset_gets_the_nearest_name() -> None:
    message = failure("multilinguall")
    assert "did you mean 'multilingual'?" in message and "d2l-base" in message


@pytest.mark.parametrize(
    "name", ["", "  ", "./absent", "~nobody-here/model", "absent.zip", "owner/absent.zip", "a/b/c", "x" * 5000]
)
def test_what_can_be_no_model_is_one_clear_error(name: str) -> None:
    assert "preset" in failure(name)


def test_presets_are_found_by_their_hub_names_too() -> None:
    assert "google-bert/bert-base-uncased is not on this machine" in failure("bert-base-uncased")
    assert "google-bert/bert-base-uncased is not on this machine" in failure("google-bert/bert-base-uncased")


def test_all_presets_of_the_documentation_are_there() -> None:
    assert list(PRESETS) == ["mini", "bert", "modern", "science", "multilingual", "chinese", "d2l-small", "d2l-base"]
    for preset in PRESETS.values():
        assert preset.size > 10**7 and preset.licence and preset.languages
        assert (preset.repo is None) == (preset.url is not None) == (preset.sha1 is not None)


# The hub.


def _hub_copy(cache: Path, repo: str, *names: str, commit: str = "a" * 40) -> Path:
    place = cache / f"models--{repo.replace('/', '--')}"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text(commit, encoding="utf-8")
    return make_folder(place / "snapshots" / commit, *names)


def test_an_absent_hub_model_says_what_to_put_where() -> None:
    message = failure("bert")
    assert "Network is unreachable" in message
    assert (
        "Put its config.json, model.safetensors (or pytorch_model.bin) and tokenizer files into a folder and pass "
        "--model FOLDER" in message
    )
    assert "HF_ENDPOINT" in message


@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin"])
def test_a_cached_copy_is_used_without_a_network(tmp_path: Path, weights: str) -> None:
    folder = _hub_copy(tmp_path / "hub", "google-bert/bert-base-uncased", "config.json", weights, "vocab.txt")
    source = resolve("bert")
    assert (source.path, source.kind, source.licence) == (folder, "hub", "Apache-2.0")
    assert next(row for row in list_presets() if row.name == "bert").where == str(folder)


@pytest.mark.parametrize("names", [("config.json", "vocab.txt"), ("config.json", "model.safetensors")])
def test_a_copy_that_lacks_weights_or_vocabulary_does_not_count(tmp_path: Path, names: tuple[str, ...]) -> None:
    _hub_copy(tmp_path / "hub", "google-bert/bert-base-uncased", *names)
    assert "not on this machine" in failure("bert")


def test_a_copy_that_lacks_a_shard_does_not_count(tmp_path: Path) -> None:
    names = ("config.json", "vocab.txt", "model.safetensors.index.json", "model-00001-of-00002.safetensors")
    folder = _hub_copy(tmp_path / "hub", "me/large", *names)
    index = {"weight_map": {"a": names[3], "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    assert "me/large is no folder here" in failure("me/large")
    (folder / "model-00002-of-00002.safetensors").write_bytes(b"")
    assert resolve("me/large").path == folder


@pytest.fixture
def online(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A hub that holds `files`, and remembers what was asked for."""
    state = SimpleNamespace(files=[], wanted=None, revision=None)

    def model_info(self: Any, repo: str, *, revision: str | None, timeout: float) -> Any:
        assert timeout <= 10
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=name) for name in state.files])

    def snapshot_download(repo: str, *, revision: str | None, allow_patterns: list[str], etag_timeout: float) -> str:
        state.wanted, state.revision = allow_patterns, revision
        return str(make_folder(tmp_path / "snapshot", *allow_patterns))

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return state


def test_only_data_files_are_fetched_and_safetensors_are_preferred(online: SimpleNamespace) -> None:
    online.files = [
        "README.md", "config.json", "modeling_own.py", "model.safetensors", "pytorch_model.bin", "tf_model.h5",
        "tokenizer.json", "vocab.txt", "onnx/model.onnx", "rust_model.ot",
    ]  # fmt: skip
    source = resolve("owner/name", revision="v2")
    assert sorted(online.wanted) == ["config.json", "model.safetensors", "tokenizer.json", "vocab.txt"]
    assert (online.revision, source.kind, source.title) == ("v2", "hub", "owner/name")


def test_the_pickled_weights_are_fetched_where_there_are_no_others(online: SimpleNamespace) -> None:
    online.files = ["config.json", "pytorch_model.bin", "vocab.txt"]
    resolve("science")
    assert sorted(online.wanted) == ["config.json", "pytorch_model.bin", "vocab.txt"]


def test_a_repository_without_weights_is_an_error(online: SimpleNamespace) -> None:
    online.files = ["config.json", "model.gguf"]
    assert "has no config.json with model.safetensors or pytorch_model.bin" in failure("owner/name")


def _answer(kind: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    error = kind.__new__(kind)
    Exception.__init__(error, "as the hub says it")

    def raise_error(*args: Any, **options: Any) -> Any:
        raise error

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", raise_error)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("RepositoryNotFoundError", "did you mean 'google-bert/bert-base-uncased'?"),
        ("GatedRepoError", "hf auth login"),
        ("RevisionNotFoundError", "has no revision 'v9'"),
        ("HfHubHTTPError", "cannot be downloaded (as the hub says it)"),
        ("OfflineModeIsEnabled", "cannot be downloaded (as the hub says it)"),
    ],
)
def test_each_answer_of_the_hub_becomes_a_clear_error(
    kind: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _answer(getattr(huggingface_hub.errors, kind), monkeypatch)
    assert expected in failure("google-bert/bert-base-uncasedd", revision="v9")


def test_a_failure_of_the_hubs_http_client_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    _answer(huggingface_hub.errors.HfHubHTTPError.__bases__[0], monkeypatch)
    assert "as the hub says it" in failure("owner/name")


def test_offline_asks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *args, **options: pytest.fail("asked the hub"))
    monkeypatch.setattr(urllib.request, "urlopen", lambda *args, **options: pytest.fail("asked the network"))
    assert "the network is switched off" in failure("bert", offline=True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "the network is switched off" in failure("modern")
    assert "the network is switched off" in failure("d2l-small")


@pytest.fixture
def silent_server() -> Iterator[str]:
    """A server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        held: list[socket.socket] = []

        def accept() -> None:
            while True:
                try:
                    held.append(server.accept()[0])
                except OSError:
                    return

        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        for connection in held:
            connection.close()


def test_a_hub_that_never_answers_is_given_up(silent_server: str, tmp_path: Path) -> None:
    code = (
        "import bertune.hub as hub\nhub.TIMEOUT = 0.5\n"
        "try: hub.resolve('bert')\nexcept hub.ModelError as error: print(error)"
    )
    said = _python(code, HF_ENDPOINT=silent_server, HF_HUB_CACHE=str(tmp_path), NO_PROXY="*")
    assert "cannot be downloaded" in said


def _python(code: str, **variables: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, encoding="utf-8", timeout=60, check=True,
        env={**os.environ, **variables},
    )  # fmt: skip
    return done.stdout


def test_finding_models_imports_neither_torch_nor_the_hubs_client() -> None:
    code = (
        "import sys, bertune.hub as hub\ntry: hub.resolve('brt')\nexcept hub.ModelError: pass\n"
        "print(sorted({'torch', 'numpy', 'huggingface_hub'} & set(sys.modules)))"
    )
    assert _python(code).strip() == "[]"
