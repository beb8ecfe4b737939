"""config.json becomes what the encoder is built from, in all spellings that are about, or a clear error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import transformers

from bertune.errors import MissingExtraError, ModelError
from bertune.model.load import hub_config, load_model, read_config, read_source
from tiny_models import configure, own_head, tiny

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the configuration of a tiny bert."""
    tiny("bert").config.save_pretrained(tmp_path)
    return tmp_path


def test_a_folder_without_a_readable_configuration_says_what_it_should_hold(folder: Path) -> None:
    with pytest.raises(ModelError, match=r"no config\.json here; a model folder holds"):
        read_config(folder / "nowhere")
    (folder / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(ModelError, match=r"config\.json: not readable as JSON"):
        read_config(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"position_embedding_type": "relative_key"}, "'relative_key', but only absolute positions"),
        ({"is_decoder": True}, "a decoder does not see the whole text"),
        ({"add_cross_attention": True}, "cross-attention"),
        ({"hidden_act": "mish"}, "'hidden_act' is 'mish'; expected one of gelu,"),
        ({"hidden_size": "big"}, "'hidden_size' is 'big'; expected a value like 768"),
        ({"num_attention_heads": 0}, "'num_attention_heads' is 0; expected at least 1"),
        (
            {"num_attention_heads": 5},
            r"config\.json: 'num_attention_heads' is 5, which does not divide the hidden size, \d+\.$",
        ),
        ({"architectures": 5}, r"config\.json: 'architectures' is 5; expected a list of names. Correct it, or take it"),
        ({"hidden_dropout_prob": 1.5}, "a dropout rate lies between 0 and 1"),
        ({"model_type": ..., "type_vocab_size": 1}, "'model_type' is missing; state it, as one of bert, roberta"),
        ({"model_type": "bret"}, "model type 'bret' is not one of bert, .*; did you mean 'bert'"),
        ({"model_type": "gpt2"}, "is not an encoder of text"),
    ],
)
def test_configurations_that_cannot_be_computed_are_refused(
    folder: Path, changes: dict[str, Any], message: str
) -> None:
    configure(folder, **changes)
    with pytest.raises(ModelError, match=message):
        read_config(folder)


def test_an_unknown_type_names_the_extra_that_may_know_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configure(folder, model_type="deberta-v2")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"'deberta-v2' is not one of bert, .* the adapter .*bertune\[hf\]"):
        read_config(folder)


def test_old_bert_files_need_not_state_their_type(folder: Path) -> None:
    expected = read_config(folder)
    configure(folder, model_type=..., architectures=...)
    assert read_config(folder) == expected


def test_what_a_configuration_leaves_out_has_the_default_of_transformers(tmp_path: Path) -> None:
    for kind in ("bert", "roberta", "distilbert", "electra", "modernbert"):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}), encoding="utf-8")
        bare = read_config(tmp_path)
        transformers.AutoConfig.for_model(kind).save_pretrained(tmp_path)
        assert read_config(tmp_path) == bare


def test_both_spellings_of_modernbert_mean_the_same(tmp_path: Path) -> None:
    older = {
        "model_type": "modernbert", "num_hidden_layers": 6, "global_attn_every_n_layers": 2, "local_attention": 20,
        "global_rope_theta": 1234.0, "local_rope_theta": 99.0,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(older), encoding="utf-8")
    config = read_config(tmp_path)
    assert (config.local_layers, config.local_window) == ((1, 3, 5), 10)
    assert (config.rope_global, config.rope_local) == (1234.0, 99.0)
    transformers.AutoConfig.from_pretrained(tmp_path).save_pretrained(tmp_path)
    assert "layer_types" in read_source(tmp_path) and "global_rope_theta" not in read_source(tmp_path)
    assert read_config(tmp_path) == config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer_types": ["full_attention"]}, "'layer_types' is"),
        ({"rope_parameters": {"full_attention": {"rope_type": "yarn"}}}, "only plain rotary positions"),
        ({"classifier_pooling": "max"}, "expected one of cls, mean"),
    ],
)
def test_modernberts_that_cannot_be_computed_are_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    tiny("modernbert").config.save_pretrained(tmp_path)
    configure(tmp_path, **changes)
    with pytest.raises(ModelError, match=message):
        read_config(tmp_path)


@pytest.mark.parametrize("kind", ["roberta", "distilbert", "electra", "modernbert", "d2l-bert"])
def test_heads_that_do_not_divide_the_hidden_size_are_told_with_the_file(tmp_path: Path, kind: str) -> None:
    config = {"model_type": kind, "num_attention_heads": 7, "n_heads": 7}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ModelError, match=r"config\.json: '.*heads' is 7, which does not divide the hidden size"):
        read_config(tmp_path)


def test_the_longest_input_leaves_out_positions_that_roberta_does_not_use(tmp_path: Path) -> None:
    tiny("roberta").config.save_pretrained(tmp_path)
    assert read_config(tmp_path).longest_input == 80 - 2


def test_one_dropout_rate_reaches_every_place(tmp_path: Path) -> None:
    for case in ("bert", "distilbert", "modernbert"):
        tiny(case).save_pretrained(tmp_path)
        model, _ = load_model(tmp_path, head=own_head(tmp_path), dropout=0.35)
        config = model.encoder.config
        inside = config.ffn_dropout if case == "modernbert" else config.dropout
        assert (config.attention_dropout, inside) == (0.35, 0.35)
        source, problem = read_source(tmp_path), "single_label_classification"
        result = hub_config(model, source, labels=("a", "b", "c"), problem_type=problem)
        (tmp_path / "config.json").write_text(json.dumps(result), encoding="utf-8")
        assert read_config(tmp_path) == config
