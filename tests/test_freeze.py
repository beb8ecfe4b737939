"""Frozen weights stay what they were to the last bit, and their layers run once without changing any answer."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import bertune
from bertune.data.batch import make_batch
from bertune.data.ragged import Encoded
from bertune.errors import ConfigError
from bertune.training.features import Features, first_trained_layer, keeps_states
from bertune.training.optim import freeze
from bertune.training.run import Result
from technique_runs import Stop, Stopper
from tiny_models import batch_of, loaded, random_rows, types_of
from tiny_runs import QUICK, VOCABULARY, Told, make_tiny_bert, topic_rows

pytestmark = pytest.mark.usefixtures("one_thread", "no_pictures")

ROWS = topic_rows(60)
EMBEDDINGS, LAYER_0, LAYERS = "bert.embeddings.", "bert.encoder.layer.0.", "bert.encoder.layer."


def train(folder: Path, model: Path, *, resume: bool = False, listener: Any = None, **settings: Any) -> Result:
    named = {name.replace("__", "."): value for name, value in settings.items()}
    return bertune.train(
        ROWS, out=folder, model=model, settings=QUICK | named, resume=resume, listener=listener or Told()
    )


def changes(result: Result, model: Path) -> dict[str, bool]:
    """Which weights of the pretrained file differ in the saved one; fp32 in both."""
    before, after = load_file(model / "model.safetensors"), load_file(result.out / "model.safetensors")
    assert all(value.dtype == torch.float32 for value in after.values())
    return {f"bert.{name}": not torch.equal(value, after[f"bert.{name}"]) for name, value in before.items()}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("what", "frozen"),
    [
        ("none", ()),
        ("embeddings", (EMBEDDINGS,)),
        ("1", (EMBEDDINGS, LAYER_0)),
        ("2", (EMBEDDINGS, LAYERS)),
        ("encoder", (EMBEDDINGS, LAYERS)),
    ],
)
def test_frozen_weights_are_saved_as_they_came_to_the_last_bit_and_all_others_are_trained(
    tmp_path: Path, tiny_bert: Path, what: str, frozen: tuple[str, ...], precision: str
) -> None:
    result = train(tmp_path / "out", tiny_bert, model__freeze=what, train__precision=precision, train__max_steps=4)

    for name, changed in changes(result, tiny_bert).items():
        assert changed == (not name.startswith(frozen) if frozen else True), name
    assert not list((result.out / "run").glob("frozen-*"))


def test_positions_that_are_not_trained_stay_as_they_came(tmp_path: Path, tiny_bert: Path) -> None:
    result = train(tmp_path / "out", tiny_bert, model__train_positions=False, train__max_steps=4)
    untouched = [name for name, changed in changes(result, tiny_bert).items() if not changed]

    assert untouched == ["bert.embeddings.position_embeddings.weight"]


def encoded_rows() -> Encoded:
    rows = random_rows([3, 9, 9, 5, 14, 4, 7], vocabulary=len(VOCABULARY))
    offsets = np.cumsum([0, *map(len, rows)])
    return Encoded(
        np.concatenate(rows).astype(np.int32), np.concatenate(types_of(rows)).astype(np.uint8),
        offsets.astype(np.int64), np.diff(offsets).astype(np.int32),
    )  # fmt: skip


@pytest.mark.parametrize("pooling", ["cls", "mean", "max"])
@pytest.mark.parametrize(("what", "layers", "combine"), [
    ("1", "last", "auto"), ("2", "last", "auto"), ("encoder", "last", "auto"), ("1", "2", "auto"), ("3", "1", "auto"),
    ("1", "last-3", "concat"), ("2", "last-2", "mix"), ("encoder", "first-2", "concat"),
])  # fmt: skip
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)], ids=["fp32", "bf16"])
def test_logits_from_kept_states_are_those_of_the_whole_model(
    tmp_path: Path, what: str, layers: str, combine: str, pooling: str, dtype: torch.dtype, tolerance: float
) -> None:
    folder = make_tiny_bert(tmp_path / "model", layers=4)
    model, _ = loaded(folder, pooling=pooling, layers=layers, combine=combine)
    model.encoder.compute_in(dtype)
    freeze(model, what, train_positions=True)
    encoded = encoded_rows()
    start = first_trained_layer(what, 4)
    assert keeps_states(model, start)
    features = Features(model, encoded, start=start, budget=20, path=tmp_path / "states.tmp")
    batch = make_batch(encoded, np.array([5, 1, 4, 0]))
    with torch.no_grad():
        found, wanted = features.logits(model, batch, None), model(model.inputs(batch))

    assert torch.allclose(found, wanted, rtol=0, atol=tolerance)
    features.close()
    assert not (tmp_path / "states.tmp").exists()


@pytest.mark.parametrize(("what", "layers"), [("2", "first-3"), ("2", "all"), ("3", "last-2")])
def test_states_are_not_kept_where_the_head_reads_below_them(tmp_path: Path, what: str, layers: str) -> None:
    model, _ = loaded(make_tiny_bert(tmp_path / "model", layers=4), layers=layers, combine="concat")
    freeze(model, what, train_positions=True)

    assert not keeps_states(model, first_trained_layer(what, 4))


def test_kept_states_carry_gradients_to_the_layers_above_alone(tmp_path: Path, tiny_bert: Path) -> None:
    model, _ = loaded(tiny_bert)
    freeze(model, "1", train_positions=True)
    encoded = encoded_rows()
    features = Features(model, encoded, start=1, budget=50, path=tmp_path / "states.tmp")
    features.logits(model, make_batch(encoded, np.arange(7)), None).square().sum().backward()

    for name, value in model.named_parameters():
        assert (value.grad is not None) == (not name.startswith(("encoder.embeddings", "encoder.layers.0."))), name
    features.close()


class TestWithoutRoom:
    """Where the disk has no room for the states, frozen layers run in every epoch; the result is the same."""

    @pytest.fixture
    def no_room(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("bertune.training.fit.free_disk", lambda folder: 0)

    def test_states_computed_anew_train_the_same_model_dropout_included(
        self, tmp_path: Path, tiny_bert: Path, no_room: None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        told = Told()
        anew = train(tmp_path / "anew", tiny_bert, model__freeze="1", listener=told)
        assert any("every epoch computes it anew" in text for text in told.said)
        monkeypatch.setattr("bertune.training.fit.free_disk", lambda folder: 10**12)
        told = Told()
        kept = train(tmp_path / "kept", tiny_bert, model__freeze="1", listener=told)
        assert "Frozen layers: 1. They run once, and their output is kept." in told.said

        left, right = (load_file(result.out / "model.safetensors") for result in (anew, kept))
        # Keys need no bias (softmax does not see it), so Adam trains theirs on rounding noise.
        names = [name for name in left if not name.endswith("self.key.bias")]
        assert all(torch.allclose(left[name], right[name], rtol=0, atol=1e-3) for name in names)

    def test_a_resumed_run_does_as_it_did_before_whatever_room_there_is_now(
        self, tmp_path: Path, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        settings = {"model__freeze": "1", "train__checkpoint_steps": 2}
        whole = train(tmp_path / "whole", tiny_bert, **settings)
        with pytest.raises(Stop):
            train(tmp_path / "out", tiny_bert, **settings, listener=Stopper(5))
        monkeypatch.setattr("bertune.training.fit.free_disk", lambda folder: 0)
        resumed = train(tmp_path / "out", tiny_bert, **settings, resume=True)

        assert (resumed.out / "model.safetensors").read_bytes() == (whole.out / "model.safetensors").read_bytes()


def test_the_last_norm_of_modernbert_is_trained_where_only_its_layers_are_frozen(tmp_path: Path) -> None:
    from tiny_models import tiny

    folder = tmp_path / "model"
    tiny("modernbert").save_pretrained(folder)
    model, _ = loaded(folder)
    layers = model.encoder.config.layers
    freeze(model, str(layers), train_positions=True)
    encoded = encoded_rows()
    features = Features(model, encoded, start=layers, budget=50, path=tmp_path / "states.tmp")
    logits = features.logits(model, make_batch(encoded, np.arange(7)), None)
    logits.square().sum().backward()

    assert model.encoder.final_norm is not None
    assert model.encoder.final_norm.weight.grad is not None
    features.close()


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny encoder outside the family, which transformers runs."""
    import transformers

    config = transformers.MegatronBertConfig(
        vocab_size=len(VOCABULARY), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=64,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("foreign")
    transformers.MegatronBertModel(config).save_pretrained(folder)
    shutil.copy(make_tiny_bert(folder / "bert") / "vocab.txt", folder)
    return folder


def test_an_encoder_run_by_transformers_can_be_frozen_whole(tmp_path: Path, foreign: Path) -> None:
    result = train(tmp_path / "out", foreign, model__freeze="encoder", train__max_steps=3)
    before, after = load_file(foreign / "model.safetensors"), load_file(result.out / "model.safetensors")
    word = "embeddings.word_embeddings.weight"
    stem = next(name.removesuffix(word) for name in after if name.endswith(word))
    shared = [name for name in before if stem + name in after]

    assert len(shared) > 30
    assert all(torch.equal(before[name], after[stem + name]) for name in shared)


@pytest.mark.parametrize("settings", [{"model__freeze": "1"}, {"model__train_positions": False}])
def test_an_encoder_run_by_transformers_cannot_be_frozen_in_part(
    tmp_path: Path, foreign: Path, settings: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError, match="an encoder outside the family is trained whole or not at all"):
        train(tmp_path / "out", foreign, **settings)
    assert not (tmp_path / "out").exists()


def test_rows_of_one_batch_do_not_see_each_other(tiny_bert: Path) -> None:
    model, _ = loaded(tiny_bert)
    rows = random_rows([4, 11, 6], vocabulary=len(VOCABULARY))
    with torch.no_grad():
        together = model(model.inputs(batch_of(rows)))
        alone = torch.cat([model(model.inputs(batch_of([row]))) for row in rows])

    assert torch.allclose(together, alone, rtol=0, atol=1e-5)
