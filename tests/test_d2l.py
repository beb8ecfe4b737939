"""The book's archives, and `convert`: published format in, clean folder out, no code from a pickle."""

from __future__ import annotations

import io
import json
import pickle
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from bertune.data.batch import Batch
from bertune.errors import ModelError
from bertune.model import archive as archives
from bertune.model import source as sources
from bertune.model.d2l import config_of, default_heads, read_published
from bertune.model.heads import HeadConfig
from bertune.model.load import load_model
from bertune.model.source import convert, open_source
from bertune.model.weights import read_weights
from d2l_archive import (
    SPECIAL,
    WORDS,
    make_archive,
    make_state,
    malicious_params,
    names_in,
    plain_forward,
    refusal,
    saved,
    write_archive,
)  # fmt: skip

pytestmark = pytest.mark.usefixtures("empty_cache")
VOCABULARY = json.dumps(WORDS).encode("utf-8")


# Parity with the book's computation.


def _batch(tokens: np.ndarray, segments: np.ndarray, lengths: list[int]) -> Batch:
    cu = np.cumsum([0, *lengths])
    return Batch(
        ids=np.concatenate([row[:length] for row, length in zip(tokens, lengths, strict=True)]),
        types=np.concatenate([row[:length] for row, length in zip(segments, lengths, strict=True)]),
        positions=np.concatenate([np.arange(length) for length in lengths]),
        cu=cu,
        rows=np.arange(len(lengths)),
    )


@pytest.mark.parametrize("legacy", [False, True], ids=["zip tensors", "legacy tensors"])
def test_logits_equal_a_plain_recomputation(tmp_path: Path, legacy: bool) -> None:
    state = make_archive(tmp_path / "bert.small.torch.zip", legacy=legacy)
    folder, _ = open_source(tmp_path / "bert.small.torch.zip")
    model, report = load_model(folder, head=HeadConfig("own", "cls", num_labels=3, dropout=0.0), seed=5)
    assert sorted(name for names in report.skipped.values() for name in names) == sorted(
        name for name in state if name.startswith(("mlm.", "nsp."))
    )
    lengths = [12, 3, 7]
    rng = np.random.default_rng(1)
    tokens = rng.integers(0, len(WORDS), (3, 12))
    segments = (np.arange(12)[None, :] > np.array([[6], [1], [3]])).astype(np.int64)
    with torch.no_grad():
        inputs = model.inputs(_batch(tokens, segments, lengths))
        states = model.encoder(inputs).numpy()
        logits = model(inputs).numpy()
    expected, pooled = plain_forward(state, tokens, segments, lengths, heads=4)
    output = model.head.classifier
    expected_logits = pooled @ output.weight.detach().double().numpy().T + output.bias.detach().double().numpy()
    np.testing.assert_allclose(logits, expected_logits, atol=1e-5)
    flat = np.concatenate([row[:length] for row, length in zip(expected, lengths, strict=True)])
    np.testing.assert_allclose(states, flat, atol=2e-5)


def test_the_plain_recomputation_notices_a_wrong_number_of_heads() -> None:
    state = make_state(hidden=32, layers=1, ffn=16)
    tokens, segments = np.arange(6)[None], np.zeros((1, 6), dtype=np.int64)
    pooled = [plain_forward(state, tokens, segments, [6], heads=heads)[1] for heads in (2, 4)]
    assert np.abs(pooled[0] - pooled[1]).max() > 1e-3


# The published format.


def test_all_sizes_come_from_the_shapes(tmp_path: Path) -> None:
    path = tmp_path / "bert.base.torch.zip"
    words = [*WORDS, "naïve", "東京"]
    make_archive(path, hidden=96, layers=3, ffn=40, max_len=33, words=words, folder="bert.base.torch")
    said = convert(path, tmp_path / "out", heads=8)
    config = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))
    sizes = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size")
    assert [config[name] for name in sizes] == [96, 3, 8, 40, len(words)]
    assert (config["max_position_embeddings"], config["model_type"], config["hidden_act"]) == (33, "d2l-bert", "relu")
    assert (config["hidden_dropout_prob"], config["layer_norm_eps"], config["pad_token_id"]) == (0.2, 1e-5, 1)
    assert json.loads((tmp_path / "out" / "vocab.json").read_text(encoding="utf-8")) == words
    assert "written to" in said and "parameters" in said


