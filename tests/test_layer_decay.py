"""Layer-wise decay reaches the weights that it should, by name, and what each learns follows from its rate alone."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from bertune.config import TrainConfig
from bertune.errors import ConfigError
from bertune.training.optim import WORDS, Optimizer, freeze
from bertune.training.rates import layer_factors, learning_rates
from technique_runs import changed, same_bits, saved, stopped_and_resumed, train
from tiny_models import batch_of, loaded, tiny
from tiny_runs import make_tiny_bert

pytestmark = pytest.mark.usefixtures("one_thread", "no_pictures")

LAYER = ("qkv.weight", "qkv.bias", "out.weight", "out.bias", "norm1.weight", "norm1.bias", "up.weight", "up.bias",
         "down.weight", "down.bias", "norm2.weight", "norm2.bias")  # fmt: skip
EMBEDDINGS = ("word.weight", "position.weight", "segment.weight", "norm.weight", "norm.bias")
HEAD = ("head.dense.weight", "head.dense.bias", "head.classifier.weight", "head.classifier.bias")


def config(**values: Any) -> TrainConfig:
    return TrainConfig.model_validate({"layer_decay": 0.5, "warmup": 0.0, "schedule": "constant"} | values)


@pytest.mark.parametrize(("on", "embeddings"), [("all", 0.25), ("encoder", 1.0)])
def test_each_weight_has_the_factor_of_its_layer(tiny_bert: Path, on: str, embeddings: float) -> None:
    model, _ = loaded(tiny_bert)
    found = layer_factors(dict(model.named_parameters()), layers=2, decay=0.5, on=on)

    assert found == {
        **{f"encoder.embeddings.{name}": embeddings for name in EMBEDDINGS},
        **{f"encoder.layers.0.{name}": 0.5 for name in LAYER},
        **{f"encoder.layers.1.{name}": 1.0 for name in LAYER},
        **dict.fromkeys(HEAD, 1.0),
    }


def test_the_top_of_modernbert_has_the_rate_of_its_top_layer(tmp_path: Path) -> None:
    tiny("modernbert").save_pretrained(tmp_path)
    model, _ = loaded(tmp_path)
    found = layer_factors(dict(model.named_parameters()), layers=5, decay=0.5, on="all")

    assert found["encoder.final_norm.weight"] == found["encoder.layers.4.out.weight"] == 1.0
    assert found["encoder.layers.0.out.weight"] == 0.5**4
    assert found["encoder.embeddings.word.weight"] == 0.5**5
    assert found["head.norm.weight"] == 1.0


@pytest.mark.parametrize("on", ["all", "encoder"])
def test_the_first_step_moves_every_weight_by_its_own_rate(tiny_bert: Path, on: str) -> None:
    """The first step of Adam is as long as the rate, whatever the gradient: so the moves show the rates."""
    model, _ = loaded(tiny_bert)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    optimizer = Optimizer(
        model, config(layer_decay_on=on, weight_decay=0.0, eps=1e-30), lr=1e-3, head_lr=4e-3, steps=1, full={}
    )
    batch = batch_of([[5, 6, 7, 8], [9, 10, 11]])
    optimizer.begin(1)
    look_up = optimizer.words(batch.ids, 1)
    assert look_up is not None
    torch.nn.functional.cross_entropy(
        model(model.inputs(batch), words=look_up(batch.ids)), torch.tensor([0, 2])
    ).backward()
    optimizer.collect()
    optimizer.apply(1)
    optimizer.finish(1)

    factors = layer_factors(before, layers=2, decay=0.5, on=on)
    for name, value in model.named_parameters():
        rate = 4e-3 if name.startswith("head.") else 1e-3 * factors[name]
        assert float((value.detach() - before[name]).abs().max()) == pytest.approx(rate, rel=1e-3), name


def test_token_embeddings_that_are_updated_by_row_have_their_scaled_rates_at_every_step(tiny_bert: Path) -> None:
    model, _ = loaded(tiny_bert)
    values = config(schedule="linear")
    optimizer = Optimizer(model, values, lr=1e-3, steps=40, full={})

    assert optimizer.rows is not None
    assert np.allclose(optimizer.rows.rates[1:], 0.25 * learning_rates(values, peak=1e-3, steps=40))
    assert optimizer.scales[WORDS] == 0.25


def test_layers_that_are_frozen_do_not_shift_the_others(tiny_bert: Path) -> None:
    model, _ = loaded(tiny_bert)
    freeze(model, "1", train_positions=True)
    optimizer = Optimizer(model, config(), lr=1e-3, steps=3, full={})

    assert set(optimizer.scales) == {f"encoder.layers.1.{name}" for name in LAYER} | set(HEAD)
    assert set(optimizer.scales.values()) == {1.0}


def test_a_strong_decay_leaves_the_bottom_nearly_as_it_was(tmp_path: Path, tiny_bert: Path) -> None:
    result = train(tmp_path / "out", tiny_bert, train__layer_decay=0.01, train__weight_decay=0.0)
    before, after = load_file(tiny_bert / "model.safetensors"), saved(result)

    def moved(name: str) -> float:
        return float((after[f"bert.{name}"] - before[name]).abs().max())

    top = moved("encoder.layer.1.output.dense.weight")
    assert moved("encoder.layer.0.output.dense.weight") < 0.05 * top
    assert moved("embeddings.word_embeddings.weight") < 0.005 * top
    assert len(changed(result, tiny_bert)) > 30


def test_a_resumed_run_ends_with_the_same_bits(tmp_path: Path, tiny_bert: Path) -> None:
    settings = {"train__layer_decay": 0.8, "train__schedule": "slanted-triangular", "train__optimizer": "bert-adam"}
    whole = train(tmp_path / "whole", tiny_bert, **settings)

    assert same_bits(stopped_and_resumed(tmp_path / "out", tiny_bert, at=8, **settings), whole)


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny encoder outside the family, which transformers runs."""
    import transformers

    from tiny_runs import VOCABULARY

    shape = transformers.MegatronBertConfig(
        vocab_size=len(VOCABULARY), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=64,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("foreign")
    transformers.MegatronBertModel(shape).save_pretrained(folder)
    shutil.copy(make_tiny_bert(folder / "bert") / "vocab.txt", folder)
    return folder


@pytest.mark.parametrize(("name", "value", "told"), [
    ("train__layer_decay", 0.9, "--layer-decay 0.9"), ("train__unfreeze", "epoch", "--unfreeze epoch"),
    ("train__mixout", 0.5, "--mixout 0.5"), ("train__adversarial", "freelb", "--adversarial freelb"),
    ("model__reinit_layers", 1, "--reinit-layers 1"), ("model__lora", 4, "--lora 4"),
])  # fmt: skip
def test_what_looks_inside_an_encoder_is_refused_for_one_run_by_transformers(
    tmp_path: Path, foreign: Path, name: str, value: Any, told: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        train(tmp_path / "out", foreign, **{name: value})

    assert str(caught.value) == (
        f"{told}: an encoder outside the family is trained as a whole, without a look inside. Leave it out."
    )
    assert not (tmp_path / "out").exists()


def test_r_drop_and_averages_are_for_every_encoder(tmp_path: Path, foreign: Path) -> None:
    result = train(tmp_path / "out", foreign, train__r_drop=1.0, train__average="ema", train__max_steps=3)

    assert result.metrics["train"]["steps"] == 3
