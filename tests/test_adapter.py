"""Architectures that only transformers knows run behind the same call, and are saved and found again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from bertune.errors import ModelError
from bertune.model.load import load_model, read_config, read_source, save_model
from bertune.model.noise import Noise
from tiny_models import (
    COMMON,
    batch_of,
    hidden_of,
    loaded,
    logits_of,
    own_head,
    padded,
    random_rows,
    scrambled,
    types_of,
)  # fmt: skip

pytestmark = pytest.mark.usefixtures("one_thread")
LABELS = ("a", "b", "c")
ROWS = random_rows([40, 17, 5, 1])
KINDS: dict[str, dict[str, Any]] = {
    "deberta-v2": {
        "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8, "type_vocab_size": 2,
        "norm_rel_ebd": "layer_norm", "share_att_key": True, "position_biased_input": False,
    },
    "mpnet": {"pad_token_id": 1},
    "albert": {"embedding_size": 16},
}  # fmt: skip


def _tiny(kind: str, auto: Any = transformers.AutoModel) -> Any:
    return scrambled(auto.from_config(transformers.AutoConfig.for_model(kind, **(COMMON | KINDS[kind]))))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    _tiny("deberta-v2").save_pretrained(tmp_path)
    return tmp_path


def _saved(folder: Path, model: Any, source: Path) -> Path:
    folder.mkdir()
    save_model(folder, model, read_source(source), labels=LABELS, problem_type="single_label_classification")
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_hidden_states_are_those_of_transformers(kind: str, tmp_path: Path) -> None:
    theirs = _tiny(kind)
    theirs.save_pretrained(tmp_path)
    ours, report = loaded(tmp_path)
    types = types_of(ROWS) if kind != "mpnet" else None
    with torch.no_grad():
        states = theirs(**padded(ROWS, types, pad=theirs.config.pad_token_id))[0]
    expected = torch.cat([state[: len(row)] for state, row in zip(states, ROWS, strict=True)])
    assert torch.equal(hidden_of(ours, batch_of(ROWS, types)), expected)
    assert report.new == ["head.classifier"]
    assert report.loaded == len(theirs.state_dict())


def test_a_batch_gives_what_each_row_gives_alone(folder: Path) -> None:
    ours, _ = loaded(folder)
    scrambled(ours.head)
    alone = torch.cat([logits_of(ours, batch_of([row])) for row in ROWS])
    assert (logits_of(ours, batch_of(ROWS)) - alone).abs().max() <= 1e-5


@pytest.mark.parametrize(("head", "pooling"), [("auto", "auto"), ("mlp", "mean")])
def test_a_result_is_saved_found_again_and_refused_by_transformers(
    folder: Path, tmp_path: Path, head: str, pooling: str
) -> None:
    ours, _ = loaded(folder, head=head, pooling=pooling)
    scrambled(ours)
    result = _saved(tmp_path / "result", ours, folder)
    assert read_source(result)["model_type"] == "bertune-deberta-v2"
    again, report = load_model(result)
    assert torch.equal(logits_of(again, batch_of(ROWS)), logits_of(ours, batch_of(ROWS)))
    assert again.head.config == ours.head.config
    assert report.new == [] and report.loaded == len(ours.state_dict())
    _, report = loaded(result, head=head, pooling=pooling, keep_head=True)
    assert report.new == []
    with pytest.raises(ValueError, match="bertune-deberta-v2"):
        transformers.AutoModelForSequenceClassification.from_pretrained(result)
    names = load_file(result / "model.safetensors").keys()
    assert {"embeddings.word_embeddings.weight", "bertune_head.classifier.weight"} <= names


def test_dropout_follows_the_noise_and_leaves_the_global_stream_alone(folder: Path) -> None:
    ours, _ = loaded(folder)
    inputs, noise = ours.inputs(batch_of(ROWS)), Noise(torch.device("cpu"))
    before = torch.get_rng_state()

    def states(*key: int) -> torch.Tensor:
        noise.seek(*key, batch_of(ROWS))
        with torch.no_grad():
            return ours.encoder(inputs, noise=noise)

    first = states(1, 2)
    torch.manual_seed(99)
    assert torch.equal(states(1, 2), first)
    assert not torch.equal(states(1, 3), first)
    torch.set_rng_state(before)
    states(5, 1)
    assert torch.equal(torch.get_rng_state(), before)
    plain = hidden_of(ours, batch_of(ROWS))
    assert not torch.equal(plain, first) and torch.equal(plain, hidden_of(ours, batch_of(ROWS)))


def test_it_can_be_trained(folder: Path) -> None:
    ours, _ = loaded(folder)
    loss = torch.nn.functional.cross_entropy(ours(ours.inputs(batch_of(ROWS))), torch.tensor([0, 1, 2, 0]))
    loss.backward()
    assert ours.encoder.module.embeddings.word_embeddings.weight.grad.abs().sum() > 0


def test_bf16_is_close_and_keeps_the_weights_in_fp32(folder: Path) -> None:
    ours, _ = loaded(folder)
    exact = hidden_of(ours, batch_of(ROWS))
    ours.encoder.compute_in(torch.bfloat16)
    close = hidden_of(ours, batch_of(ROWS))
    assert close.dtype == torch.float32 and 0 < (close - exact).norm() / exact.norm() < 0.05
    assert {parameter.dtype for parameter in ours.parameters()} == {torch.float32}


def test_sizes_come_from_the_configuration(folder: Path) -> None:
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 64}), encoding="utf-8")
    config = read_config(folder)
    assert (config.arch, config.hidden, config.layers, config.vocab_size) == ("adapter", 32, 3, 90)
    assert (config.longest_input, config.dropout, config.type_vocab) == (64, 0.1, 2)


def test_another_dropout_rate_reaches_transformers(folder: Path, tmp_path: Path) -> None:
    ours, _ = load_model(folder, head=own_head(folder), dropout=0.35)
    assert ours.encoder.module.config.hidden_dropout_prob == 0.35
    assert ours.encoder.module.config.attention_probs_dropout_prob == 0.35
    assert read_config(_saved(tmp_path / "result", ours, folder)).dropout == 0.35


def test_heads_of_other_tasks_are_left_out_and_counted(tmp_path: Path) -> None:
    _tiny("deberta-v2", transformers.AutoModelForTokenClassification).save_pretrained(tmp_path)
    _, report = loaded(tmp_path)
    assert report.skipped == {"other tasks' heads": ["classifier.bias", "classifier.weight"]}


def test_weights_that_do_not_fit_are_listed(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    dropped = "encoder.layer.1.intermediate.dense.bias"
    save_file({name: tensor for name, tensor in state.items() if name != dropped}, folder / "model.safetensors")
    with pytest.raises(ModelError, match=f"1 is missing: {dropped}"):
        loaded(folder)
    state["embeddings.word_embeddings.weight"] = torch.zeros(91, 32)
    save_file(state, folder / "model.safetensors")
    with pytest.raises(ModelError, match=r"1 is of another shape .*: embeddings\.word_embeddings\.weight"):
        loaded(folder)


def test_weights_of_a_result_that_do_not_fit_are_listed(folder: Path, tmp_path: Path) -> None:
    result = _saved(tmp_path / "result", loaded(folder)[0], folder)
    state = load_file(result / "model.safetensors")
    save_file(state | {"surplus": torch.zeros(1)}, result / "model.safetensors")
    with pytest.raises(ModelError, match="1 is not expected: surplus"):
        load_model(result)


def test_code_in_a_model_folder_is_never_run(folder: Path) -> None:
    raw = read_source(folder) | {"model_type": "home-made", "auto_map": {"AutoConfig": "code.Config"}}
    (folder / "config.json").write_text(json.dumps(raw), encoding="utf-8")
    (folder / "code.py").write_text("raise SystemExit('this ran')", encoding="utf-8")
    with pytest.raises(ModelError, match=r"'home-made' is not one of bert, .* code inside a model folder is never run"):
        read_config(folder)


def test_layers_cannot_be_skipped(folder: Path) -> None:
    ours, _ = loaded(folder)
    inputs = ours.inputs(batch_of(ROWS))
    with pytest.raises(ModelError, match="computed whole"):
        ours.encoder(inputs, stop=1)
