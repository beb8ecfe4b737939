"""Which weights a run keeps: those of the best evaluation by the chosen metric, and when it stops early."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import bertune
from bertune.errors import ConfigError
from bertune.training import base, fit
from bertune.training.run import Result
from tiny_runs import QUICK, TOPICS, Told, multi_rows, topic_rows

pytestmark = pytest.mark.usefixtures("one_thread", "no_pictures")

ROWS = topic_rows(60)
# A constant rate: the weights after an epoch are then the same whether or not more epochs follow.
SETTINGS = QUICK | {"train.schedule": "constant", "train.warmup": 0.0, "train.epochs": 4, "train.batch_size": 12}
PER_EPOCH = 4  # 48 rows train
Run = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path, tiny_bert: Path) -> Run:
    numbers = iter(range(100))

    def train(*, rows: Any = None, listener: Any = None, **settings: Any) -> Result:
        named = {name.replace("__", "."): value for name, value in settings.items()}
        return bertune.train(
            rows or ROWS, out=tmp_path / str(next(numbers)), model=tiny_bert, settings=SETTINGS | named,
            listener=listener,
        )  # fmt: skip

    return train


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes the evaluations of the validation split (6 rows) give these values, one after another."""

    def script(values: list[float], *, metric: str = "accuracy") -> None:
        usual, left = fit.evaluate, iter(values)

        def evaluate(kind: Any, labels: Any, logits: Any, targets: Any) -> dict[str, Any]:
            found = usual(kind, labels, logits, targets)
            return found | {metric: next(left)} if len(targets) == 6 else found

        monkeypatch.setattr(fit, "evaluate", evaluate)

    return script


def weights(result: Result) -> bytes:
    return (result.out / "model.safetensors").read_bytes()


def last_after(run: Run, epochs: int) -> bytes:
    return weights(run(train__epochs=epochs, train__select_best=False))


@pytest.mark.parametrize(
    ("values", "best"),
    [([0.1, 0.9, 0.5, 0.3], 2), ([0.1, 0.2, 0.3, 0.4], 4), ([0.7, 0.7, 0.7, 0.7], 1), ([0.0, 0.0, 0.0, 0.0], 1)],
    ids=["in the middle", "at the end", "ties keep the earlier one", "nothing right at all"],
)
def test_the_weights_of_the_best_evaluation_are_kept(
    run: Run, scripted: Callable[..., None], values: list[float], best: int
) -> None:
    wanted = last_after(run, best)
    scripted(values)
    result = run()

    assert weights(result) == wanted
    assert result.metrics["train"]["best_step"] == best * PER_EPOCH
    assert result.metrics["train"]["steps"] == 4 * PER_EPOCH


def test_of_a_loss_the_lowest_is_best(run: Run, scripted: Callable[..., None]) -> None:
    wanted = last_after(run, 3)
    scripted([0.9, 0.8, 0.1, 0.7], metric="log_loss")

    assert weights(run(train__metric="loss")) == wanted


def test_patience_stops_after_that_many_evaluations_without_a_better_one(
    run: Run, scripted: Callable[..., None]
) -> None:
    wanted = last_after(run, 1)
    scripted([0.5, 0.4, 0.5, 0.9])
    told = Told()
    result = run(train__patience=2, listener=told)

    assert weights(result) == wanted
    assert result.metrics["train"]["steps"] == 3 * PER_EPOCH == len(told.steps)
    assert "Stopped early after step 12: no better accuracy in 2 evaluations." in told.said


def test_a_better_evaluation_gives_patience_anew(run: Run, scripted: Callable[..., None]) -> None:
    scripted([0.5, 0.4, 0.6, 0.4])
    told = Told()
    result = run(train__patience=2, listener=told)

    assert result.metrics["train"]["steps"] == 4 * PER_EPOCH
    assert not [text for text in told.said if "Stopped early" in text]


def test_without_selection_the_last_weights_count(run: Run, scripted: Callable[..., None]) -> None:
    wanted = last_after(run, 4)
    scripted([0.9, 0.1, 0.1, 0.1])

    assert weights(run(train__select_best=False)) == wanted


