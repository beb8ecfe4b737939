"""LoRA: the product that is merged is the one that is trained, the encoder stays as it came, and a small file with the
right base model is the whole result."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

import bertune
from bertune.config import ModelConfig, TrainConfig
from bertune.errors import ConfigError, ModelError
from bertune.files import sha256_of
from bertune.model.classifier import ClassifierModel
from bertune.model.load import load_model
from bertune.model.lowrank import ADAPTER, places_of
from bertune.training.lora import Lora, train_beside
from bertune.training.optim import Optimizer
from shell import call
from technique_runs import ROWS, Stop, Stopper, changed, train
from tiny_models import batch_of, loaded, tiny
from tiny_runs import Told, make_tiny_bert

pytestmark = pytest.mark.usefixtures("one_thread", "no_pictures")

ALL = ["query", "key", "value", "out", "up", "down"]
TEXTS = [row["text"] for row in ROWS[:20]]


def beside(folder: Path, *, targets: list[str], rank: int = 3, dtype: torch.dtype = torch.float32) -> tuple[
    ClassifierModel, Lora
]:
    """A model with LoRA beside it, whose B is not zero any more."""
    model, _ = loaded(folder)
    config = ModelConfig.model_validate({"lora": rank, "lora_alpha": 6.0, "lora_targets": targets})
    train_beside(model, config)
    full = {name: value.detach() for name, value in model.named_parameters()}
    model.encoder.compute_in(dtype)
    full = {name: full[name] for name, value in model.named_parameters() if value.dtype != torch.float32}
    lora = Lora(model, config, full, seed=0)
    with torch.no_grad():
        for number, matrix in enumerate(lora.matrices.values()):
            matrix.copy_(torch.randn(matrix.shape, generator=torch.Generator().manual_seed(number)) * 0.2)
    lora.merge()
    return model, lora


class Apart:
    """The same model with the products computed apart: x W' + scale (x A') B', as the paper draws it."""

    def __init__(self, folder: Path, lora: Lora) -> None:
        self.model, _ = loaded(folder)
        self.matrices = {name: value.detach().clone().requires_grad_() for name, value in lora.matrices.items()}
        self.lora = lora
        for name, part in self.model.named_modules():
            places = [place for place in lora.places if place.weight == f"{name}.weight"]
            if places:
                part.forward = self._linear(part, places)  # type: ignore[assignment]

    def _linear(self, part: Any, places: list[Any]) -> Any:
        def forward(x: Tensor) -> Tensor:
            out = F.linear(x, part.weight, part.bias)
            parts = [torch.zeros_like(out)]
            for place in places:
                small = x @ self.matrices[place.key("a")].t() @ self.matrices[place.key("b")].t() * self.lora.scale
                parts.append(F.pad(small, (place.begin, out.shape[1] - place.end)))
            return out + torch.stack(parts).sum(dim=0)

        return forward


@pytest.mark.parametrize("targets", [["query", "value"], ALL], ids=str)
def test_merged_matrices_compute_what_matrices_apart_do_and_have_their_gradients(
    tiny_bert: Path, targets: list[str]
) -> None:
    folder = tiny_bert
    model, lora = beside(folder, targets=targets)
    apart = Apart(folder, lora)
    batch = batch_of([[5, 6, 7, 8], [9, 10, 11]])
    hidden = model.encoder(model.inputs(batch))  # all tokens: the last layer for the first alone is no plain product
    wanted = apart.model.encoder(model.inputs(batch))
    assert torch.allclose(hidden, wanted, rtol=0, atol=1e-5)
    plain = loaded(folder)[0].encoder(model.inputs(batch))
    assert not torch.allclose(hidden, plain, rtol=0, atol=1e-2)

    hidden.square().sum().backward()
    wanted.square().sum().backward()
    lora.collect()
    for name, matrix in lora.matrices.items():
        grad = apart.matrices[name].grad
        assert grad is not None and matrix.grad is not None and grad.abs().max() > 1e-3
        assert torch.allclose(matrix.grad, grad, rtol=1e-3, atol=1e-4), name
    assert all(weight.grad is None for weight in lora.weights.values())


