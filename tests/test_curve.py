"""The learning curve: nested shares, a power law found again, and words that fit the figures."""

from __future__ import annotations

import csv
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import curve_fit

import bertune
from bertune.data.splits import share_of_rows
from bertune.evaluate.growth import at, fit_growth
from bertune.training.curve import in_words
from shell import Done, call
from tiny_runs import QUICK, topic_rows

pytestmark = pytest.mark.usefixtures("one_thread")


@given(
    rows=st.integers(1, 200), kind=st.sampled_from(["single", "multi", "grouped"]), seed=st.integers(0, 5),
    shares=st.lists(st.floats(0.01, 1.0), min_size=2, max_size=4),
)
def test_larger_shares_hold_smaller_ones(rows: int, kind: str, seed: int, shares: list[float]) -> None:
    random = np.random.default_rng(seed)
    targets: Any = random.integers(0, 3, rows) if kind != "multi" else (random.random((rows, 3)) < 0.3)
    groups = random.integers(0, 9, rows).tolist() if kind == "grouped" else None
    task = "multi" if kind == "multi" else "single"
    chosen = [share_of_rows(targets, task, share=share, seed=seed, groups=groups) for share in sorted(shares)]
    for smaller, larger in itertools.pairwise(chosen):
        assert set(smaller) <= set(larger)
    for share, taken in zip(sorted(shares), chosen, strict=True):
        assert len(taken) == len(set(taken.tolist()))
        if groups is None:
            assert len(taken) == max(1, round(share * rows))
        else:
            names = [{groups[row] for row in part} for part in (taken, np.setdiff1d(np.arange(rows), taken))]
            assert not names[0] & names[1]


def test_a_share_keeps_the_shares_of_single_labels() -> None:
    targets = np.repeat([0, 1, 2], [600, 300, 100])
    taken = share_of_rows(targets, "single", share=0.1, seed=3)
    assert np.abs(np.bincount(targets[taken]) - [60, 30, 10]).max() <= 1
    assert (share_of_rows(targets, "single", share=0.1, seed=3) == taken).all()
    assert (share_of_rows(targets, "single", share=0.1, seed=4) != taken).any()


@pytest.mark.parametrize("floor, factor, power", [(0.1, 3.0, 0.5), (0.0, 2.0, 0.3), (0.05, 10.0, 1.0)])
def test_a_power_law_is_found_again(floor: float, factor: float, power: float) -> None:
    rows = np.array([100.0, 200.0, 400.0, 800.0, 1600.0])
    errors = floor + factor * rows**-power
    found = fit_growth(rows, errors[None], np.ones(5))
    assert np.allclose(at(found, 3200.0), floor + factor * 3200.0**-power, rtol=0.01)
    assert found[0] == pytest.approx([floor, factor, power], abs=0.01, rel=0.15)


def test_the_fit_equals_scipys_where_nothing_binds() -> None:
    random = np.random.default_rng(0)
    rows = np.array([100.0, 200.0, 400.0, 800.0, 1600.0, 3200.0])
    errors = 0.1 + 3.0 * rows**-0.5 + random.normal(0, 0.002, 6)
    found = fit_growth(rows, errors[None], np.ones(6))
    wanted, _ = curve_fit(lambda n, a, b, c: a + b * n**-c, rows, errors, p0=(0.1, 1.0, 0.5))
    assert at(found, 6400.0)[0] == pytest.approx(wanted[0] + wanted[1] * 6400.0 ** -wanted[2], abs=5e-4)


def test_errors_that_do_not_fall_are_foretold_to_stay() -> None:
    rows = np.array([100.0, 200.0, 400.0])
    found = fit_growth(rows, np.array([[0.2, 0.2, 0.2], [0.1, 0.2, 0.3]]), np.ones(3))
    assert at(found, 800.0) == pytest.approx([0.2, 0.2])
    assert (found[:, :2] >= 0).all()


def curve(tmp_path: Path, model: Path, *more: str, out: str = "curve") -> Done:
    settings = [item for name, value in QUICK.items() for item in ("--set", f"{name}={value}")]
    return call("curve", tmp_path / "rows.csv", "--model", model, "--out", tmp_path / out, *settings, *more)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    pl.DataFrame(topic_rows(260)).write_csv(tmp_path / "rows.csv")
    return tmp_path / "rows.csv"


