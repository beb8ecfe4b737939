"""The head reads the layers that were asked for, combined and pooled as asked, and nothing above them trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import bertune
from bertune.bundle import Bundle
from bertune.config import TrainConfig
from bertune.errors import ConfigError
from bertune.model.heads import Attend, Mix, chosen_layers
from bertune.model.load import read_config
from bertune.training.optim import WORDS, Optimizer, freeze
from technique_runs import Stop, Stopper
from tiny_models import batch_of, loaded, padded, random_rows, tiny
from tiny_runs import QUICK, VOCABULARY, Told, make_tiny_bert, topic_rows

pytestmark = pytest.mark.usefixtures("one_thread", "no_pictures")

ROWS = random_rows([5, 9, 3], vocabulary=len(VOCABULARY))


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT of four layers."""
    return make_tiny_bert(tmp_path_factory.mktemp("models") / "four", layers=4)


def train(out: Path, model: Path, *, told: Told | None = None, resume: bool = False, **settings: Any) -> Any:
    changed = {name.replace("__", "."): value for name, value in settings.items()}
    return bertune.train(
        topic_rows(60), out=out, model=model, settings=QUICK | changed, listener=told or Told(), resume=resume
    )


@pytest.mark.parametrize(
    ("layers", "numbers"),
    [
        ("last", ()), ("3", ()), ("last-1", ()), ("0", (0,)), ("2", (2,)), ("first-1", (0,)), ("first-2", (0, 1)),
        ("last-2", (2, 3)), ("last-4", (0, 1, 2, 3)), ("all", (0, 1, 2, 3)),
    ],
)  # fmt: skip
def test_names_of_layers_are_their_numbers_from_the_lowest(four: Path, layers: str, numbers: tuple[int, ...]) -> None:
    assert chosen_layers(layers, read_config(four)) == numbers


@pytest.mark.parametrize("layers", ["4", "first-5", "last-0", "first-0"])
def test_layers_that_the_encoder_lacks_are_refused_with_those_it_has(four: Path, layers: str) -> None:
    with pytest.raises(ConfigError, match=f"--layers {layers}: this encoder has 4 layers, 0 to 3"):
        chosen_layers(layers, read_config(four))


class TestStates:
    """Against the hidden states that transformers gives out."""

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        tiny("bert").save_pretrained(tmp_path)
        return tmp_path

    def theirs(self, case: str = "bert") -> list[torch.Tensor]:
        """Of each layer, the first tokens [rows, hidden]."""
        with torch.no_grad():
            found = tiny(case)(**padded(ROWS), output_hidden_states=True)
        return [states[:, 0] for states in found.hidden_states[1:]]

    def ours(self, folder: Path, **named: Any) -> torch.Tensor:
        model, _ = loaded(folder, **named)
        with torch.no_grad():
            return model.pooled(model.inputs(batch_of(ROWS)))

    @pytest.mark.parametrize(("layers", "numbers"), [("0", [0]), ("1", [1]), ("first-2", [0, 1]), ("all", [0, 1, 2])])
    def test_layers_side_by_side_are_as_wide_as_they_are_many_lowest_first(
        self, folder: Path, layers: str, numbers: list[int]
    ) -> None:
        more = {"combine": "concat"} if len(numbers) > 1 else {}
        wanted = torch.cat([self.theirs()[number] for number in numbers], dim=1)

        assert torch.allclose(self.ours(folder, layers=layers, **more), wanted, atol=1e-5)
        model, _ = loaded(folder, layers=layers, **more)
        assert model.head.classifier.in_features == 32 * len(numbers)

    @pytest.mark.parametrize("combine", ["mean", "max", "auto", "mix"])
    def test_layers_become_one_by_mean_or_max_and_a_mix_begins_as_the_mean(self, folder: Path, combine: str) -> None:
        both = torch.stack(self.theirs()[1:])
        wanted = both.amax(0) if combine == "max" else both.mean(0)

        assert torch.allclose(self.ours(folder, layers="last-2", combine=combine), wanted, atol=1e-5)

    def test_layers_of_modernbert_come_with_its_final_norm(self, tmp_path: Path) -> None:
        model = tiny("modernbert")
        model.save_pretrained(tmp_path)
        with torch.no_grad():
            states = model(**padded(ROWS), output_hidden_states=True).hidden_states
            wanted = torch.cat([model.final_norm(states[1])[:, 0], model(**padded(ROWS))[0][:, 0]], dim=1)
        last = len(states) - 2
        ours, _ = loaded(tmp_path)
        with torch.no_grad():
            found = ours.encoder.after((0, last), ours.inputs(batch_of(ROWS)), first_only=True)

        assert torch.allclose(torch.cat(found, dim=1), wanted, atol=1e-5)

    @pytest.mark.parametrize("pooling", ["cls", "mean", "max", "attention"])
    def test_all_layers_are_pooled_alike_and_rows_do_not_see_each_other(self, folder: Path, pooling: str) -> None:
        model, _ = loaded(folder, layers="all", combine="concat", pooling=pooling)
        with torch.no_grad():
            together = model(model.inputs(batch_of(ROWS)))
            alone = torch.cat([model(model.inputs(batch_of([row]))) for row in ROWS])

        assert torch.allclose(together, alone, atol=1e-5)


