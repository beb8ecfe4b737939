"""The range test: rates rise evenly on a logarithmic scale, and what is said follows from the losses."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

import bertune
from bertune.errors import Interrupted
from bertune.report.rates import draw_range
from bertune.training.lr_range import in_words, judged, smoothed
from shell import Done, call
from tiny_runs import Told, topic_rows

pytestmark = pytest.mark.usefixtures("one_thread", "no_pictures")

RATES = np.geomspace(1e-6, 1e-1, 120)
LOGS = np.log10(RATES)


def valley(*, away: float = -2.0) -> np.ndarray:
    """Losses of 1 that fall to 0.4 around a rate of 1e-3 and rise without end from 10 ** away on."""
    fall = 0.6 / (1 + np.exp(-6 * (LOGS + 4)))
    return 1 - fall + np.exp(np.clip(8 * (LOGS - away), None, 50))


def test_a_constant_loss_is_smooth_already_and_one_step_stands_for_itself() -> None:
    assert np.allclose(smoothed(np.full(30, 0.7)), 0.7)
    assert smoothed(np.array([2.0, 0.0]))[0] == 2.0


def test_the_suggestion_is_a_tenth_of_the_rate_with_the_lowest_smoothed_loss() -> None:
    found = judged(RATES, valley())
    line = smoothed(valley())

    assert found["lowest"] == {"lr": RATES[np.argmin(line)], "loss": pytest.approx(line.min())}
    assert 1e-3 < found["lowest"]["lr"] < 1e-2
    assert found["suggestion"] == pytest.approx(found["lowest"]["lr"] / 10)
    assert found["first"] == pytest.approx(1.0, abs=0.01)


def test_it_runs_away_where_the_smoothed_loss_is_half_as_much_again_as_at_first() -> None:
    found = judged(RATES, valley())
    line = smoothed(valley())
    place = int(np.flatnonzero(found["diverged"] == RATES)[0])

    assert line[place] > 1.5 * found["first"] >= line[place - 1]
    assert "From " in in_words(found) and "on training runs away." in in_words(found)


def test_a_loss_that_is_no_number_any_more_has_run_away_there() -> None:
    losses = np.append(np.linspace(1.0, 0.5, 80), np.inf)
    found = judged(RATES[:81], losses)

    assert found["diverged"] == RATES[80]
    assert found["points"][-1] == {"lr": RATES[80], "loss": None, "smoothed": None}
    json.dumps(found, allow_nan=False)


def test_a_loss_that_does_not_fall_suggests_nothing() -> None:
    found = judged(RATES, 1 + 0.01 * np.sin(np.arange(120)))

    assert found["suggestion"] is None and found["diverged"] is None
    assert in_words(found) == (
        "The loss hardly falls below 1 at any rate, so that none is suggested. Training does not run away up to 0.1."
    )


def test_a_first_batch_that_happens_to_be_easy_suggests_nothing() -> None:
    losses = np.ones(120)
    losses[0] = 0.8

    assert judged(RATES, losses)["suggestion"] is None


@pytest.fixture
def table(tmp_path: Path) -> Path:
    pl.DataFrame(topic_rows(120)).write_csv(tmp_path / "rows.csv")
    return tmp_path / "rows.csv"


def lr(table: Path, model: Path, out: Path, *more: str) -> Done:
    quick = ("--batch-size", "8", "--threads", "1", "--set", "model.max_length=24", "--set", "train.precision=fp32")
    return call("lr", table, "--model", model, "--out", out, *quick, *more)


def test_through_the_command_line_it_leaves_figures_and_pictures_and_no_model(
    table: Path, tmp_path: Path, tiny_bert: Path
) -> None:
    out = tmp_path / "out"
    done = lr(table, tiny_bert, out, "--from", "1e-4", "--to", "10", "--steps", "60", "--json")
    assert done.code == 0, done.err
    found = done.json["lr"]
    assert found == json.loads((out / "run/lr-range.json").read_text(encoding="utf-8"))
    rates = np.array([point["lr"] for point in found["points"]])
    assert np.allclose(rates, np.geomspace(1e-4, 10, 60)[: len(rates)])
    assert found["diverged"] is not None and len(rates) <= 60
    assert (found["batch_size"], found["head"]) == (8, 10)
    assert (out / "run/lr-range.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (out / "run/lr-range.svg").read_text(encoding="utf-8")
    assert not list(out.glob("*.safetensors"))

    again = lr(table, tiny_bert, out)
    assert again.code == 2 and "holds an earlier run" in again.err
    predicted = call("predict", out, "a cat .")
    assert "a test of learning rates, and no model." in predicted.err


def test_in_python_it_is_the_same_and_repeatable(table: Path, tmp_path: Path, tiny_bert: Path) -> None:
    how: dict[str, Any] = {
        "model": tiny_bert, "steps": 25, "batch_size": 8, "settings": {"train.threads": 1, "train.precision": "fp32"}
    }
    one = bertune.lr_range(table, out=tmp_path / "one", **how)
    other = bertune.lr_range(table, out=tmp_path / "other", **how)

    assert one.found == other.found
    assert len(one.found["points"]) == 25
    assert (tmp_path / "one" / "run" / "lr-range.svg").is_file()


def test_it_begins_with_the_loss_of_the_training_that_follows(table: Path, tmp_path: Path, tiny_bert: Path) -> None:
    told = Told()
    quick: dict[str, Any] = {"train.threads": 1, "train.precision": "fp32", "train.max_steps": 1}
    bertune.train(table, out=tmp_path / "run", model=tiny_bert, batch_size=8, settings=quick, listener=told)
    del quick["train.max_steps"]
    found = bertune.lr_range(table, out=tmp_path / "lr", model=tiny_bert, batch_size=8, steps=20, settings=quick).found

    assert found["points"][0]["loss"] == told.steps[0].loss


@pytest.mark.parametrize("way", ["tail", "hierarchical"])
def test_it_reads_long_texts_as_the_training_that_follows(
    table: Path, tmp_path: Path, tiny_bert: Path, way: str
) -> None:
    told = Told()
    quick: dict[str, Any] = {
        "train.threads": 1, "train.precision": "fp32", "model.long_text": way, "model.max_length": 7,
    }  # fmt: skip
    bertune.train(
        table, out=tmp_path / "run", model=tiny_bert, batch_size=8, settings=quick | {"train.max_steps": 1},
        listener=told,
    )  # fmt: skip
    found = bertune.lr_range(table, out=tmp_path / "lr", model=tiny_bert, batch_size=8, steps=20, settings=quick).found

    assert found["points"][0]["loss"] == told.steps[0].loss


@pytest.mark.parametrize("first", [1, 3])
def test_a_training_that_is_lost_at_the_lowest_rates_says_so(first: int) -> None:
    rates, losses = np.geomspace(1e20, 1e22, first), np.append(np.full(first - 1, 1.1), np.inf)
    found = judged(rates, losses, steps=100)

    assert found["diverged"] == rates[-1] and found["suggestion"] is None
    json.dumps(found, allow_nan=False)
    said = in_words(found)
    assert "no number at the lowest rate" in said if first == 1 else "From 1e+22 on training runs away" in said
    draw_range(found)


def test_ctrl_c_ends_it_with_a_sentence(table: Path, tmp_path: Path, tiny_bert: Path) -> None:
    class Stopper(Told):
        def step(self, step: Any) -> None:
            if step.number == 3:
                signal.raise_signal(signal.SIGINT)

    with pytest.raises(Interrupted, match="Stopped; a range test keeps nothing, and begins anew with --overwrite"):
        bertune.lr_range(table, out=tmp_path / "out", model=tiny_bert, steps=20, listener=Stopper())
    assert not (tmp_path / "out" / "run" / "lr-range.json").exists()


def test_what_a_configuration_says_of_schedules_and_averages_changes_nothing(
    table: Path, tmp_path: Path, tiny_bert: Path
) -> None:
    quick: dict[str, Any] = {"train.threads": 1, "train.precision": "fp32"}
    idle = {"train.lr": 1e-3, "train.unfreeze": "epoch", "train.average": "ema", "train.ema_decay": 0.9}
    found = [
        bertune.lr_range(table, out=tmp_path / name, model=tiny_bert, steps=20, settings=quick | more).found
        for name, more in (("plain", {}), ("idle", idle))
    ]

    assert found[0] == found[1]


@pytest.mark.parametrize(("options", "message"), [
    (["--long-text", "auto"], "--long-text auto: is chosen by trainings at a rate that is known."),
    (["--join", "max"], "--join max: needs --long-text hierarchical."),
    (["--to", "inf"], "--from 1e-06 --to inf: the rate rises from a positive one to a higher one, both finite."),
    (["--steps", "5"], "--steps 5: a range test takes at least 20."),
    (["--from", "1", "--to", "0.1"], "--from 1 --to 0.1: the rate rises from a positive one to a higher one"),
    (["--set", "train.epochs=3"], "--set train.epochs=3: has no effect here"),
    (["--lr", "1e-4"], "no option --lr"),
])  # fmt: skip
def test_what_makes_no_range_is_refused(
    options: list[str], message: str, table: Path, tmp_path: Path, tiny_bert: Path
) -> None:
    done = lr(table, tiny_bert, tmp_path / "out", *options)
    assert done.code == 2 and message in done.err
    assert not (tmp_path / "out").exists()