@pytest.mark.parametrize("case", ["bert", "roberta", "distilbert", "electra with small embeddings", "modernbert"])
def test_rows_of_each_target_are_those_of_its_own_product(tmp_path: Path, case: str) -> None:
    tiny(case).save_pretrained(tmp_path)
    model, _ = loaded(tmp_path)
    named = dict(model.named_parameters())
    for target in ALL:
        for place in places_of(model.encoder.config, [target]):
            rows = len(named[place.weight])
            assert (place.begin, place.end) == {
                "query": (0, 32), "key": (32, 64), "value": (64, 96), "out": (0, 32), "down": (0, 32), "up": (0, rows),
            }[target]
            assert ("qkv" in place.weight) == (target in ALL[:3])
            assert rows == 96 or target not in ALL[:3]


def test_training_starts_with_the_model_as_it_is(tiny_bert: Path) -> None:
    model, _ = loaded(tiny_bert)
    lora = Lora(model, ModelConfig(lora=2), {}, seed=0)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    lora.merge()

    assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())
    assert all(matrix.any() == name.endswith("/a") for name, matrix in lora.matrices.items())


def test_only_the_small_matrices_and_the_head_have_moments(tiny_bert: Path) -> None:
    model, lora = beside(tiny_bert, targets=["query", "up"])
    optimizer = Optimizer(model, TrainConfig(), lr=1e-3, steps=3, full={}, lora=lora)

    assert optimizer.rows is None
    assert set(optimizer.names) == {f"lora/{name}" for name in lora.matrices} | {
        f"head.{name}" for name, _ in model.head.named_parameters()
    }


