"""Weights come from the file or are new and said to be; what does not fit is listed; what is saved is found again."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from bertune.errors import ModelError
from bertune.model.heads import HeadConfig
from bertune.model.load import (
    LoadReport,
    hub_config,
    hub_state,
    load_model,
    opens_in_transformers,
    read_source,
    save_model,
)  # fmt: skip
from tiny_models import CASES, batch_of, configure, hidden_of, loaded, logits_of, padded, random_rows, scrambled, tiny

pytestmark = pytest.mark.usefixtures("one_thread")
BATCH = batch_of(random_rows([20, 9, 3]))
LABELS = ("a", "b", "c")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny bert, as transformers saves it: without prefix, with its pooler."""
    tiny("bert").save_pretrained(tmp_path)
    return tmp_path


def _rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors")


def _save(folder: Path, model: Any, source: Path) -> Path:
    folder.mkdir()
    save_model(folder, model, read_source(source), labels=LABELS, problem_type="single_label_classification")
    return folder


# Reading weights


@pytest.mark.parametrize("legacy", [False, True])
def test_pytorch_files_load_like_safetensors(folder: Path, legacy: bool) -> None:
    expected = hidden_of(loaded(folder)[0], BATCH)
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin", _use_new_zipfile_serialization=not legacy)
    assert torch.equal(hidden_of(loaded(folder)[0], BATCH), expected)


def test_a_pickle_that_runs_code_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"embeddings.LayerNorm.weight": Path("x")}, folder / "pytorch_model.bin")
    place = re.escape(str(folder / "pytorch_model.bin"))
    words = (
        rf"{place}: refused: it asks to run 'pathlib\S+Path' on being opened, and must hold tensors alone\. "
        r"Get the file from its publisher, or a safetensors version of it\.$"
    )
    with pytest.raises(ModelError, match=words):
        loaded(folder)


def test_sharded_files_load_like_one(folder: Path, tmp_path: Path) -> None:
    tiny("bert").save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    assert torch.equal(hidden_of(loaded(tmp_path / "shards")[0], BATCH), hidden_of(loaded(folder)[0], BATCH))


def test_names_may_carry_the_prefix_and_legacy_endings(folder: Path) -> None:
    expected = hidden_of(loaded(folder)[0], BATCH)

    def older(name: str) -> str:
        if "LayerNorm" in name:
            name = name.replace("weight", "gamma").replace("bias", "beta")
        return f"bert.{name}"

    _rewrite(folder, lambda state: {older(name): tensor for name, tensor in state.items()})
    norms = sum("LayerNorm" in name for name in load_file(folder / "model.safetensors"))
    model, report = loaded(folder)
    assert torch.equal(hidden_of(model, BATCH), expected)
    assert report.renamed == norms == 14
    assert f"weights ({norms} under legacy names)" in report.sentence()


def test_half_precision_files_become_fp32(folder: Path) -> None:
    _rewrite(folder, lambda state: {name: tensor.bfloat16() for name, tensor in state.items()})
    model, _ = loaded(folder)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("case", "head", "skipped"),
    [
        ("bert", "PreTraining", 7),  # the decoder of masked words is tied to the embeddings and not saved
        ("roberta", "MaskedLM", 5),
        ("camembert", "QuestionAnswering", 2),
        ("distilbert", "MaskedLM", 5),
        ("electra", "MaskedLM", 5),
        ("electra", "PreTraining", 4),
        ("modernbert", "TokenClassification", 2),
        ("xlm-roberta", "TokenClassification", 2),
    ],
)
def test_heads_of_other_tasks_are_left_out_and_counted(case: str, head: str, skipped: int, tmp_path: Path) -> None:
    theirs = tiny(case, head=head)
    theirs.save_pretrained(tmp_path)
    model, report = loaded(tmp_path)
    found = len(report.skipped["other tasks' heads"])
    total = len(load_file(tmp_path / "model.safetensors"))
    assert found + report.loaded == total
    assert found == skipped
    assert f"left out: other tasks' heads ({found})" in report.sentence()
    assert torch.equal(model.encoder.embeddings.word.weight, theirs.get_input_embeddings().weight)


def test_buffers_are_left_out_and_counted(folder: Path) -> None:
    _rewrite(folder, lambda state: state | {"embeddings.position_ids": torch.arange(80)[None]})
    _, report = loaded(folder)
    assert report.skipped == {"buffers": ["embeddings.position_ids"]}
    assert report.sentence() == "Loaded 55 weights; left out: buffers (1). New weights: head.classifier."


# New weights


def test_a_missing_pooler_is_new_and_said_to_be(folder: Path) -> None:
    _rewrite(folder, lambda state: {name: tensor for name, tensor in state.items() if "pooler" not in name})
    _, report = loaded(folder)
    assert report.new == ["head.dense", "head.classifier"]
    assert report.sentence().endswith("New weights: head.dense, head.classifier.")