def test_without_validation_rows_the_last_weights_count(run: Run) -> None:
    result = run(data__hold_out=False)

    assert result.metrics["train"]["steps"] == 20
    assert result.metrics["train"]["best_step"] is None
    assert weights(result) == weights(run(data__hold_out=False, train__select_best=False))


def test_patience_without_validation_rows_is_an_error(run: Run) -> None:
    with pytest.raises(ConfigError, match=r"--patience 1: there are no validation rows to stop by\. Leave it out"):
        run(data__hold_out=False, train__patience=1)


@pytest.mark.parametrize(
    ("option", "said"),
    [({"train__evals_per_epoch": 3}, "train.evals_per_epoch 3: there are no validation rows"),
     ({"train__evaluate_test": True}, "train.evaluate_test: there are no test rows to measure")],
)  # fmt: skip
def test_what_would_measure_a_split_that_is_not_there_is_an_error(
    run: Run, option: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        run(data__hold_out=False, **option)


def test_the_test_split_is_measured_for_the_curve_and_chooses_nothing(run: Run) -> None:
    told = Told()
    with_test = run(train__evaluate_test=True, listener=told)

    assert [record["split"] for record in told.records] == ["train", "valid", "test"] * 4
    assert weights(with_test) == weights(run())


def test_evaluations_within_an_epoch_lie_evenly(run: Run) -> None:
    told = Told()
    run(train__evals_per_epoch=2, train__epochs=2, listener=told)

    assert [(record["step"], record["epoch"]) for record in told.records if record["split"] == "valid"] == [
        (2, 0.5), (4, 1.0), (6, 1.5), (8, 2.0),
    ]  # fmt: skip
    assert [record["step"] for record in told.records if record["split"] == "train"] == [4, 8]


def test_the_training_record_is_what_the_epoch_saw(run: Run) -> None:
    told = Told()
    run(listener=told)
    measured = [record["metrics"] for record in told.records if record["split"] == "train"]

    for epoch, metrics in enumerate(measured):
        steps = told.steps[epoch * PER_EPOCH : (epoch + 1) * PER_EPOCH]
        mean = sum(step.loss * step.rows for step in steps) / sum(step.rows for step in steps)
        assert metrics["log_loss"] == pytest.approx(mean, rel=1e-5)


def test_a_long_history_tells_the_mean_loss_over_the_rows_since_the_record_before(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "RECORDS", 4)
    told = Told()
    result = run(listener=told, train__batch_size=10)  # 48 rows: the last step of an epoch has 8
    lines = (result.out / "run/history.jsonl").read_text(encoding="utf-8").splitlines()
    records = [record for record in map(json.loads, lines) if record["kind"] == "step"]

    assert [record["step"] for record in records] == [5, 10, 15, 20]
    for record in records:
        steps = told.steps[record["step"] - 5 : record["step"]]
        mean = sum(step.loss * step.rows for step in steps) / sum(step.rows for step in steps)
        assert record["loss"] == pytest.approx(mean, rel=1e-9)


@pytest.mark.parametrize("metric", ["roc_auc_macro", "average_precision_micro", "sample_f1", "hamming_loss"])
def test_multi_label_runs_can_be_chosen_by_any_of_their_metrics(run: Run, metric: str) -> None:
    result = run(rows=multi_rows(100), data__label=list(TOPICS), train__metric=metric, train__epochs=1)

    assert result.metrics["metric"] == metric
    assert metric in result.metrics["valid"]


def test_a_metric_that_the_validation_rows_leave_undefined_is_refused_before_training(
    run: Run, tmp_path: Path
) -> None:
    import polars as pl

    pl.DataFrame([{"text": "the old house", **dict.fromkeys(TOPICS, 0)}] * 5).write_csv(tmp_path / "valid.csv")
    told = Told()
    with pytest.raises(ConfigError, match="--metric roc_auc_macro: undefined on these 5 rows"):
        run(
            rows=multi_rows(40), data__label=list(TOPICS), data__valid=str(tmp_path / "valid.csv"),
            train__metric="roc_auc_macro", listener=told,
        )  # fmt: skip

    assert not told.steps
    assert not (tmp_path / "0").exists()
