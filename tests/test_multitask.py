"""Several tasks over one encoder: whose turn it is, what losses count, what is left, taken up, dropped and added."""

from __future__ import annotations

import json
import math
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

import bertune
from bertune.errors import ConfigError, Interrupted, ModelError, TrainingError
from bertune.model.kernels import library
from bertune.model.losses import Loss
from bertune.model.multi import Uncertainty
from bertune.multitaskconfig import JointOptions, MultiConfig
from bertune.training.loop import Course
from bertune.training.multitask import Joint
from bertune.training.multitask_fit import MultiCourse, score, shares, turns
from shell import call, read_rows, write_rows
from technique_runs import Stop, Stopper
from tiny_models import tiny
from tiny_runs import QUICK, Told, make_tiny_bert, multi_rows, pair_rows, topic_rows

pytestmark = pytest.mark.usefixtures("one_thread", "no_pictures")

DATA = {"topics": topic_rows(60), "many": multi_rows(90), "pairs": pair_rows(60)}
MORE = {"topics": topic_rows(200), "many": multi_rows(200), "pairs": pair_rows(100)}  # enough to learn from
TASKS: dict[str, Any] = {
    "topics": {}, "many": {"model": {"pooling": "mean"}, "metric": "hamming_loss"},
    "pairs": {"data": {"text": "first", "text_pair": "second"}},
}  # fmt: skip
SHARED: dict[str, Any] = {
    "train": {name.partition(".")[2]: value for name, value in QUICK.items() if name.startswith("train.")},
    "check": {"enabled": False}, "report": {"baselines": False},
}  # fmt: skip


def options(model: Path, *, names: Any = tuple(TASKS), train: Any = None, **more: Any) -> dict[str, Any]:
    """A file of tasks over the tiny data, as a mapping."""
    tasks = more.pop("tasks", {})
    return {
        **SHARED, "train": SHARED["train"] | (train or {}), "model": {"name": str(model), "max_length": 24},
        "tasks": {name: TASKS.get(name, {}) | tasks.get(name, {}) for name in names}, **more,
    }  # fmt: skip


def joint(
    out: Path, model: Path, *, listener: Any = None, resume: bool = False, rows: Any = None, **more: Any
) -> Joint:
    chosen = options(model, **more)
    data = {name: (rows or DATA).get(name, DATA["topics"]) for name in chosen["tasks"]}
    return bertune.multitask(chosen, out=out, data=data, listener=listener or Told(), resume=resume)


def history(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "run" / "history.jsonl").read_text(encoding="utf-8").splitlines()]


def weights(out: Path) -> dict[str, bytes]:
    """The files that hold them."""
    files = [out / "encoder" / "model.safetensors", *sorted(out.glob("tasks/*/head.safetensors"))]
    return {str(path.relative_to(out)): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def told() -> Told:
    return Told()


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path, told: Told) -> Joint:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bertune.training.finish.plot_curves", lambda history, path, *, metric: None)
        return joint(tmp_path_factory.mktemp("joint") / "out", tiny_bert, listener=told,
                     rows=MORE, train={"epochs": 6, "head_lr": 5e-3})


# Whose turn it is


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"sampling": "proportional"}, [9 / 14, 4 / 14, 1 / 14]), ({"sampling": "sqrt"}, [3 / 6, 2 / 6, 1 / 6]),
        ({"sampling": "temperature", "temperature": 1}, [9 / 14, 4 / 14, 1 / 14]),
        ({"sampling": "temperature", "temperature": 4},
         [math.sqrt(3) / (math.sqrt(3) + math.sqrt(2) + 1), math.sqrt(2) / (math.sqrt(3) + math.sqrt(2) + 1),
          1 / (math.sqrt(3) + math.sqrt(2) + 1)]),
    ],
)  # fmt: skip
def test_steps_are_of_tasks_in_the_proportion_that_was_asked_for(asked: Any, expected: list[float]) -> None:
    chances = shares([900, 400, 100], [16, 16, 16], JointOptions.model_validate(asked))
    assert chances == pytest.approx(expected)
    steps = 20_000
    found = np.bincount(turns(chances, steps=steps, seed=3), minlength=3)
    for count, share in zip(found, expected, strict=True):
        assert abs(count - steps * share) < 4 * math.sqrt(steps * share * (1 - share))  # once in 16,000 by chance


def test_a_task_of_smaller_batches_has_more_turns_so_that_its_rows_are_seen_as_often() -> None:
    batch_sizes = np.array([32, 16])
    for asked, seen in (("proportional", [600, 300]), ("sqrt", [math.sqrt(600), math.sqrt(300)])):
        chances = shares([600, 300], batch_sizes.tolist(), JointOptions.model_validate({"sampling": asked}))
        assert chances.sum() == pytest.approx(1)
        assert chances * batch_sizes / (chances @ batch_sizes) == pytest.approx(np.array(seen) / sum(seen))