@pytest.fixture(scope="module", params=["fp32", "bf16"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(result of LoRA, its base model)"""
    folder = tmp_path_factory.mktemp("lora")
    base = make_tiny_bert(folder / "tiny")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bertune.training.finish.plot_curves", lambda history, path, *, metric: None)
        train(folder / "out", base, model__lora=4, model__lora_targets=["query", "value", "up"],
              train__precision=request.param)  # fmt: skip
    return folder / "out", base


def test_the_result_holds_a_small_file_and_the_name_and_hash_of_its_base(trained: tuple[Path, Path]) -> None:
    out, base = trained
    assert not (out / "model.safetensors").exists()
    with safe_open(out / ADAPTER, framework="pt") as opened:
        header = json.loads(opened.metadata()["bertune"])
        names = set(opened.keys())
    assert header["base"] == {"name": "tiny", "revision": None, "sha256": sha256_of(base / "model.safetensors")}
    assert "encoder.layers.1.qkv.weight/value/b" in names and "head.classifier.weight" in names
    assert not any("embeddings" in name or name.endswith("qkv.weight") for name in names)
    described = json.loads((out / "bertune.json").read_text(encoding="utf-8"))
    assert ADAPTER in described["files"] and not described["opens_in_transformers"]


def test_what_is_not_beside_a_matrix_is_as_it_came_to_the_last_bit(
    trained: tuple[Path, Path], tmp_path: Path
) -> None:
    out, base = trained
    call("convert", out, tmp_path / "merged")

    class Found:
        out = tmp_path / "merged"

    assert changed(Found, base) == {  # type: ignore[arg-type]
        f"encoder.layer.{number}.{part}.weight" for number in (0, 1)
        for part in ("attention.self.query", "attention.self.value", "intermediate.dense")
    } | {"pooler.dense.weight", "pooler.dense.bias"}  # fmt: skip


def test_the_merged_folder_answers_with_the_same_logits_and_opens_in_transformers(
    trained: tuple[Path, Path], tmp_path: Path
) -> None:
    import transformers

    out, _ = trained
    done = call("convert", out, tmp_path / "merged")
    assert done.code == 0, done.err
    ours, merged = (bertune.load(folder, threads=1).logits(TEXTS) for folder in (out, tmp_path / "merged"))
    assert np.array_equal(ours, merged)

    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "merged")
    with torch.no_grad():
        logits = theirs(**tokenizer(TEXTS, padding=True, return_tensors="pt")).logits.numpy()
    assert np.allclose(ours, logits, rtol=0, atol=1e-4)
    before, after = ((folder / "README.md").read_text(encoding="utf-8") for folder in (out, tmp_path / "merged"))
    assert "stands in another folder, so it opens in bertune only" in before and "from_pretrained" not in before
    assert "opens in bertune only" not in after and "from_pretrained" in after
    again = call("convert", tmp_path / "merged", tmp_path / "again")
    assert again.code != 0 and "already in safetensors" in again.err


def test_a_card_that_its_owner_has_edited_is_kept(trained: tuple[Path, Path], tmp_path: Path) -> None:
    shutil.copytree(trained[0], tmp_path / "edited")
    (tmp_path / "edited/README.md").write_bytes(b"mine\r\n")
    assert call("convert", tmp_path / "edited", tmp_path / "merged").code == 0
    assert (tmp_path / "merged/README.md").read_bytes() == b"mine\r\n"


def test_layers_that_the_head_does_not_read_get_no_matrices(tmp_path: Path, tiny_bert: Path) -> None:
    result = train(tmp_path / "out", tiny_bert, model__lora=4, model__layers="0")
    with safe_open(result.out / ADAPTER, framework="pt") as opened:
        names = [name for name in opened.keys() if name.startswith("encoder.")]  # noqa: SIM118 (not a mapping)
        assert names and all(name.startswith("encoder.layers.0.") for name in names)
        assert all(opened.get_tensor(name).any() for name in names)
    logits = bertune.load(result.out, threads=1).logits(TEXTS)
    assert call("convert", result.out, tmp_path / "merged").code == 0
    assert np.array_equal(bertune.load(tmp_path / "merged", threads=1).logits(TEXTS), logits)
    # The next training may read other layers of the merged model.
    told = Told()
    train(tmp_path / "on", result.out, model__layers="last", model__pooling="cls", train__max_steps=1, listener=told)
    assert any("New weights: head." in text for text in told.said)


def test_evaluation_while_training_is_that_of_the_result(tmp_path: Path, tiny_bert: Path) -> None:
    told = Told()
    result = train(
        tmp_path / "out", tiny_bert, model__lora=4, listener=told, train__metric="log_loss", decide__calibration="none"
    )
    best = min(record["metrics"]["log_loss"] for record in told.records if record["split"] == "valid")

    assert result.metrics["valid"]["log_loss"] == pytest.approx(best, rel=1e-5)


def test_the_run_says_that_its_rate_is_that_of_lora(tmp_path: Path, tiny_bert: Path) -> None:
    told = Told()
    train(tmp_path / "out", tiny_bert, model__lora=4, train__lr=None, train__max_steps=2, listener=told)
    assert any("learning rate 0.001, 10 times the usual one, for LoRA (head: 0.01)." in text for text in told.said)
    assert max(step.lr for step in told.steps) == pytest.approx(1e-3)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_resumed_run_ends_with_the_same_bits(tmp_path: Path, tiny_bert: Path, precision: str) -> None:
    settings: dict[str, Any] = {"model__lora": 4, "train__precision": precision, "train__checkpoint_steps": 7}
    whole = train(tmp_path / "whole", tiny_bert, **settings)
    with pytest.raises(Stop):
        train(tmp_path / "out", tiny_bert, listener=Stopper(8), **settings)
    resumed = train(tmp_path / "out", tiny_bert, resume=True, **settings)

    assert (resumed.out / ADAPTER).read_bytes() == (whole.out / ADAPTER).read_bytes()


def test_a_result_is_trained_on_from_its_merged_weights_and_head(trained: tuple[Path, Path], tmp_path: Path) -> None:
    out, _ = trained
    wanted, _ = load_model(out)
    told = Told()
    result = train(tmp_path / "on", out, train__lr=1e-9, train__head_lr=1e-9, train__max_steps=1, listener=told)
    found, _ = load_model(result.out)

    assert not any("New weights" in text for text in told.said)
    for name, value in wanted.state_dict().items():
        assert torch.allclose(found.state_dict()[name], value, rtol=0, atol=1e-6), name


class TestBase:
    """Where the base model is looked for, and what is said where it is not found."""

    @pytest.fixture
    def moved(self, tmp_path: Path) -> tuple[Path, Path]:
        base = make_tiny_bert(tmp_path / "models" / "tiny")
        train(tmp_path / "out", base, model__lora=2, train__max_steps=2)
        bertune.load(tmp_path / "out", threads=1)
        base.rename(tmp_path / "elsewhere")
        return tmp_path / "out", tmp_path / "elsewhere"

    def test_one_that_is_gone_is_an_error_that_says_where_to_put_it(self, moved: tuple[Path, Path]) -> None:
        out, _ = moved
        with pytest.raises(ModelError) as caught:
            bertune.load(out, threads=1)

        text = str(caught.value)
        assert text.startswith(f"{out}: was trained with LoRA beside the model 'tiny', whose weights (SHA-256 ")
        assert text.endswith(f") are not found. Put the folder of that model at {out / 'base'}.")

    def test_put_into_the_result_it_is_found(self, moved: tuple[Path, Path]) -> None:
        out, base = moved
        shutil.copytree(base, out / "base")

        assert bertune.load(out, threads=1).predict(["a cat ."])

    def test_other_weights_in_its_place_are_not_taken(self, moved: tuple[Path, Path]) -> None:
        out, base = moved
        shutil.copytree(base, out / "base")
        weights = load_file(out / "base" / "model.safetensors")
        weights["embeddings.LayerNorm.bias"] = weights["embeddings.LayerNorm.bias"] + 1
        save_file(weights, out / "base" / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ModelError) as caught:
            bertune.load(out, threads=1)

        assert f"are not found; {out / 'base'} has others. Put" in str(caught.value)

    def test_a_second_lora_beside_the_first_is_refused(self, tmp_path: Path) -> None:
        base = make_tiny_bert(tmp_path / "tiny")
        train(tmp_path / "out", base, model__lora=2, train__max_steps=2)
        with pytest.raises(ConfigError) as caught:
            train(tmp_path / "second", tmp_path / "out", model__lora=2)

        assert str(caught.value) == (
            f"--lora 2: {tmp_path / 'out'} was itself trained with LoRA, beside another model. Merge it first: bertune "
            f"convert {tmp_path / 'out'} OUT, and pass --model OUT."
        )

    def test_a_damaged_adapter_is_named(self, tmp_path: Path) -> None:
        base = make_tiny_bert(tmp_path / "tiny")
        train(tmp_path / "out", base, model__lora=2, train__max_steps=2)
        path = tmp_path / "out" / ADAPTER
        path.write_bytes(path.read_bytes()[:-7])
        with pytest.raises(ModelError, match="the file was damaged or altered"):
            bertune.load(tmp_path / "out", threads=1)
        with pytest.raises(ModelError, match="not readable as an adapter of bertune, so it is damaged or cut"):
            load_model(tmp_path / "out")


def test_of_several_seeds_the_best_is_kept_and_nothing_else(tmp_path: Path, tiny_bert: Path) -> None:
    how: dict[str, Any] = {"model": tiny_bert, "settings": {"model.lora": 2, "train.max_steps": 2, "train.threads": 1}}
    result = bertune.train(ROWS, out=tmp_path / "out", seeds=2, **how)
    assert result.predictor().predict(["a cat ."]) and (tmp_path / "out" / ADAPTER).is_file()
    with pytest.raises(ConfigError, match="--keep soup and --lora 2: models of LoRA are kept apart from their base"):
        bertune.train(ROWS, out=tmp_path / "soup", seeds=2, keep="soup", **how)