class TestLearnedMeans:
    def test_attention_is_a_softmax_within_each_group(self) -> None:
        values, counts = torch.randn(6, 4, generator=torch.Generator().manual_seed(1)), torch.tensor([2, 1, 3])
        attend = Attend(4)
        scores = attend.score(torch.tanh(attend.dense(values)))[:, 0]
        wanted = [
            (torch.softmax(scores[begin:end], 0)[:, None] * values[begin:end]).sum(0)
            for begin, end in ((0, 2), (2, 3), (3, 6))
        ]

        assert torch.allclose(attend(values, counts), torch.stack(wanted), atol=1e-6)
        assert torch.allclose(attend(values, counts)[1], values[2], atol=1e-6)

    def test_large_scores_do_not_overflow(self) -> None:
        attend = Attend(2)
        with torch.no_grad():
            attend.score.weight.fill_(1e4)
        assert torch.isfinite(attend(torch.randn(5, 2), torch.tensor([5]))).all()

    def test_a_mix_weighs_layers_by_a_softmax_and_scales_them(self) -> None:
        mix, states = Mix(2), torch.tensor([[[1.0, 2.0]], [[3.0, 6.0]]])
        with torch.no_grad():
            mix.weight.copy_(torch.tensor([0.0, 1.0]).log().nan_to_num(neginf=-100))
            mix.scale.fill_(2.0)

        assert torch.allclose(mix(states), torch.tensor([[6.0, 12.0]]))


