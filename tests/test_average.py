"""Averaged weights: the average is what its formula says, it is what is measured and kept, and training goes on as if
nobody had looked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bertune.config import TrainConfig
from bertune.training.average import Average, make_average
from bertune.training.fit import Fit
from technique_runs import ROWS, same_bits, saved, stopped_and_resumed, train
from tiny_runs import Told

pytestmark = pytest.mark.usefixtures("one_thread", "no_pictures")

WORDS = "encoder.embeddings.word.weight"
AVERAGES = [
    {"train__average": "ema", "train__ema_decay": 0.8, "train__average_every": 1},
    {"train__average": "ema", "train__ema_decay": 0.9, "train__average_every": 4},
    {"train__average": "swa", "train__swa_start": 0.4, "train__average_every": 1},
    {"train__average": "swa", "train__swa_start": 0.4, "train__average_every": 3},
]


def looked(average: Average, values: np.ndarray) -> float:
    """The average of a weight that is values[t - 1] after step t."""
    last = 0
    for step, value in enumerate(values, 1):
        if average.due(step, measured=False):
            average.look({"w": torch.tensor([value], dtype=torch.float64)}, step, last=last)
            last = step
    return float(average.values["w"])


VALUES = np.random.default_rng(0).normal(size=40)


def test_ema_is_the_weighted_mean_of_all_steps() -> None:
    weights = 0.9 ** np.arange(39, -1, -1)

    assert looked(Average(0.9, 0, 1), VALUES) == pytest.approx((weights * VALUES).sum() / weights.sum())


def test_swa_is_the_plain_mean_from_its_start_on() -> None:
    assert looked(Average(None, 25, 1), VALUES) == pytest.approx(VALUES[25:].mean())


@pytest.mark.parametrize("decay", [0.9, None])
def test_a_look_stands_for_all_steps_since_the_last(decay: float | None) -> None:
    held = np.repeat(VALUES[4::5], 5)  # as if the weights had jumped to what each look sees

    assert looked(Average(decay, 0, 5), VALUES) == pytest.approx(looked(Average(decay, 0, 1), held))


def test_no_step_before_the_start_counts_whenever_the_first_look_is() -> None:
    config = TrainConfig.model_validate({"average": "swa", "swa_start": 0.5, "average_every": 7})
    average = make_average(config, steps=41)
    assert average is not None and average.begin == 20
    held = np.concatenate([np.full(20, 1e9), np.full(20, 3.0)])

    assert looked(average, held) == 3.0


class Seen:
    """The weights after every step of a run, as training itself has them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.weights: dict[int, dict[str, Tensor]] = {}
        usual = Fit._record

        def watched(fit: Fit, step: Any) -> None:
            usual(fit, step)
            fit.optimizer.finish(step.number)
            self.weights[step.number] = {name: value.clone() for name, value in fit._weights().items()}

        monkeypatch.setattr(Fit, "_record", watched)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_result_is_the_average_of_the_weights_that_training_had(
    tmp_path: Path, tiny_bert: Path, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = Seen(monkeypatch)
    result = train(
        tmp_path / "out", tiny_bert, train__average="swa", train__swa_start=0.5, train__average_every=1,
        train__select_best=False, train__precision=precision,
    )  # fmt: skip
    found = saved(result)
    pairs = {WORDS: "bert.embeddings.word_embeddings.weight", "head.classifier.weight": "classifier.weight",
             "encoder.layers.0.down.weight": "bert.encoder.layer.0.output.dense.weight"}  # fmt: skip
    for ours, theirs in pairs.items():
        each = torch.stack([seen.weights[step][ours].double() for step in range(7, 13)])
        assert torch.allclose(found[theirs].double(), each.mean(dim=0), rtol=0, atol=1e-6), ours
        assert not torch.allclose(found[theirs].double(), each[-1], rtol=0, atol=1e-5), ours


def test_training_goes_on_as_if_nobody_had_looked(
    tmp_path: Path, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = Seen(monkeypatch)
    train(tmp_path / "plain", tiny_bert)
    plain = seen.weights[12]
    train(tmp_path / "out", tiny_bert, train__average="ema", train__average_every=1)

    assert all(torch.equal(value, seen.weights[12][name]) for name, value in plain.items())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_what_is_measured_while_training_is_the_average(tmp_path: Path, tiny_bert: Path, precision: str) -> None:
    told = Told()
    result = train(
        tmp_path / "out", tiny_bert, rows=ROWS * 2, listener=told, train__average="ema", train__ema_decay=0.5,
        train__average_every=3, train__precision=precision, train__metric="log_loss",
        decide__calibration="none",
    )  # fmt: skip
    best = min(
        record["metrics"]["log_loss"] for record in told.records if record["split"] == "valid"
    )
    # In bf16 the run measures with rounded weights, the result is measured in fp32.
    assert result.metrics["valid"]["log_loss"] == pytest.approx(best, rel=1e-5 if precision == "fp32" else 2e-2)


def test_before_swa_begins_the_weights_themselves_are_measured(tmp_path: Path, tiny_bert: Path) -> None:
    swa = {"train__average": "swa", "train__swa_start": 0.7, "train__average_every": 1}
    records = []
    for name, settings in (("late", swa), ("plain", {})):
        told = Told()
        train(tmp_path / name, tiny_bert, listener=told, **settings)
        records.append([record["metrics"]["log_loss"] for record in told.records if record["split"] == "valid"])

    assert records[0][0] == records[1][0]
    assert records[0][1] != records[1][1]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("settings", AVERAGES, ids=lambda s: "-".join(str(v) for v in s.values()))
@pytest.mark.parametrize("at", [4, 10])
def test_a_resumed_run_ends_with_the_same_bits(
    tmp_path: Path, tiny_bert: Path, settings: dict[str, Any], precision: str, at: int
) -> None:
    settings = settings | {"train__precision": precision, "train__select_best": False}
    whole = train(tmp_path / "whole", tiny_bert, **settings)

    assert same_bits(stopped_and_resumed(tmp_path / "out", tiny_bert, at=at, **settings), whole)