def test_a_converted_folder_keeps_every_published_weight(tmp_path: Path) -> None:
    state = make_archive(tmp_path / "a.zip", hidden=32, ffn=48)
    convert(tmp_path / "a.zip", tmp_path / "out")
    kept = load_file(tmp_path / "out" / "model.safetensors")
    assert kept.keys() == state.keys()
    assert all(torch.equal(kept[name], state[name]) for name in state)
    assert names_in(tmp_path / "out") == ["config.json", "model.safetensors", "vocab.json"]


def test_the_number_of_heads_follows_the_published_models() -> None:
    assert [default_heads(hidden) for hidden in (256, 768, 512, 32)] == [4, 12, 8, 1]


def test_transformers_refuses_the_folder_instead_of_misloading_it(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    make_archive(tmp_path / "a.zip", hidden=32, ffn=48)
    convert(tmp_path / "a.zip", tmp_path / "out")
    with pytest.raises(ValueError, match="d2l-bert"):
        transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")


@pytest.mark.parametrize("form", ["folder", "parent", "tar.gz"])
def test_the_unpacked_folder_and_other_archives_load_too(tmp_path: Path, form: str) -> None:
    state = make_archive(tmp_path / "a.zip", hidden=32, ffn=48)
    unpacked = tmp_path / "unpacked"
    with zipfile.ZipFile(tmp_path / "a.zip") as zipped:
        zipped.extractall(unpacked)
    path = {"folder": unpacked / "bert.small.torch", "parent": unpacked, "tar.gz": tmp_path / "a.tar.gz"}[form]
    if form == "tar.gz":
        with tarfile.open(path, "w:gz") as tarred:
            tarred.add(unpacked / "bert.small.torch", arcname="bert.small.torch")
    folder, source = open_source(path)
    assert source.kind == "archive"
    assert read_weights(folder).keys() == state.keys()


def test_names_that_carry_the_mark_of_several_gpus_are_understood(tmp_path: Path) -> None:
    state = make_state(hidden=32, ffn=48)
    write_archive(tmp_path / "a.zip", saved({f"module.{name}": value for name, value in state.items()}), VOCABULARY)
    convert(tmp_path / "a.zip", tmp_path / "out")
    assert load_file(tmp_path / "out" / "model.safetensors").keys() == state.keys()


def test_an_archive_is_converted_once_and_counts_as_an_entry_of_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bertune.data.cache import cache_entries

    make_archive(tmp_path / "a.zip", hidden=32, ffn=48)
    folder, _ = open_source(tmp_path / "a.zip")
    monkeypatch.setattr(sources, "read_published", lambda path: pytest.fail("converted again"))
    shutil.copy(tmp_path / "a.zip", tmp_path / "renamed.zip")
    assert open_source(tmp_path / "renamed.zip")[0] == folder
    assert [entry.path for entry in cache_entries()] == [folder]


# What is not the published format.


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda state: state.pop("encoder.blks.1.attention.W_k.bias"), "Missing: encoder.blks.1.attention.W_k.bias"),
        (lambda state: state.update({"encoder.extra": torch.zeros(1)}), "Unexpected: encoder.extra"),
        (lambda state: state.update({"encoder.pos_embedding": torch.zeros(9, 32)}), "expected (1, longest input, 32)"),
        (lambda state: state.update({"hidden.0.bias": torch.zeros(5)}), "has shape (5,), expected (32,)"),
        (lambda state: state.update({"encoder.token_embedding.weight": torch.zeros(7)}), "has shape (7,)"),
        (lambda state: state.update({"encoder.token_embedding.weight": torch.zeros(7, 32)}), "7 token embeddings"),
        (lambda state: state.clear(), "it is empty"),
        (lambda state: state.update({"epoch": 3}), "not tensors are epoch"),
    ],
)  # fmt: skip
def test_other_weights_than_the_books_are_listed(
    tmp_path: Path, change: Callable[[dict[str, Any]], Any], expected: str
) -> None:
    state = dict(make_state(hidden=32, ffn=48))
    change(state)
    write_archive(tmp_path / "a.zip", saved(state), VOCABULARY)
    assert expected in refusal(tmp_path / "a.zip", tmp_path / "out")


@pytest.mark.parametrize(
    ("vocabulary", "expected"),
    [
        (b"[1, 2", "not readable as a JSON list"),
        (b'{"a": 1}', "found dict"),
        (json.dumps([*WORDS[1:], "x"]).encode(), "the word list has no <unk>"),
        (json.dumps([*SPECIAL, "a"]).encode(), "lists 6 words"),
        (b"\xff\xfe", "not readable as a JSON list"),
    ],
)
def test_a_word_list_that_does_not_fit_is_an_error(tmp_path: Path, vocabulary: bytes, expected: str) -> None:
    write_archive(tmp_path / "a.zip", saved(make_state(hidden=32, ffn=48)), vocabulary)
    assert expected in refusal(tmp_path / "a.zip", tmp_path / "out")


