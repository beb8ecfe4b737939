"""The output folder: transformers opens it, it says how it came about, and it can be gone on from."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file

import bertune
from bertune.config import Config
from bertune.evaluate.metrics import METRICS
from bertune.multitaskconfig import JointOptions, MultiConfig
from bertune.settings import nested
from bertune.training.multitask import multitask
from bertune.training.pretrain import pretrain
from bertune.training.run import Result, run
from tiny_runs import QUICK, TOPICS, Told, make_tiny_bert, multi_rows, pair_rows, topic_rows

pytestmark = pytest.mark.usefixtures("one_thread")

SHORT = QUICK | {"train.epochs": 1, "model.max_length": 64}
KINDS: dict[str, tuple[Callable[..., list[dict[str, Any]]], dict[str, Any]]] = {
    "single": (topic_rows, {"text": "text"}),
    "pair": (pair_rows, {"text": "first", "text_pair": "second"}),
    "multi": (multi_rows, {"text": "text", "label": list(TOPICS)}),
}


@dataclass
class Made:
    result: Result
    rows: list[dict[str, Any]]
    kind: str
    text: list[str]
    pair: list[str] | None


@pytest.fixture(scope="module", params=KINDS)
def made(request: pytest.FixtureRequest, tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A result of each kind, trained from a file named by its relative path, as on a command line."""
    make, columns = KINDS[request.param]
    folder = tmp_path_factory.mktemp("made")
    rows = make(80)
    pl.DataFrame(rows).write_csv(folder / "rows.csv")
    model = make_tiny_bert(folder / "tiny")
    before = Path.cwd()
    os.chdir(folder)
    try:
        result = bertune.train("rows.csv", out="out", model="tiny", settings=SHORT, **columns)
    finally:
        os.chdir(before)
    result = Result(folder / "out", result.task, result.metrics)
    pair = [row["second"] for row in rows] if request.param == "pair" else None
    text = [row[columns["text"]] for row in rows]
    assert model.is_dir()
    return Made(result, rows, request.param, text, pair)


def test_transformers_gives_the_same_logits(made: Made) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(made.result.out)
    model = AutoModelForSequenceClassification.from_pretrained(made.result.out).eval()
    inputs = tokenizer(made.text, made.pair, padding=True, return_tensors="pt")
    with torch.no_grad():
        wanted = model(**inputs).logits.numpy()
    asked: Any = made.text if made.pair is None else list(zip(made.text, made.pair, strict=True))
    found = bertune.load(made.result.out, threads=1).logits(asked)

    assert next(model.parameters()).dtype == torch.float32
    assert np.abs(found - wanted).max() < 1e-5
    assert wanted.std() > 1e-3  # the comparison says something


def test_transformers_reads_the_kind_of_task_and_the_names_of_the_labels(made: Made) -> None:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(made.result.out)
    labels = ["other", "same"] if made.kind == "pair" else list(TOPICS)

    kind = "multi" if made.kind == "multi" else "single"
    assert config.problem_type == f"{kind}_label_classification"
    assert config.id2label == dict(enumerate(labels))
    assert config.label2id == {label: number for number, label in enumerate(labels)}


def test_the_folder_holds_what_it_should_and_no_pickle(made: Made) -> None:
    out = made.result.out
    names = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}

    assert names == {
        "README.md", "bertune.json", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
        "vocab.txt", "run/.bertune-run", "run/card.json", "run/check.json", "run/config.yaml", "run/curves.png",
        "run/data.json", "run/history.jsonl", "run/machine.yaml", "run/metrics.json", "run/predictions-test.parquet",
        "run/predictions-valid.parquet", "run/splits.csv",
    }  # fmt: skip
    assert (out / "run/curves.png").read_bytes().startswith(b"\x89PNG")
    for name in names:
        assert not (out / name).read_bytes().startswith((b"\x80\x02", b"\x80\x04", b"\x80\x05", b"PK")), name


