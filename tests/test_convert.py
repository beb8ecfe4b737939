"""`bertune convert`: any model becomes a clean folder, whole or not at all."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from bertune.errors import BertuneError, ModelError
from bertune.model import source as sources
from bertune.model.source import convert, open_source
from bertune.model.weights import write_weights
from d2l_archive import make_archive, malicious_params, names_in, refusal

pytestmark = pytest.mark.usefixtures("empty_cache")

# The folder that convert writes.


def test_an_existing_folder_is_replaced_only_when_asked(tmp_path: Path) -> None:
    make_archive(tmp_path / "a.zip", hidden=32, ffn=48)
    convert(tmp_path / "a.zip", tmp_path / "out")
    (tmp_path / "out" / "LICENSE").write_text("old", encoding="utf-8")
    with pytest.raises(ModelError, match="pass --overwrite"):
        convert(tmp_path / "a.zip", tmp_path / "out")
    convert(tmp_path / "a.zip", tmp_path / "out", overwrite=True)
    assert not (tmp_path / "out" / "LICENSE").exists()
    assert not list(tmp_path.glob(".bertune-tmp-*"))


def test_overwriting_never_deletes_what_is_no_model(tmp_path: Path) -> None:
    make_archive(tmp_path / "a.zip", hidden=32, ffn=48)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "one.jpg").write_bytes(b"")
    with pytest.raises(ModelError, match="is not replaced"):
        convert(tmp_path / "a.zip", tmp_path / "photos", overwrite=True)
    assert (tmp_path / "photos" / "one.jpg").exists()
    (tmp_path / "photos" / "config.json").write_text('{"name": "an application"}', encoding="utf-8")
    with pytest.raises(ModelError, match=r"photos also holds one\.jpg, which a conversion did not write"):
        convert(tmp_path / "a.zip", tmp_path / "photos", overwrite=True)
    assert (tmp_path / "photos" / "one.jpg").exists()


def test_a_full_disk_leaves_the_old_folder_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_archive(tmp_path / "a.zip", hidden=32, ffn=48)
    convert(tmp_path / "a.zip", tmp_path / "out")
    before = (tmp_path / "out" / "model.safetensors").read_bytes()

    def full(path: Path, state: Any) -> list[str]:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sources, "write_weights", full)
    with pytest.raises(BertuneError, match="the disk is full") as caught:
        convert(tmp_path / "a.zip", tmp_path / "out", overwrite=True)
    assert caught.value.exit_code == 1
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == before
    assert not list(tmp_path.glob(".bertune-tmp-*"))


def test_the_source_itself_is_not_overwritten(tmp_path: Path) -> None:
    make_archive(tmp_path / "a.zip", hidden=32, ffn=48)
    convert(tmp_path / "a.zip", tmp_path / "out")
    with pytest.raises(ModelError, match="holds the source"):
        convert(tmp_path / "out", tmp_path / "out", overwrite=True)


# Any other model.


@pytest.fixture
def pickled(tmp_path: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    """A model folder as older hub repositories are: pytorch_model.bin with tied weights, config and vocabulary."""
    folder = tmp_path / "pickled"
    folder.mkdir()
    words = torch.randn(11, 8)
    state = {
        "cls.predictions.decoder.weight": words,
        "bert.embeddings.word_embeddings.weight": words,
        "bert.encoder.layer.0.query": torch.arange(6.0).view(2, 3).t(),
        "bert.slice": torch.arange(10.0)[2:5],
        "position_ids": torch.arange(4),
    }
    torch.save(state, folder / "pytorch_model.bin")
    (folder / "config.json").write_text('{"model_type": "bert"}', encoding="utf-8")
    (folder / "vocab.txt").write_text("[PAD]\n", encoding="utf-8")
    (folder / "training_args.bin").write_bytes(b"")
    (folder / "modeling_own.py").write_text("", encoding="utf-8")
    return folder, state


def test_a_pickled_model_becomes_safetensors_with_tied_weights_once(
    pickled: tuple[Path, dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    folder, state = pickled
    said = convert(folder, tmp_path / "out")
    kept = load_file(tmp_path / "out" / "model.safetensors")
    assert state.keys() - kept.keys() == {"cls.predictions.decoder.weight"}
    assert all(torch.equal(kept[name], state[name]) for name in kept)
    assert "1 tied weight(s) stored once" in said
    assert names_in(tmp_path / "out") == ["config.json", "model.safetensors", "vocab.txt"]


@pytest.mark.parametrize("ending", ["zip", "tar.gz"])
def test_an_archive_of_an_ordinary_model_is_opened(
    pickled: tuple[Path, dict[str, torch.Tensor]], tmp_path: Path, ending: str
) -> None:
    (pickled[0] / "1_Pooling").mkdir()  # sentence-transformers adds it, with a config.json of its own
    (pickled[0] / "1_Pooling" / "config.json").write_text("{}", encoding="utf-8")
    shutil.make_archive(str(tmp_path / "packed"), {"zip": "zip", "tar.gz": "gztar"}[ending], tmp_path, "pickled")
    folder, source = open_source(tmp_path / f"packed.{ending}")
    assert source.kind == "archive"
    assert names_in(folder) == ["config.json", "meta.json", "model.safetensors", "vocab.txt"]


def test_a_converted_masked_language_model_gives_the_same_states_in_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=20,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.BertForMaskedLM(config).eval()
    (tmp_path / "src").mkdir()
    config.save_pretrained(tmp_path / "src")
    torch.save(model.state_dict(), tmp_path / "src" / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    convert(tmp_path / "src", tmp_path / "out")
    again = transformers.BertForMaskedLM.from_pretrained(tmp_path / "out").eval()
    ids = torch.arange(12)[None]
    with torch.no_grad():
        torch.testing.assert_close(again(ids).logits, model(ids).logits)


def test_shards_are_joined_and_a_missing_one_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "sharded"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "bert"}', encoding="utf-8")
    names = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    for number, name in enumerate(names):
        write_weights(folder / name, {f"weight{number}": torch.full((2,), float(number))})
    index = {"weight_map": {"weight0": names[0], "weight1": names[1]}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    convert(folder, tmp_path / "out")
    assert load_file(tmp_path / "out" / "model.safetensors").keys() == {"weight0", "weight1"}
    (folder / names[1]).unlink()
    assert names[1] in refusal(folder, tmp_path / "again")


def test_damaged_safetensors_are_a_clear_error(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "bert"}', encoding="utf-8")
    (folder / "model.safetensors").write_bytes(b"\x10\x00")
    assert "damaged or cut" in refusal(folder, tmp_path / "out")


def test_a_folder_without_weights_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"model_type": "bert"}', encoding="utf-8")
    assert "has no weights" in refusal(tmp_path / "model", tmp_path / "out")


def test_a_config_that_is_no_model_s_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("[]", encoding="utf-8")
    assert "expected a JSON object with model_type" in refusal(tmp_path / "model", tmp_path / "out")


def test_a_result_of_bertune_is_not_converted(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    for name in ("config.json", "bertune.json"):
        (tmp_path / "run" / name).write_text("{}", encoding="utf-8")
    assert "Copy the folder instead" in refusal(tmp_path / "run", tmp_path / "out")


def test_heads_are_given_only_for_the_books_archives(
    pickled: tuple[Path, dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match="number of attention heads"):
        convert(pickled[0], tmp_path / "out", heads=2)


def test_a_malicious_pytorch_model_bin_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "bert"}', encoding="utf-8")
    (folder / "pytorch_model.bin").write_bytes(malicious_params(tmp_path / "ran", form="zip"))
    assert "pytorch_model.bin: refused" in refusal(folder, tmp_path / "out")
    assert not (tmp_path / "ran").exists()