def test_heads_that_do_not_divide_the_width_are_an_error(tmp_path: Path) -> None:
    make_archive(tmp_path / "a.zip", hidden=32, ffn=48)
    state, words = read_published(tmp_path / "a.zip")
    with pytest.raises(ModelError, match="5 attention heads do not divide the hidden size 32"):
        config_of(state, words, place="a.zip", heads=5)


# No code from a pickle, nothing outside the archive.


@pytest.mark.parametrize("form", ["zip", "legacy", "bare pickle"])
def test_a_malicious_pickle_is_refused_and_its_code_does_not_run(tmp_path: Path, form: str) -> None:
    victim = tmp_path / "ran"
    params = malicious_params(victim, form=form)
    write_archive(tmp_path / "a.zip", params, VOCABULARY)
    message = refusal(tmp_path / "a.zip", tmp_path / "out")
    assert "refused: it" in message and "weights_only" not in message, "torch advises to load such a file all the same"
    assert not victim.exists()
    if form == "bare pickle":
        pickle.loads(params)
    else:
        torch.load(io.BytesIO(params), weights_only=False)
    assert victim.exists(), "the test would not notice the code running"


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("keep", [0.0, 0.3, 0.98])
def test_a_cut_tensor_file_is_a_clear_error(tmp_path: Path, legacy: bool, keep: float) -> None:
    params = saved(make_state(hidden=32, ffn=48), legacy=legacy)
    write_archive(tmp_path / "a.zip", params[: int(len(params) * keep)], VOCABULARY)
    message = refusal(tmp_path / "a.zip", tmp_path / "out")
    assert "pretrained.params: " in message


@pytest.mark.parametrize("name", ["../evil.txt", "/etc/evil.txt", "a/../../evil", "C:/evil.txt"])
def test_an_archive_that_points_outside_itself_is_not_opened(tmp_path: Path, name: str) -> None:
    make_archive(tmp_path / "a.zip", hidden=32, ffn=48)
    with zipfile.ZipFile(tmp_path / "a.zip", "a") as zipped:
        zipped.writestr(name, b"evil")
    assert "points outside the archive" in refusal(tmp_path / "a.zip", tmp_path / "out")


def test_links_in_archives_are_refused(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("bert.small.torch/vocab.json")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as zipped:
        zipped.writestr(link, "/etc/passwd")
    assert "is a link" in refusal(tmp_path / "a.zip", tmp_path / "out")
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as tarred:
        member = tarfile.TarInfo("vocab.json")
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tarred.addfile(member)
    assert "is a link" in refusal(tmp_path / "a.tar.gz", tmp_path / "out")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    make_archive(tmp_path / "a.zip", hidden=32, ffn=48)
    with zipfile.ZipFile(tmp_path / "a.zip", "a") as zipped:
        zipped.writestr("bert.small.torch/vocab.json", VOCABULARY)
    assert "twice" in refusal(tmp_path / "a.zip", tmp_path / "out")


def test_an_archive_too_large_to_be_meant_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_archive(tmp_path / "a.zip", hidden=32, ffn=48)
    monkeypatch.setattr(archives, "LARGEST", 1000)
    assert "at most 1,000 are accepted" in refusal(tmp_path / "a.zip", tmp_path / "out")


@pytest.mark.parametrize("name", ["a.zip", "a.tar.gz", "a.tar"])
@pytest.mark.parametrize("content", [b"", b"no archive at all" * 50, b"\x1f\x8b\x08" + bytes(40)])
def test_what_is_no_archive_is_a_clear_error(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    assert "archive" in refusal(tmp_path / name, tmp_path / "out")


def test_an_archive_with_other_files_says_what_it_holds(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as zipped:
        zipped.writestr("notes.txt", b"")
    assert "it holds notes.txt" in refusal(tmp_path / "a.zip", tmp_path / "out")


def test_the_leftovers_of_file_managers_are_overlooked(tmp_path: Path) -> None:
    make_archive(tmp_path / "a.zip", hidden=32, ffn=48)
    with zipfile.ZipFile(tmp_path / "a.zip", "a") as zipped:
        zipped.writestr("__MACOSX/bert.small.torch/._vocab.json", b"")
        zipped.writestr("bert.small.torch/.DS_Store", b"")
    convert(tmp_path / "a.zip", tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"config.json", "model.safetensors", "vocab.json"} <= names and not {"._vocab.json", ".DS_Store"} & names