def test_what_pretraining_leaves_of_a_head_is_used(tmp_path: Path) -> None:
    theirs = tiny("modernbert", head="MaskedLM")
    theirs.save_pretrained(tmp_path)
    model, report = loaded(tmp_path)
    assert report.new == ["head.classifier"]
    assert torch.equal(model.head.dense.weight, theirs.head.dense.weight)
    assert torch.equal(model.head.norm.weight, theirs.head.norm.weight)


def test_new_weights_depend_on_the_seed_alone(folder: Path) -> None:
    state = torch.get_rng_state()
    with_pooler = loaded(folder, seed=3)[0].head.classifier.weight
    assert torch.equal(torch.get_rng_state(), state)  # nobody else's random numbers are used up
    _rewrite(folder, lambda state: {name: tensor for name, tensor in state.items() if "pooler" not in name})
    assert torch.equal(loaded(folder, seed=3)[0].head.classifier.weight, with_pooler)
    assert not torch.equal(loaded(folder, seed=4)[0].head.classifier.weight, with_pooler)
    assert float(with_pooler.detach().std()) == pytest.approx(0.02, rel=0.3)


def test_a_trained_head_is_kept_only_where_it_is_asked_for_and_fits(tmp_path: Path) -> None:
    theirs = tiny("roberta", head="SequenceClassification", labels=3)
    theirs.save_pretrained(tmp_path)
    kept, report = loaded(tmp_path, keep_head=True)
    assert report.new == [] and torch.equal(kept.head.classifier.weight, theirs.classifier.out_proj.weight)
    for arguments in ({}, {"keep_head": True, "labels": 4}, {"keep_head": True, "head": "mlp"}):
        fresh, report = loaded(tmp_path, **arguments)  # type: ignore[arg-type]
        assert report.new == ["head.dense", "head.classifier"]
        assert len(report.skipped["other tasks' heads"]) == 4
        assert not torch.equal(fresh.head.dense.weight[:3], theirs.classifier.dense.weight[:3])


def test_another_task_with_as_many_labels_is_not_taken_for_the_head(tmp_path: Path) -> None:
    tiny("bert", head="TokenClassification").save_pretrained(tmp_path)
    assert loaded(tmp_path, keep_head=True)[1].new == ["head.dense", "head.classifier"]


def test_an_encoder_alone_cannot_predict(folder: Path) -> None:
    with pytest.raises(ModelError, match="an encoder without a classifier; train one"):
        load_model(folder)


# Files that do not fit


def test_missing_weights_are_listed(folder: Path) -> None:
    _rewrite(folder, lambda state: {name: tensor for name, tensor in state.items() if "layer.1." not in name})
    with pytest.raises(ModelError) as caught:
        loaded(folder)
    assert "16 are missing: encoder.layer.1.attention.self.query.weight, " in str(caught.value)
    assert "(+4 more)" in str(caught.value)


def test_unexpected_weights_are_listed(folder: Path) -> None:
    _rewrite(folder, lambda state: state | {"encoder.layer.1.adapter.weight": torch.zeros(2), "extra": torch.zeros(2)})
    with pytest.raises(ModelError, match=r"2 are not expected: encoder.layer.1.adapter.weight, extra\."):
        loaded(folder)


def test_wrong_shapes_are_listed(folder: Path) -> None:
    configure(folder, vocab_size=91)
    with pytest.raises(ModelError, match=r"1 is of another shape .*word_embeddings.* \[90, 32\] instead of \[91, 32\]"):
        loaded(folder)


def test_too_few_layers_in_the_configuration_are_noticed(folder: Path) -> None:
    configure(folder, num_hidden_layers=2)
    with pytest.raises(ModelError, match=r"16 are not expected: encoder\.layer\.2"):
        loaded(folder)


def test_quantised_weights_are_refused(folder: Path) -> None:
    _rewrite(folder, lambda state: state | {"pooler.dense.weight": torch.zeros(32, 32, dtype=torch.int8)})
    with pytest.raises(ModelError, match=r"1 is not of floating-point numbers, .*: pooler\.dense\.weight"):
        loaded(folder)


def test_the_same_weight_under_two_names_is_refused(folder: Path) -> None:
    _rewrite(folder, lambda state: state | {"bert.pooler.dense.bias": torch.zeros(32)})
    with pytest.raises(ModelError, match=r"'pooler\.dense\.bias' is there twice"):
        loaded(folder)


def test_a_folder_without_weights_says_what_it_should_hold(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"has no weights: expected model\.safetensors"):
        loaded(folder)


def test_a_damaged_file_is_an_error(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:1000])
    with pytest.raises(ModelError, match=r"model\.safetensors"):
        loaded(folder)