def test_a_turn_depends_on_seed_and_step_alone() -> None:
    chances = np.array([0.5, 0.3, 0.2])
    assert (turns(chances, steps=50, seed=1) == turns(chances, steps=500, seed=1)[:50]).all()
    assert (turns(chances, steps=500, seed=1) != turns(chances, steps=500, seed=2)).any()


def test_every_batch_is_of_one_task_and_goes_through_its_rows_as_a_training_of_its_own() -> None:
    from bertune.data.batch import epoch_order

    class Rows:
        def __init__(self, count: int) -> None:
            self.lengths = np.full(count, 5)

        def __len__(self) -> int:
            return len(self.lengths)

    def course(rows: int, size: int) -> Course:
        return Course(Rows(rows), None, None, size, 60, 100, None, 7, np.zeros((rows, 2)))  # type: ignore[arg-type]

    walk = MultiCourse({"a": course(20, 4), "b": course(9, 3)}, np.array([0.7, 0.3]), steps=60, token_budget=100,
                       clip=None, seed=7)  # fmt: skip
    seen: dict[str, list[int]] = {"a": [], "b": []}
    for number in range(1, 61):
        seen[walk.task(number)] += walk.rows(number).tolist()
    assert len(seen["a"]) == 4 * walk.done("a", 60) and len(seen["b"]) == 3 * walk.done("b", 60)
    for name, rows in (("a", 20), ("b", 9)):
        for epoch in range(len(seen[name]) // rows):
            part = seen[name][epoch * rows : (epoch + 1) * rows]
            assert part == epoch_order(rows, seed=7, epoch=epoch).tolist()


# What a loss counts


def test_the_gradients_of_uncertainty_weighting_are_those_of_its_formula() -> None:
    uncertainty = Uncertainty(2)
    with torch.no_grad():
        uncertainty.bias.copy_(torch.tensor([0.4, -1.0]))
    loss = torch.tensor(2.0, requires_grad=True)
    parts = uncertainty.weigh(0, 0.25 * loss, 0.25) + uncertainty.weigh(0, 0.75 * loss, 0.75)  # two micro-batches
    parts.backward()
    assert parts.item() == pytest.approx(math.exp(-0.4) * 2 + 0.2)
    assert loss.grad is not None and loss.grad.item() == pytest.approx(math.exp(-0.4))
    assert uncertainty.bias.grad is not None
    assert uncertainty.bias.grad.tolist() == pytest.approx([-math.exp(-0.4) * 2 + 0.5, 0.0])


def test_uncertainty_learns_a_number_a_task_and_reports_it(tmp_path: Path, tiny_bert: Path) -> None:
    learned = joint(tmp_path / "out", tiny_bert, uncertainty=True, names=("topics", "many")).metrics["log_variances"]
    assert set(learned) == {"topics", "many"} and all(value != 0 for value in learned.values())
    assert not any("bias" in name and "uncertainty" in name for path in (tmp_path / "out").rglob("*.safetensors")
                   for name in load_file(path))  # fmt: skip


def test_a_loss_weight_multiplies_the_gradient(tmp_path: Path, tiny_bert: Path) -> None:
    norms, losses = [], []
    for number, weight in enumerate((1, 3)):
        told = Told()
        joint(tmp_path / str(number), tiny_bert, listener=told, names=("topics",), tasks={"topics": {"weight": weight}})
        norms.append(told.steps[0].norm)
        losses.append(told.steps[0].loss)
    assert losses[0] == losses[1]  # what is told is the loss itself
    assert norms[1] == pytest.approx(3 * norms[0], rel=1e-4)


def test_metrics_are_made_alike_before_they_are_averaged() -> None:
    assert score("accuracy", {"accuracy": 0.8}) == 0.8
    assert score("hamming_loss", {"hamming_loss": 0.1}) == pytest.approx(0.9)
    assert score("log_loss", {"log_loss": math.log(4)}) == pytest.approx(0.25)


@pytest.mark.parametrize("technique", [{}, {"r_drop": 1.0}, {"layer_decay": 0.9, "mixout": 0.2, "average": "ema"}])
def test_a_joint_training_of_one_task_is_a_plain_training(
    technique: dict[str, Any], tmp_path: Path, tiny_bert: Path
) -> None:
    joint(tmp_path / "joint", tiny_bert, names=("topics",), train=technique)
    settings = QUICK | {f"train.{name}": value for name, value in technique.items()}
    plain = bertune.train(DATA["topics"], out=tmp_path / "plain", model=tiny_bert,
                          settings=settings | {"check.enabled": False, "report.baselines": False})  # fmt: skip
    together = load_file(tmp_path / "joint/encoder/model.safetensors")
    together |= load_file(tmp_path / "joint/tasks/topics/head.safetensors")
    alone = load_file(plain.out / "model.safetensors")
    assert together.keys() == alone.keys()
    assert all(torch.equal(value, alone[name]) for name, value in together.items())


# What is left


def test_kinds_are_mixed_and_all_of_them_learn(done: Joint) -> None:
    kinds = {name: bertune.load(done.out / "tasks" / name, threads=1).task for name in done.tasks}
    assert [(task.kind, task.is_pair) for task in kinds.values()] == [
        ("single", False), ("multi", False), ("single", True)
    ]  # fmt: skip
    found = {name: metrics["test"] for name, metrics in done.metrics["tasks"].items()}
    assert found["topics"]["accuracy"] > 0.6  # of three
    assert found["many"]["micro_f1"] > 0.5
    assert found["pairs"]["accuracy"] > 0.6  # most are of two topics
    assert done.metrics["tasks"]["many"]["metric"] == "hamming_loss"
    expected = [done.metrics["tasks"]["topics"]["valid"]["accuracy"],
                1 - done.metrics["tasks"]["many"]["valid"]["hamming_loss"],
                done.metrics["tasks"]["pairs"]["valid"]["accuracy"]]  # fmt: skip
    assert done.metrics["valid"]["mean"] == pytest.approx(np.mean(expected))
    steps = done.metrics["train"]["steps_by_task"]
    assert sum(steps.values()) == done.metrics["train"]["steps"]
    tokens = done.metrics["train"]["tokens_by_task"]
    read = done.metrics["train"]["tokens_per_second"] * done.metrics["train"]["seconds"]
    assert list(tokens) == list(steps) and sum(tokens.values()) == pytest.approx(read)


def test_the_history_names_the_task_in_every_record(done: Joint) -> None:
    records = history(done.out)
    assert {record["task"] for record in records} == set(TASKS)
    assert {"step", "eval"} == {record["kind"] for record in records}


def test_the_encoder_is_kept_once_and_its_hash_is_checked(done: Joint, tmp_path: Path) -> None:
    assert not list(done.out.glob("tasks/*/model.safetensors"))
    shutil.copytree(done.out / "tasks", tmp_path / "tasks")
    with pytest.raises(ModelError, match="the encoder of all belongs at"):
        bertune.load(tmp_path / "tasks" / "topics")
    shutil.copytree(done.out / "encoder", tmp_path / "encoder")
    raw = bytearray((tmp_path / "encoder" / "model.safetensors").read_bytes())
    raw[-1] ^= 1
    (tmp_path / "encoder" / "model.safetensors").write_bytes(bytes(raw))
    with pytest.raises(ModelError, match="the encoder was damaged or replaced"):
        bertune.load(tmp_path / "tasks" / "topics")


def test_a_task_converted_stands_alone_and_answers_the_same(done: Joint, tmp_path: Path) -> None:
    assert call("convert", done.out / "tasks" / "many", tmp_path / "alone").code == 0
    texts = [row["text"] for row in DATA["many"][:9]]
    one, other = (bertune.load(folder, threads=1) for folder in (done.out / "tasks" / "many", tmp_path / "alone"))
    assert (one.predict_proba(texts) == other.predict_proba(texts)).all()
    before, after = ((folder / "README.md").read_text(encoding="utf-8") for folder in (
        done.out / "tasks" / "many", tmp_path / "alone"
    ))  # fmt: skip
    assert "`bertune convert FOLDER OUT` makes one that stands alone" in before
    assert "makes one that stands alone" not in after


def test_the_card_of_a_task_tells_of_the_others(done: Joint, tmp_path: Path, tiny_bert: Path) -> None:
    card = (done.out / "tasks/many/README.md").read_text(encoding="utf-8")
    assert "| trained together with | topics, pairs |" in card and "| turns of the tasks | proportional |" in card
    assert "| weight of its loss | 1 |" in card
    assert "of all tasks, the best mean over them on their valid splits" in card
    alone = joint(tmp_path / "joint", tiny_bert, names=("topics",))
    card = (alone.out / "tasks/topics/README.md").read_text(encoding="utf-8")
    assert "together" not in card and "the best accuracy on the valid split" in card


def test_the_encoder_opens_in_transformers(done: Joint) -> None:
    import transformers

    model = transformers.AutoModel.from_pretrained(done.out / "encoder", add_pooling_layer=False)
    own = load_file(done.out / "encoder" / "model.safetensors")["bert.embeddings.word_embeddings.weight"]
    assert torch.equal(model.embeddings.word_embeddings.weight, own)


def test_python_predicts_for_one_task_and_for_all(done: Joint) -> None:
    model = bertune.load(done.out, threads=1)
    assert model.tasks == tuple(TASKS)
    texts = ["the cat is old .", "a hammer and a nail ."]
    alone = bertune.load(done.out / "tasks" / "topics", threads=1)
    assert model.predict(texts, task="topics") == alone.predict(texts)
    assert (model["many"].predict_proba(texts) == model.predict_proba(texts, task="many")).all()
    backends = [model[name].backend.model.encoder for name in model.tasks]
    assert all(encoder is backends[0] for encoder in backends)
    with pytest.raises(ConfigError, match="did you mean 'topics'"):
        model.predict(texts, task="topic")


def test_the_command_predicts_for_one_task_and_for_all(done: Joint, tmp_path: Path) -> None:
    rows = [{"text": one["text"], "first": two["first"], "second": two["second"]}
            for one, two in zip(DATA["topics"][:7], DATA["pairs"][:7], strict=True)]  # fmt: skip
    new = write_rows(tmp_path / "new.csv", rows)
    assert call("predict", done.out, new, "--out", tmp_path / "all.csv").code == 0
    together = read_rows(tmp_path / "all.csv")
    for name in TASKS:
        assert call("predict", done.out, new, "--task", name, "--out", tmp_path / f"{name}.csv").code == 0
        own = read_rows(tmp_path / f"{name}.csv")
        assert [row["prediction"] for row in own] == [row[f"{name}.prediction"] for row in together]
        labels = bertune.load(done.out / "tasks" / name, threads=1).labels
        for label in labels:
            assert [float(row[f"prob:{label}"]) for row in own] == pytest.approx(
                [float(row[f"{name}.prob:{label}"]) for row in together], abs=1e-5
            )
    lines = call("predict", done.out, new, "--json").json_lines
    assert isinstance(lines[0]["many.prediction"], list)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["new.csv", "--task", "topic"], "did you mean 'topics'"),
        (["texts.csv"], "task pairs: "), (["new.csv", "--threshold", "0.4"], "pass --task"), (["-"], "pass --task"),
    ],
)  # fmt: skip
def test_what_cannot_be_predicted_is_said(
    arguments: list[str], text: str, done: Joint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_rows(Path("new.csv"), [{"text": "a", "first": "b", "second": "c"}])
    write_rows(Path("texts.csv"), [{"text": "a", "other": "b"}])
    found = call("predict", done.out, *arguments)
    assert found.code == 2 and text in found.err, found.err


def test_a_command_for_one_model_names_the_results_within(done: Joint, tmp_path: Path) -> None:
    found = call("evaluate", done.out, write_rows(tmp_path / "x.csv", DATA["topics"][:5]))
    assert found.code != 0 and "several tasks over one encoder" in found.err
    assert call("evaluate", done.out / "tasks" / "topics", tmp_path / "x.csv").code == 0


# Where the loss grows without end


STEADY = {"schedule": "constant", "warmup": 0.0}


def spoil(monkeypatch: pytest.MonkeyPatch, factor: float, *, after: int) -> None:
    """Losses are multiplied by `factor` after so many of them."""
    usual, calls = Loss.__call__, []

    def spoiled(self: Loss, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return usual(self, logits, targets) * (factor if len(calls) > after else 1.0)

    monkeypatch.setattr(Loss, "__call__", spoiled)


def test_a_divergence_keeps_the_last_good_weights_of_all_tasks_where_they_can_be_used(
    tmp_path: Path, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names, out = ("topics", "pairs"), tmp_path / "out"
    last = STEADY | {"select_best": False}
    whole = joint(tmp_path / "whole", tiny_bert, names=names, train=last | {"max_steps": 7})
    with monkeypatch.context() as patch:
        spoil(patch, math.nan, after=7)
        with pytest.raises(TrainingError) as caught:
            joint(out, tiny_bert, names=names, train=last)
    place = out / "run" / "last-good"
    assert "Step 8: the loss is no longer a finite number" in str(caught.value)
    assert f"The weights of step 7 are kept in {place}, which --model and bertune predict take." in str(caught.value)
    assert weights(place) == weights(whole.out)
    texts = ["the cat is old .", "a hammer and a nail ."]
    assert bertune.load(place, threads=1).predict(texts, task="topics") == \
        bertune.load(whole.out, threads=1).predict(texts, task="topics")  # fmt: skip
    new = write_rows(tmp_path / "new.csv", [{"text": text, "first": text, "second": "b"} for text in texts])
    assert call("predict", place, new, "--out", tmp_path / "scored.csv").code == 0
    told = Told()
    joint(tmp_path / "further", place, names=names, listener=told)
    assert not any("New weights" in text for text in told.said)
    with pytest.raises(ModelError, match="has not finished"):
        bertune.load(out)
    joint(out, tiny_bert, names=names, train=last, resume=True)  # what spoilt it is gone
    assert not place.exists() and bertune.load(out, threads=1).tasks == names


def test_a_loss_that_has_run_away_leaves_the_best_weights_so_far(
    tmp_path: Path, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names, out = ("topics", "pairs"), tmp_path / "out"
    whole = joint(tmp_path / "whole", tiny_bert, names=names, train=STEADY | {"epochs": 1})
    best = whole.metrics["train"]["steps"]
    spoil(monkeypatch, 20.0, after=best)
    with pytest.raises(TrainingError, match=rf"training diverges\..* The weights of step {best} are kept"):
        joint(out, tiny_bert, names=names, train=STEADY | {"epochs": 9})
    assert weights(out / "run" / "last-good") == weights(whole.out)


def test_where_nothing_good_was_saved_that_is_said(
    tmp_path: Path, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, math.nan, after=0)
    with pytest.raises(TrainingError, match="There are no good weights from before to keep"):
        joint(tmp_path / "out", tiny_bert, names=("topics",))
    assert not (tmp_path / "out/run/last-good").exists()


# Taking up, dropping, adding


def test_patience_waits_until_every_task_has_had_a_turn(tmp_path: Path, tiny_bert: Path) -> None:
    done = joint(
        tmp_path / "joint", tiny_bert, names=("topics", "pairs"),
        rows={"topics": MORE["topics"], "pairs": pair_rows(16)},
        train={"patience": 1, "evals_per_epoch": 8, "lr": 1e-9, "head_lr": 1e-9, "epochs": 4, "batch_size": 4},
        tasks={"pairs": {"train": {"batch_size": 16}}},
    )
    steps = done.metrics["train"]["steps_by_task"]
    assert all(steps.values()) and done.metrics["train"]["epochs"] < 4


def test_new_layers_are_no_matter_of_the_further_training_alone(tmp_path: Path, tiny_bert: Path) -> None:
    """Where a task reads a lower layer, the new ones are above what it trains alone."""
    tasks = {"many": {"model": {"layers": "0"}}}
    chosen = options(tiny_bert, names=("topics", "many"), tasks=tasks, then_alone=True)
    chosen["model"]["reinit_layers"] = 1
    data = {name: DATA[name] for name in chosen["tasks"]}
    done = bertune.multitask(chosen, out=tmp_path / "joint", data=data, listener=Told())
    assert set(done.metrics["alone"]) == {"topics", "many"}


@pytest.mark.parametrize(("names", "said"), [(("a", "A"), "are one folder"), (("n" * 101,), "100 characters at most")])
def test_names_that_are_no_folders_of_their_own_are_refused(
    names: tuple[str, ...], said: str, tmp_path: Path, tiny_bert: Path
) -> None:
    with pytest.raises(ConfigError, match=said):
        joint(tmp_path / "joint", tiny_bert, names=names)
    assert not (tmp_path / "joint").exists()


PRECISIONS = ["fp32", pytest.param("bf16", marks=pytest.mark.skipif(library() is None, reason="no kernels here"))]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("more", [{}, {"uncertainty": True, "sampling": "sqrt"}], ids=["plain", "uncertain"])
def test_a_resumed_training_ends_with_the_same_bits(
    precision: str, more: dict[str, Any], tmp_path: Path, tiny_bert: Path
) -> None:
    train = {"precision": precision, "checkpoint_steps": 12, "r_drop": 0.5}
    joint(tmp_path / "whole", tiny_bert, train=train, **more)
    with pytest.raises(Stop):
        joint(tmp_path / "cut", tiny_bert, train=train, listener=Stopper(13), **more)
    told = Told()
    joint(tmp_path / "cut", tiny_bert, train=train, listener=told, resume=True, **more)
    assert any("Resumed after step 12 of" in text for text in told.said)
    assert weights(tmp_path / "whole") == weights(tmp_path / "cut")
    first, second = (
        (tmp_path / name / "run" / "history.jsonl").read_text(encoding="utf-8") for name in ("whole", "cut")
    )
    assert first == second


def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path: Path, tiny_bert: Path) -> None:
    class Key(Told):
        def step(self, step: Any) -> None:
            super().step(step)
            if step.number == 5:
                signal.raise_signal(signal.SIGINT)

    with pytest.raises(Interrupted, match=r"Stopped after step 5 of .* --resume"):
        joint(tmp_path / "cut", tiny_bert, listener=Key())
    with pytest.raises(ModelError, match="has not finished"):
        bertune.load(tmp_path / "cut")
    joint(tmp_path / "cut", tiny_bert, resume=True)
    joint(tmp_path / "whole", tiny_bert)
    assert weights(tmp_path / "whole") == weights(tmp_path / "cut")


@pytest.mark.parametrize("arch", ["roberta", "distilbert", "electra", "modernbert"])
def test_other_architectures_are_shared_in_the_same_way(arch: str, tmp_path: Path, tiny_bert: Path) -> None:
    model = tmp_path / "model"
    tiny(arch).save_pretrained(model)
    shutil.copy(tiny_bert / "vocab.txt", model)
    joint(tmp_path / "out", model, names=("topics", "pairs"))
    found = bertune.load(tmp_path / "out", threads=1)
    call("convert", tmp_path / "out" / "tasks" / "topics", tmp_path / "alone")
    texts = [row["text"] for row in DATA["topics"][:5]]
    assert (found["topics"].logits(texts) == bertune.load(tmp_path / "alone", threads=1).logits(texts)).all()


@pytest.mark.parametrize("freeze", ["1", "encoder"])
def test_frozen_layers_stay_as_they_were(freeze: str, tmp_path: Path, tiny_bert: Path) -> None:
    chosen = options(tiny_bert, names=("topics", "many"))
    chosen["model"]["freeze"] = freeze
    bertune.multitask(chosen, out=tmp_path / "out", data={name: DATA[name] for name in ("topics", "many")})
    before, after = load_file(tiny_bert / "model.safetensors"), load_file(tmp_path / "out/encoder/model.safetensors")
    trained = ("pooler",) if freeze == "encoder" else ("pooler", "encoder.layer.1")
    frozen = [name for name in before if not name.startswith(trained)]
    assert all(torch.equal(before[name], after[f"bert.{name}"]) for name in frozen)


def test_other_options_are_not_taken_up(tmp_path: Path, tiny_bert: Path) -> None:
    with pytest.raises(Stop):
        joint(tmp_path / "out", tiny_bert, listener=Stopper(3))
    with pytest.raises(ConfigError, match="started with other options: sampling"):
        joint(tmp_path / "out", tiny_bert, resume=True, sampling="sqrt")


def test_a_dropped_task_is_named_and_the_others_keep_their_heads(done: Joint, tmp_path: Path) -> None:
    told = Told()
    joint(tmp_path / "out", done.out, names=("topics", "pairs"), listener=told, train={"lr": 1e-9, "head_lr": 1e-9})
    assert "No more among the tasks: many." in told.said
    assert not any("New weights" in text for text in told.said)
    before, after = (
        load_file(out / "tasks/topics/head.safetensors")["classifier.weight"] for out in (done.out, tmp_path / "out")
    )
    torch.testing.assert_close(before, after, atol=1e-5, rtol=0)


def test_an_added_task_gets_a_new_head_over_the_encoder_of_the_others(done: Joint, tmp_path: Path) -> None:
    told = Told()
    joint(tmp_path / "out", done.out, names=("topics", "fresh"), listener=told, train={"lr": 1e-9, "head_lr": 1e-9})
    assert any("Task fresh is new" in text for text in told.said)
    assert any("Task fresh: " in text and "New weights" in text for text in told.said)
    assert not any("Task topics: " in text and "New weights" in text for text in told.said)
    before, after = (load_file(out / "encoder/model.safetensors") for out in (done.out, tmp_path / "out"))
    assert all(torch.allclose(value, after[name], atol=1e-5) for name, value in before.items())


def test_what_is_trained_is_judged_by_the_layers_of_all_tasks(tmp_path: Path) -> None:
    model, names, low = make_tiny_bert(tmp_path / "model", layers=3), ("topics", "many"), {"model": {"layers": "0"}}

    def made(out: Path, *lowest: str, **more: Any) -> Joint:
        chosen = options(model, names=names, tasks=dict.fromkeys(lowest, low), **more)
        chosen["model"] |= {"freeze": "1", "dropout": 0.2}
        return bertune.multitask(chosen, out=out, data={name: DATA[name] for name in names})

    made(tmp_path / "out", "topics")
    with pytest.raises(ConfigError, match="no layer is trained with --freeze 1"):
        made(tmp_path / "none", *names)
    with pytest.raises(ConfigError, match=r"task topics, alone afterwards: --dropout 0\.2: no layer is trained"):
        made(tmp_path / "none", "topics", then_alone=True)
    assert not (tmp_path / "none").exists()


def test_a_task_with_other_labels_gets_a_new_head(done: Joint, tmp_path: Path, tiny_bert: Path) -> None:
    told = Told()
    chosen = options(done.out, names=("topics",))
    rows = [row | {"label": row["label"].upper()} for row in DATA["topics"]]
    bertune.multitask(chosen, out=tmp_path / "out", data={"topics": rows}, listener=told)
    assert any("had other labels" in text for text in told.said)


def test_a_task_trains_on_alone_and_that_is_taken_up_too(tmp_path: Path, tiny_bert: Path) -> None:
    names, train = ("topics", "many"), {"checkpoint_steps": 2}
    whole = joint(tmp_path / "whole", tiny_bert, names=names, train=train, then_alone=True)
    assert set(whole.metrics["alone"]) == set(names)
    steps = whole.metrics["train"]["steps"]

    class InAlone(Stopper):
        def step(self, step: Any) -> None:
            self.steps.append(step)
            if len(self.steps) == steps + 5:  # in the training of the first task alone
                raise Stop

    with pytest.raises(Stop):
        joint(tmp_path / "cut", tiny_bert, names=names, train=train, then_alone=True, listener=InAlone(0))
    told = Told()
    joint(tmp_path / "cut", tiny_bert, names=names, train=train, then_alone=True, listener=told, resume=True)
    assert not told.records or all("task" not in record for record in told.records)  # the joint part is not done again
    later = told.said[told.said.index("Task topics alone (1 of 2):") :]
    assert not any("New weights" in text for text in later)  # each goes on with its head
    for name in names:
        files = [tmp_path / run / "alone" / name / "model.safetensors" for run in ("whole", "cut")]
        assert files[0].read_bytes() == files[1].read_bytes()


def test_alone_a_task_may_learn_at_a_rate_of_its_own(
    tmp_path: Path, tiny_bert: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train = {"head_lr": 2e-2, "schedule": "constant", "warmup": 0.0}

    def rates(out: str, **more: Any) -> list[float]:
        told = Told()
        result = joint(tmp_path / out, tiny_bert, names=("topics",), train=train, then_alone=True, listener=told,
                       **more)  # fmt: skip
        steps = result.metrics["train"]["steps"]
        assert {step.lr for step in told.steps[:steps]} == {5e-3}  # the joint part
        plans = [plan for plan in told.said if plan.startswith("Training: ")]
        assert len(plans) == 1
        heads.append("(head: " in plans[0])
        return [step.lr for step in told.steps[steps:]]

    heads: list[bool] = []
    assert set(rates("usual")) == {5e-3}
    assert set(rates("lower", alone_lr=1e-4)) == {1e-4}
    assert heads == [True, False]  # the lower one is that of the head, too
    assert weights(tmp_path / "usual") == weights(tmp_path / "lower")
    joint(tmp_path / "lower", tiny_bert, names=("topics",), train=train, then_alone=True, resume=True)
    assert "other options are not applied: alone_lr (was 0.0001, now None)" in caplog.text


def test_the_record_names_the_rate_alone_only_where_there_is_one(tiny_bert: Path) -> None:
    plain = MultiConfig.parse(options(tiny_bert, then_alone=True))
    assert "alone_lr" not in plain.record()
    assert MultiConfig.parse(options(tiny_bert, then_alone=True, alone_lr=1e-5)).record() == \
        plain.record() | {"alone_lr": 1e-5}  # fmt: skip


# The command, and what is refused


def test_one_file_of_tasks_is_all_that_the_command_needs(tmp_path: Path, tiny_bert: Path) -> None:
    chosen = options(tiny_bert)
    for name, task in chosen["tasks"].items():
        rows = write_rows(tmp_path / f"{name}.csv", DATA[name])
        task["data"] = task.get("data", {}) | {"files": str(rows)}
    (tmp_path / "tasks.yaml").write_text(yaml.safe_dump(chosen), encoding="utf-8")
    out = tmp_path / "out"
    found = call("multitask", tmp_path / "tasks.yaml", "--sampling", "sqrt", "--out", out, "--json")
    assert found.code == 0, found.err
    assert set(found.json["metrics"]["tasks"]) == set(TASKS)
    assert call("multitask", tmp_path / "tasks.yaml", "--out", out).code == 2
    again = call("multitask", "--resume", "--out", out)
    assert again.code == 0 and "nothing to do" in again.err
    assert "hamming_loss" in again.out
    replaced = call("multitask", tmp_path / "tasks.yaml", "--epochs", "1", "--overwrite", "--out", out)
    assert replaced.code == 0, replaced.err
    (out / "tasks" / "mine").mkdir()
    assert call("multitask", tmp_path / "tasks.yaml", "--overwrite", "--out", out).code == 2


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"names": ()}, "none are named"), ({"temperature": 3}, "temperature 3 needs sampling temperature"),
        ({"alone_lr": 1e-5}, "alone_lr 1e-05 needs then_alone"),
        ({"then_alone": True, "alone_lr": 0}, "alone_lr"),
        ({"uncertainty": True, "tasks": {"many": {"weight": 2}}}, "leave one out"),
        ({"tasks": {"many": {"train": {"lr": 1e-3}}}}, "belongs to all tasks"),
        ({"tasks": {"many": {"wieght": 2}}}, "wieght"), ({"train": {"adversarial": "freelb"}}, "freelb moves"),
        ({"train": {"metric": "accuracy"}}, "each task has its own"),
        ({"train": {"evaluate_test": True}}, "at the end"),
        ({"tasks": {"many": {"model": {"long_text": "auto"}}}}, "long_text auto"),
        ({"tasks": {"many": {"data": {"test": 0.2}}}}, "task many: no validation rows"),
        ({"tasks": {"topics": {"metric": "micro_f1"}}}, "task topics: --metric micro_f1"),
        ({"data": {"files": "x.csv"}}, "'data' belongs under each task"), ({"taks": {}}, "'taks' is not an option"),
        ({"tasks": {"a/b": {}}, "names": ("a/b",)}, "letters, digits"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_before_anything_is_written(
    changes: dict[str, Any], text: str, tmp_path: Path, tiny_bert: Path
) -> None:
    with pytest.raises(ConfigError, match=text):
        joint(tmp_path / "out", tiny_bert, **changes)
    assert not (tmp_path / "out").exists()


def test_lora_beside_a_task_of_a_joint_result_is_refused_before_any_work(tmp_path: Path, tiny_bert: Path) -> None:
    joint(tmp_path / "joint", tiny_bert, names=("topics",))
    task = tmp_path / "joint" / "tasks" / "topics"
    with pytest.raises(ConfigError, match=rf"--lora 2: {task} is a task of bertune multitask.* bertune convert {task}"):
        bertune.train(DATA["topics"], out=tmp_path / "out", model=task, settings=QUICK | {"model.lora": 2})
    assert not (tmp_path / "out").exists()


def test_lora_is_refused(tmp_path: Path, tiny_bert: Path) -> None:
    chosen = options(tiny_bert)
    chosen["model"]["lora"] = 4
    with pytest.raises(ConfigError, match="not in a joint training"):
        bertune.multitask(chosen, out=tmp_path / "out", data=DATA)


def test_a_name_that_stands_twice_in_the_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tasks.yaml").write_text("tasks:\n  one: {}\n  two: {}\n  one: {}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="line 4: 'one' stands there twice"):
        MultiConfig.load(tmp_path / "tasks.yaml")


@pytest.mark.parametrize(("text", "said"), [
    ("1: {}", "'tasks.1' is no name as YAML reads it; put it in quotes."),
    ("'my task': {}", "'tasks': 'my task' is a folder's name, too: letters, digits, - and _ only."),
    ("one:", "'tasks.one' holds nothing; write its options below it, NAME: VALUE each."),
    ("one: [a]", "'tasks.one' holds ['a']; write its options below it"),
    ("one: {wieght: 2}", "'tasks.one.wieght' is not an option."),
    ("one: {weight: .inf}", "'tasks.one.weight' cannot be inf: input should be a finite number."),
])  # fmt: skip
def test_a_mistake_in_the_file_is_told_with_its_place(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "tasks.yaml").write_text(f"tasks:\n  {text}\n", encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        MultiConfig.load(tmp_path / "tasks.yaml")
    assert said in str(caught.value)


def test_another_command_does_not_go_on_with_a_joint_training(done: Joint, tmp_path: Path) -> None:
    rows = tmp_path / "rows.csv"
    write_rows(rows, DATA["topics"])
    before = {path: path.read_bytes() for path in done.out.rglob("*") if path.is_file()}
    for command in ("train", "pretrain"):
        failed = call(command, rows, "--resume", "--out", done.out)
        assert failed.code == 2
        assert f"--resume: {done.out} was made by bertune multitask, which bertune {command} cannot go on" in failed.err
    assert before == {path: path.read_bytes() for path in done.out.rglob("*") if path.is_file()}


def test_the_folder_of_a_joint_result_is_no_model_but_holds_some(done: Joint, tmp_path: Path) -> None:
    failed = call("convert", done.out, tmp_path / "model")
    assert failed.code == 2
    assert f"pass its encoder, {done.out / 'encoder'}, or one of the tasks in {done.out / 'tasks'}: " in failed.err


def test_data_for_an_unknown_task_is_refused(tmp_path: Path, tiny_bert: Path) -> None:
    with pytest.raises(ConfigError, match="'others', which is no task"):
        bertune.multitask(options(tiny_bert), out=tmp_path / "out", data=DATA | {"others": DATA["topics"]})


def test_what_was_written_down_reads_back_as_the_same(tmp_path: Path, tiny_bert: Path) -> None:
    config = MultiConfig.parse(options(tiny_bert, sampling="temperature", temperature=5))
    (tmp_path / "tasks.yaml").write_text(config.to_yaml(), encoding="utf-8")
    assert config.changes(MultiConfig.load(tmp_path / "tasks.yaml")) == []