class TestRuns:
    @pytest.mark.parametrize(
        "settings",
        [
            {"model__layers": "1"}, {"model__layers": "last-3", "model__combine": "concat"},
            {"model__layers": "all", "model__combine": "mix"}, {"model__pooling": "attention"},
            {"model__layers": "first-2", "model__combine": "max", "model__pooling": "mean", "model__head": "mlp"},
        ],
    )  # fmt: skip
    def test_the_saved_model_answers_as_it_was_trained_and_can_be_continued(
        self, four: Path, tmp_path: Path, settings: dict[str, Any]
    ) -> None:
        result = train(tmp_path / "out", four, **settings)
        texts = [row["text"] for row in topic_rows(8, seed=5)]
        logits = bertune.load(result.out).logits(texts)
        told = Told()
        more = train(tmp_path / "more", result.out, told=told, train__max_steps=1, train__lr=1e-12)

        assert not Bundle.read(result.out).opens_in_transformers
        assert not any("New weights" in text for text in told.said)
        assert np.allclose(bertune.load(more.out).logits(texts), logits, atol=1e-4)

    def test_layers_above_those_that_are_read_stay_as_they_came(self, four: Path, tmp_path: Path) -> None:
        result = train(tmp_path / "out", four, model__layers="1", train__max_steps=5)
        before, after = load_file(four / "model.safetensors"), load_file(result.out / "model.safetensors")
        above = ("encoder.layer.2.", "encoder.layer.3.")
        names = [name for name in before if name.startswith("encoder.layer.") and "key.bias" not in name]

        for name in names:
            same = torch.equal(before[name], after.get(f"bert.{name}", after.get(name)))
            assert same == name.startswith(above), name

    def test_unfreezing_begins_with_the_highest_layer_that_is_read(self, four: Path, tmp_path: Path) -> None:
        result = train(
            tmp_path / "out", four, model__layers="1", train__unfreeze="epoch", train__epochs=2,
            train__select_best=False,
        )  # fmt: skip
        before, after = load_file(four / "model.safetensors"), load_file(result.out / "model.safetensors")
        name = "encoder.layer.{}.output.dense.weight"
        moved = [not torch.equal(after[f"bert.{name.format(k)}"], before[name.format(k)]) for k in range(4)]
        assert moved == [True, True, False, False]
        words = "embeddings.word_embeddings.weight"
        assert torch.equal(after[f"bert.{words}"], before[words]), "they come with the third epoch"

    def test_layer_wise_decay_begins_below_the_highest_layer_that_is_read(self, four: Path) -> None:
        model, _ = loaded(four, layers="first-3", combine="mix")
        freeze(model, "none", train_positions=True)
        optimizer = Optimizer(model, TrainConfig(layer_decay=0.5), lr=1e-3, steps=3, full={})
        found = [optimizer.scales[f"encoder.layers.{number}.out.weight"] for number in range(3)]
        assert found == [0.25, 0.5, 1.0]
        assert optimizer.scales["encoder.embeddings.norm.weight"] == optimizer.scales[WORDS] == 0.125

    def test_what_is_learned_between_layers_and_head_is_trained(self, four: Path, tmp_path: Path) -> None:
        result = train(
            tmp_path / "out", four, model__layers="all", model__combine="mix", model__pooling="attention",
            train__max_steps=5,
        )  # fmt: skip
        weights = load_file(result.out / "model.safetensors")

        assert weights["bertune_head.mix.weight"].abs().min() > 0 and weights["bertune_head.mix.scale"] != 1
        assert weights["bertune_head.attend.dense.bias"].abs().min() > 0

    @pytest.mark.parametrize("combine", ["concat", "mix"])
    @pytest.mark.parametrize("freeze", ["2", "encoder"])
    def test_several_layers_of_a_frozen_encoder_resume_to_the_last_bit(
        self, four: Path, tmp_path: Path, freeze: str, combine: str
    ) -> None:
        settings = {"model__layers": "all", "model__combine": combine, "model__freeze": freeze,
                    "train__checkpoint_steps": 2}  # fmt: skip
        whole = train(tmp_path / "whole", four, **settings)
        with pytest.raises(Stop):
            train(tmp_path / "out", four, told=Stopper(5), **settings)
        resumed = train(tmp_path / "out", four, **settings, resume=True)

        assert (resumed.out / "model.safetensors").read_bytes() == (whole.out / "model.safetensors").read_bytes()

    def test_frozen_layers_see_no_dropout_where_several_are_read(self, four: Path) -> None:
        from bertune.model.noise import Noise

        model, _ = loaded(four, layers="0", head="linear")
        freeze(model, "1", train_positions=True)
        batch, noise = batch_of(ROWS), Noise(torch.device("cpu"))
        noise.seek(0, 1, batch)

        with torch.no_grad():
            quiet = model.pooled(model.inputs(batch), noise=noise, quiet=1)
            assert torch.equal(quiet, model.pooled(model.inputs(batch)))
            noise.seek(0, 1, batch)
            assert not torch.equal(quiet, model.pooled(model.inputs(batch), noise=noise))

    @pytest.mark.parametrize(
        ("settings", "said"),
        [
            ({"model__combine": "mean"}, "--combine mean: needs several layers, and --layers last is one"),
            ({"model__layers": "9"}, "--layers 9: this encoder has 4 layers"),
            ({"model__layers": "last4"}, "expected last, all, first-N, last-N"),
        ],
    )
    def test_options_without_meaning_are_refused_before_anything_is_written(
        self, four: Path, tmp_path: Path, settings: dict[str, Any], said: str
    ) -> None:
        with pytest.raises(ConfigError, match=said):
            train(tmp_path / "out", four, **settings)
        assert not (tmp_path / "out").exists()