# Saving


@pytest.mark.parametrize(("head", "pooling"), [("linear", "mean"), ("mlp", "cls"), ("auto", "max")])
def test_a_head_of_our_own_is_found_again_and_refused_by_transformers(
    folder: Path, tmp_path: Path, head: str, pooling: str
) -> None:
    model, _ = loaded(folder, head=head, pooling=pooling)
    scrambled(model.head)
    result = _save(tmp_path / "result", model, folder)
    again, report = load_model(result)
    assert torch.equal(logits_of(again, BATCH), logits_of(model, BATCH))
    assert again.head.config == model.head.config
    assert report.new == [] and report.skipped == {}
    assert read_source(result)["model_type"] == "bertune-bert"
    assert not opens_in_transformers("bert", model.head.config)
    with pytest.raises(ValueError, match="bertune-bert"):
        transformers.AutoModelForSequenceClassification.from_pretrained(result)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_both_poolings_of_modernbert_open_in_transformers(tmp_path: Path, pooling: str) -> None:
    source = tmp_path / "source"
    tiny("modernbert").save_pretrained(source)
    model, _ = loaded(source, pooling=pooling)
    scrambled(model.head)
    result = _save(tmp_path / "result", model, source)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(result).eval()
    rows = random_rows([5, 9, 20])
    with torch.no_grad():
        wanted = theirs(**padded(rows)).logits

    assert theirs.config.classifier_pooling == pooling
    assert torch.allclose(logits_of(model, batch_of(rows)), wanted, atol=1e-5)


def test_training_goes_on_from_an_earlier_result(folder: Path, tmp_path: Path) -> None:
    first, _ = loaded(folder, head="mlp", pooling="mean")
    result = _save(tmp_path / "first", scrambled(first), folder)
    same, report = loaded(result, head="mlp", pooling="mean", keep_head=True)
    assert report.new == [] and torch.equal(logits_of(same, BATCH), logits_of(first, BATCH))
    other, report = loaded(result, head="mlp", pooling="max", keep_head=True)  # trained to read something else
    assert report.new == ["head.dense", "head.classifier"]
    assert torch.equal(hidden_of(other, BATCH), hidden_of(first, BATCH))
    own, report = loaded(result)
    assert report.new == ["head.dense", "head.classifier"]
    again = _save(tmp_path / "again", own, result)
    assert read_source(again)["model_type"] == "bert"
    transformers.AutoModelForSequenceClassification.from_pretrained(again)


def test_a_result_can_be_written_over_the_folder_it_came_from(folder: Path) -> None:
    model, _ = loaded(folder)
    before = logits_of(model, BATCH)
    save_model(folder, model, read_source(folder), labels=LABELS, problem_type="single_label_classification")
    assert torch.equal(logits_of(model, BATCH), before)
    assert torch.equal(logits_of(load_model(folder)[0], BATCH), before)


def test_saving_and_loading_name_every_weight_alike(folder: Path) -> None:
    for case in CASES:
        theirs = tiny(case, head="SequenceClassification")
        theirs.save_pretrained(folder)
        state = hub_state(load_model(folder)[0])
        expected = theirs.state_dict()
        assert state.keys() == expected.keys()
        assert all(torch.equal(state[name], expected[name]) and state[name].is_contiguous() for name in state)


def test_the_saved_configuration_keeps_no_stale_fields(folder: Path) -> None:
    model, _ = loaded(folder)
    source = read_source(folder) | {"torch_dtype": "bfloat16", "auto_map": {"AutoModel": "x.y"}, "_name_or_path": "x"}
    config = hub_config(model, source, labels=LABELS, problem_type="multi_label_classification")
    assert not {"torch_dtype", "auto_map", "_name_or_path", "transformers_version"} & config.keys()
    assert config["dtype"] == "float32"
    assert config["architectures"] == ["BertForSequenceClassification"]
    assert config["classifier_dropout"] == 0.3
    assert list(config["id2label"].values()) == list(LABELS)


def test_labels_must_be_as_many_as_outputs(folder: Path) -> None:
    model, _ = loaded(folder)
    with pytest.raises(ModelError, match="3 outputs, but there are 2 labels"):
        hub_config(model, read_source(folder), labels=("a", "b"), problem_type="single_label_classification")


def test_only_an_architectures_own_head_opens_in_transformers() -> None:
    own = HeadConfig(kind="own", pooling="cls", num_labels=2, dropout=0.1)
    linear = HeadConfig(kind="linear", pooling="cls", num_labels=2, dropout=0.1)
    assert opens_in_transformers("electra", own)
    assert not opens_in_transformers("electra", linear)
    assert not opens_in_transformers("d2l", own)


def test_a_report_without_anything_special_is_short() -> None:
    assert LoadReport(loaded=7).sentence() == "Loaded 7 weights."