def test_no_text_file_of_it_holds_a_path_of_this_machine(made: Made) -> None:
    here = {str(made.result.out.parent), str(Path.home()), str(Path.cwd()), str(Path(__file__).parent)}
    for path in made.result.out.rglob("*"):
        if path.suffix in {".json", ".jsonl", ".yaml", ".md", ".csv", ".txt"}:
            text = path.read_text(encoding="utf-8")
            assert not [place for place in here if len(place) > 1 and place in text], path
            assert not re.search(r"(?<![\w.:/-])/(tmp|home|root|Users|private|var)/", text), path


def test_absolute_paths_of_a_run_stay_within_its_config(tmp_path: Path, tiny_bert: Path) -> None:
    pl.DataFrame(topic_rows(40)).write_csv(tmp_path / "rows.csv")
    result = bertune.train(
        tmp_path / "rows.csv", out=tmp_path / "out", model=tiny_bert, settings=SHORT | {"train.max_steps": 1}
    )
    places = [str(tmp_path).encode(), str(tiny_bert).encode()]
    files = [path for path in result.out.rglob("*") if path.is_file()]

    assert [path.name for path in files if any(place in path.read_bytes() for place in places)] == ["config.yaml"]


def test_a_hub_model_in_the_oldest_format_trains_and_its_commit_is_recorded(
    tmp_path: Path, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SciBERT's form: pytorch_model.bin, norms called gamma and beta, heads of pre-training, no model_type."""
    commit, repo = "c" * 40, tmp_path / "hub/models--allenai--scibert_scivocab_uncased"
    folder = repo / "snapshots" / commit
    shutil.copytree(tiny_bert, folder)
    (repo / "refs").mkdir()
    (repo / "refs/main").write_text(commit, encoding="utf-8")
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    old = {f"bert.{name}".replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta"): tensor
           for name, tensor in weights.items()}  # fmt: skip
    old |= {"cls.predictions.bias": torch.zeros(3), "bert.embeddings.position_ids": torch.arange(64)[None]}
    torch.save(old, folder / "pytorch_model.bin")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    del config["model_type"]
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    settings = SHORT | {"train.max_steps": 2}
    told = Told()
    result = bertune.train(topic_rows(40), out=tmp_path / "out", model="science", settings=settings, listener=told)
    same = bertune.train(topic_rows(40), out=tmp_path / "same", model=tiny_bert, settings=settings)

    assert "Loaded 39 weights (10 under legacy names); left out: buffers (1), other tasks' heads (1). " \
           "New weights: head.classifier." in told.said  # fmt: skip
    assert (result.out / "model.safetensors").read_bytes() == (same.out / "model.safetensors").read_bytes()
    base = json.loads((result.out / "bertune.json").read_text(encoding="utf-8"))["base_model"]
    digest = hashlib.sha256((folder / "pytorch_model.bin").read_bytes()).hexdigest()
    assert (base["revision"], base["sha256"]) == (commit, digest)
    assert "base_model: allenai/scibert_scivocab_uncased" in (result.out / "README.md").read_text(encoding="utf-8")


def test_the_config_reruns_the_run_to_the_same_bytes(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    out = made.result.out
    monkeypatch.chdir(out.parent)
    again = bertune.train(None, out="again", config="out/run/config.yaml")

    for name in ("model.safetensors", "bertune.json", "config.json", "run/history.jsonl", "run/config.yaml"):
        assert (again.out / name).read_bytes() == (out / name).read_bytes(), name
    pictures = [folder / "run/curves.png" for folder in (again.out, out)]
    assert pictures[0].read_bytes() == pictures[1].read_bytes()


def test_the_metrics_have_their_names_and_lie_in_their_ranges(made: Made) -> None:
    metrics = json.loads((made.result.out / "run/metrics.json").read_text(encoding="utf-8"))
    kind = "multi" if made.kind == "multi" else "single"
    common = {"rows", "seconds", "examples_per_second", "tokens_per_second", "padding_share", "peak_memory_bytes"}

    assert metrics == json.loads(json.dumps(made.result.metrics))
    assert metrics["metric"] == {"single": "accuracy", "multi": "micro_f1"}[kind]
    for split in ("train", "valid", "test"):
        measured = metrics[split]
        assert common | {name for name, metric in METRICS.items() if kind in metric.kinds} <= set(measured), split
        assert [row["label"] for row in measured["per_label"]] == list(made.result.task.labels)
        assert ("confusion_matrix" in measured) == (kind == "single")
        assert 0 <= measured["padding_share"] < 1
        assert measured["examples_per_second"] > 0
        assert measured["tokens_per_second"] > measured["examples_per_second"]
        assert measured["peak_memory_bytes"] > 10**7
    assert [metrics[split]["rows"] for split in ("train", "valid", "test")] == [64, 8, 8]
    assert metrics["train"]["epochs"] == 1
    assert metrics["train"]["steps"] == 8


def test_the_history_tells_every_step_and_every_evaluation(made: Made) -> None:
    lines = (made.result.out / "run/history.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    steps = [record for record in records if record["kind"] == "step"]

    assert [record["step"] for record in steps] == list(range(1, 9))
    assert all({"epoch", "loss", "lr", "gradient_norm"} <= set(record) for record in steps)
    assert [(record["step"], record["split"]) for record in records if record["kind"] == "eval"] == [
        (8, "train"), (8, "valid"),
    ]  # fmt: skip


def test_the_predictions_are_those_of_the_saved_model(made: Made) -> None:
    predictor = bertune.load(made.result.out, threads=1)
    for split in ("valid", "test"):
        table = pl.read_parquet(made.result.out / f"run/predictions-{split}.parquet")
        rows = [made.rows[number - 1] for number in table["row"]]
        labels = list(predictor.labels)

        assert table["file"].unique().to_list() == ["rows.csv"]
        assert table["prediction"].to_list() == predictor.predict(rows)
        assert np.allclose(table.select(f"logit:{label}" for label in labels), predictor.logits(rows), atol=1e-5)
        assert np.allclose(table.select(f"prob:{label}" for label in labels), predictor.predict_proba(rows), atol=1e-5)
        wanted = [[name for name in TOPICS if row[name]] if made.kind == "multi" else row["label"] for row in rows]
        assert table["label"].to_list() == wanted


def test_a_run_without_any_evaluation_still_tells_its_steps(tmp_path: Path, tiny_bert: Path) -> None:
    settings = SHORT | {"train.max_steps": 3, "data.hold_out": False}
    result = bertune.train(topic_rows(40), out=tmp_path / "out", model=tiny_bert, settings=settings)
    lines = (result.out / "run/history.jsonl").read_text(encoding="utf-8").splitlines()

    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3]
    assert set(result.metrics) == {"metric", "train", "truncation", "versions"}
    assert result.metrics["train"]["measured"].endswith("over the 24 rows seen")


class TestGoingOn:
    """Training from an earlier result."""

    def further(self, made: Made, out: Path, **settings: Any) -> Result:
        columns = KINDS[made.kind][1]
        still = SHORT | {"train.lr": 1e-12, "train.max_steps": 1, "train.weight_decay": 0.0} | settings
        return bertune.train(made.rows, out=out, model=made.result.out, settings=still, **columns)

    def test_the_head_goes_on_where_the_labels_are_the_same(self, made: Made, tmp_path: Path) -> None:
        further = self.further(made, tmp_path / "out")
        rows = made.rows[:20]

        assert np.allclose(
            bertune.load(further.out, threads=1).logits(rows), bertune.load(made.result.out, threads=1).logits(rows),
            atol=1e-5,
        )  # fmt: skip
        assert "| head lr | 1e-12 |" in (further.out / "README.md").read_text(encoding="utf-8")

    @pytest.mark.parametrize("settings", [{"model.pooling": "mean"}, {"model.head": "mlp", "model.head_hidden": 7}])
    def test_a_head_of_another_form_goes_on_without_being_named_again(
        self, tiny_bert: Path, tmp_path: Path, settings: dict[str, Any]
    ) -> None:
        rows = topic_rows(40)
        first = bertune.train(rows, out=tmp_path / "first", model=tiny_bert, settings=SHORT | settings)
        still = SHORT | {"train.lr": 1e-12, "train.max_steps": 1, "train.weight_decay": 0.0}
        further = bertune.train(rows, out=tmp_path / "further", model=first.out, settings=still)
        left, right = (bertune.load(result.out, threads=1) for result in (first, further))

        assert right.bundle.head == left.bundle.head
        assert np.allclose(left.logits(rows), right.logits(rows), atol=1e-5)

    def test_other_labels_get_a_new_head(self, tiny_bert: Path, tmp_path: Path) -> None:
        rows = topic_rows(40)
        first = bertune.train(rows, out=tmp_path / "first", model=tiny_bert, settings=SHORT)
        renamed = [row | {"label": row["label"].upper()} for row in rows]
        still = SHORT | {"train.lr": 1e-12, "train.max_steps": 1}
        further = bertune.train(renamed, out=tmp_path / "further", model=first.out, settings=still)
        left, right = (bertune.load(result.out, threads=1) for result in (first, further))

        assert right.labels == ("ANIMALS", "PLANTS", "TOOLS")
        assert "| head lr | 1e-11 |" in (further.out / "README.md").read_text(encoding="utf-8")
        assert not np.allclose(left.logits(rows), right.logits(rows), atol=1e-3)

    def test_nor_can_the_model_that_this_one_stands_beside(self, tiny_bert: Path, tmp_path: Path) -> None:
        rows = topic_rows(40)
        base = bertune.train(rows, out=tmp_path / "base", model=tiny_bert, settings=SHORT).out
        lora = bertune.train(rows, out=tmp_path / "lora", model=base, settings=SHORT | {"model.lora": 2}).out
        with pytest.raises(bertune.ConfigError, match=rf"--model {lora} needs {base}, which lies in --out {base}"):
            bertune.train(rows, out=base, model=lora, overwrite=True, settings=SHORT)
        bertune.load(lora, threads=1)

    @pytest.mark.parametrize("machine", [
        {"train.device": "cuda"}, {"train.kernels": "compiled", "train.precision": "fp32"}, {"train.compile": "yes"},
    ], ids=str)  # fmt: skip
    @pytest.mark.parametrize("how", ["train", "multitask", "pretrain"])
    @pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
    def test_an_earlier_result_outlives_a_machine_that_is_not_there(
        self, tiny_bert: Path, tmp_path: Path, machine: dict[str, str], how: str
    ) -> None:
        pl.DataFrame(topic_rows(60)).write_csv(tmp_path / "rows.csv")
        read = {"data": {"files": [str(tmp_path / "rows.csv")]}}
        plain = Config().updated({"model": {"name": str(tiny_bert)}, "train": {"threads": 1, "epochs": 1}})

        def make(config: Config, **more: Any) -> None:
            if how == "multitask":
                joint = MultiConfig(config, JointOptions()).updated({"tasks": {"a": read}})
                multitask(joint, out=tmp_path / "out", **more)
            elif how == "train":
                run(config.updated(read), out=tmp_path / "out", **more)
            else:
                config = config.updated(read).updated({"train": {"epochs": None}, "pretrain": {"max_length": 32}})
                pretrain(config, out=tmp_path / "out", **more)

        make(plain)
        files = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
        for name, value in machine.items():
            plain = plain.updated(nested(name, value))
        with pytest.raises(bertune.ConfigError):
            make(plain, overwrite=True)
        assert files == {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}

    def test_a_model_cannot_be_overwritten_by_what_starts_from_it(self, made: Made) -> None:
        before = (made.result.out / "model.safetensors").read_bytes()
        with pytest.raises(bertune.ConfigError, match="--overwrite would delete it"):
            bertune.train(
                made.rows, out=made.result.out, model=made.result.out, overwrite=True, settings=SHORT,
                **KINDS[made.kind][1],
            )  # fmt: skip
        assert (made.result.out / "model.safetensors").read_bytes() == before