def test_a_curve_of_real_trainings_through_the_command_line(table: Path, tmp_path: Path, tiny_bert: Path) -> None:
    done = curve(tmp_path, tiny_bert, "--shares", "0.2,0.5,1", "--json")
    assert done.code == 0, done.err
    found = done.json["curve"]
    assert found == json.loads((tmp_path / "curve/run/learning-curve.json").read_text(encoding="utf-8"))
    assert (tmp_path / "curve/run/learning-curve.png").read_bytes().startswith(b"\x89PNG")
    assert [point["rows"] for point in found["points"]] == [42, 104, 208]
    trained: dict[str, set[str]] = {}
    for point in found["points"]:
        each = []
        for number in (0, 1):
            place = tmp_path / f"curve/run/curve/{point['share']:g}-{number}"
            each.append(json.loads((place / "run/metrics.json").read_text("utf-8"))["test"]["accuracy"])
            with (place / "run/splits.csv").open(encoding="utf-8") as file:
                rows = [(row["split"], row["row"]) for row in csv.DictReader(file)]
            trained[f"{point['share']:g}-{number}"] = {row for split, row in rows if split == "train"}
            trained[f"test {point['share']:g}-{number}"] = {row for split, row in rows if split == "test"}
        assert point["values"] == pytest.approx(each)
        assert point["value"] == pytest.approx(np.mean(each))
        assert point["low"] <= point["value"] <= point["high"]
        assert 0 < point["baselines"]["tfidf"] <= 1
    assert trained["0.2-0"] < trained["0.5-0"] < trained["1-0"] == trained["1-1"]
    assert trained["0.2-0"] != trained["0.2-1"]
    assert len({frozenset(rows) for name, rows in trained.items() if name.startswith("test")}) == 1
    assert found["twice"]["rows"] == 416
    assert found["twice"]["low"] <= found["twice"]["high"] <= 1
    gain = found["twice"]["value"] - found["twice"]["now"]
    assert found["twice"]["gain"]["difference"] == pytest.approx(gain, abs=1e-9)
    assert bertune.load(tmp_path / "curve/run/curve/1-0").predict(["a cat"])

    again = curve(tmp_path, tiny_bert, "--shares", "0.2,0.5,1", "--resume")
    assert again.code == 0 and "416, foretold" in again.out
    assert "The power law through all points says" in again.out


def test_words_say_when_more_rows_are_not_sure_to_help() -> None:
    last = {"rows": 100, "value": 0.8, "low": 0.78, "high": 0.82}
    twice: dict[str, Any] = {"value": 0.81, "now": 0.79, "low": 0.78, "high": 0.85}
    told = {"metric": "accuracy", "points": [last]}
    sure = in_words({**told, "twice": {**twice, "gain": {"difference": 0.02, "low": 0.01, "high": 0.03}}})
    unsure = in_words({**told, "twice": {**twice, "gain": {"difference": 0.01, "low": 0.0, "high": 0.03}}})
    assert "says 0.7900 for as many, and for twice as many 0.8100 (0.7800 to 0.8500): a gain" in sure
    assert sure.endswith("a gain of 0.0200 (0.0100 to 0.0300).")
    assert unsure.endswith("Whether more rows like these would help is not sure.")


@pytest.mark.parametrize("options, message", [
    (["--shares", "0.5,1"], "--shares: a curve takes at least 3 different shares"),
    (["--shares", "0.1,0.5,2"], "--shares: 2 is not a share"),
    (["--shares", "0.1,half,1"], "'half' is not a number"),
    (["--repeats", "0"], "--repeats 0: takes at least 1."),
    (["--set", "data.share=0.5"], "data.share 0.5: the curve sets it"),
    (["--set", "data.hold_out=no"], "measured on test rows, and there are none"),
])  # fmt: skip
def test_options_that_make_no_curve_are_refused(
    options: list[str], message: str, table: Path, tmp_path: Path, tiny_bert: Path
) -> None:
    done = curve(tmp_path, tiny_bert, *options)
    assert done.code == 2 and message in done.err
    assert not (tmp_path / "curve").exists()
