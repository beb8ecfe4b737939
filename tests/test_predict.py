"""Predictions: in the order of the rows, the same for a row alone as among others, in every form rows can have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest

import bertune
from bertune.data.tasks import Rows
from bertune.errors import ConfigError, DataError, ModelError, TrainingError
from bertune.ship import predict
from bertune.ship.predict import Predictor
from tiny_runs import QUICK, TOPICS, multi_rows, pair_rows, topic_rows

pytestmark = pytest.mark.usefixtures("one_thread")

SETTINGS = QUICK | {"train.epochs": 8, "train.lr": 1e-2, "model.pooling": "mean", "data.hold_out": False}


@pytest.fixture(scope="module")
def models(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Predictor]:
    folder = tmp_path_factory.mktemp("models")
    runs: dict[str, tuple[Any, dict[str, Any]]] = {
        "single": (topic_rows(100), {}),
        "pair": (pair_rows(60), {"text": "first", "text_pair": "second"}),
        "multi": (multi_rows(100), {"label": list(TOPICS)}),
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bertune.training.finish.plot_curves", lambda history, path, *, metric: None)
        for name, (rows, columns) in runs.items():
            bertune.train(rows, out=folder / name, model=tiny_bert, settings=SETTINGS, **columns)
    return {name: bertune.load(folder / name, threads=1) for name in runs}


@pytest.fixture(scope="module")
def single(models: dict[str, Predictor]) -> Predictor:
    return models["single"]


def texts(count: int = 40) -> list[str]:
    """Of all lengths, some of them longer than what the model reads."""
    rows = [row["text"] for row in topic_rows(count, seed=5)]
    rows[3] = " ".join(["the cat"] * 200)
    rows[7] = "dog"
    return rows


def test_outputs_that_are_no_numbers_are_no_answers(single: Predictor) -> None:
    class Broken:
        def logits(self, encoded: Any) -> np.ndarray:
            return np.full((len(encoded), 3), np.nan, dtype=np.float32)

    broken = Predictor(single.bundle, single.tokenizer, Broken())
    for ask in (broken.predict, broken.predict_proba, broken.logits):
        with pytest.raises(TrainingError, match="outputs for 2 of 2 rows are not finite"):
            ask(["a cat", "a dog"])


class TestOrder:
    def test_a_row_among_others_is_answered_as_alone(self, single: Predictor) -> None:
        rows = texts()
        together = single.logits(rows)
        alone = np.concatenate([single.logits([row]) for row in rows])

        assert np.abs(together - alone).max() < 1e-5
        assert together.std(axis=0).min() > 1e-2  # rows differ by far more than that

    def test_answers_stand_in_the_order_of_the_rows(self, single: Predictor) -> None:
        rows = texts()
        order = np.random.default_rng(0).permutation(len(rows))

        shuffled = single.logits([rows[place] for place in order])
        assert np.abs(shuffled - single.logits(rows)[order]).max() < 1e-5

    def test_many_rows_are_computed_in_chunks_with_the_same_answers(
        self, single: Predictor, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        rows = texts()
        whole = single.logits(rows)
        monkeypatch.setattr(predict, "CHUNK", 7)

        assert np.abs(single.logits(rows) - whole).max() < 1e-5

    def test_no_rows_give_no_answers(self, single: Predictor) -> None:
        assert single.logits([]).shape == (0, 3)
        assert single.predict([]) == []
        assert single.predict_proba([]).shape == (0, 3)
        for rows in (pd.DataFrame({"text": []}), pl.DataFrame({"text": []}), {"text": []}, np.array([])):
            assert single.predict(rows) == []


class TestForms:
    def test_strings_dicts_frames_and_columns_are_the_same_rows(self, single: Predictor) -> None:
        rows = texts()
        wanted = single.logits(rows)
        forms: list[Any] = [
            tuple(rows), np.array(rows), iter(rows), [{"text": row, "other": 1} for row in rows],
            pd.DataFrame({"other": range(len(rows)), "text": rows}), pl.DataFrame({"text": rows}),
            pl.DataFrame({"text": rows}).to_arrow(), {"text": rows}, Rows((rows,)),
        ]  # fmt: skip

        for form in forms:
            assert np.abs(single.logits(form) - wanted).max() < 1e-5, type(form)

    def test_pairs_are_tuples_lists_dicts_or_frames(self, models: dict[str, Predictor]) -> None:
        model, rows = models["pair"], pair_rows(12, seed=3)
        pairs = [(row["first"], row["second"]) for row in rows]
        wanted = model.logits(pairs)
        forms: list[Any] = [
            [list(pair) for pair in pairs], np.array(pairs), rows, pd.DataFrame(rows), pl.DataFrame(rows)
        ]

        for form in forms:
            assert np.abs(model.logits(form) - wanted).max() < 1e-5, type(form)
        swapped = model.logits([(second, first) for first, second in pairs])
        assert np.abs(swapped - wanted).max() > 1e-3

    def test_missing_cells_and_empty_texts_are_answered_and_keep_their_place(self, single: Predictor) -> None:
        rows: list[Any] = ["the cat", "", "   ", "the tree"]
        wanted = single.logits(rows)
        frames: list[Any] = [
            pd.DataFrame({"text": ["the cat", None, float("nan"), "the tree"]}),
            pl.DataFrame({"text": ["the cat", None, "", "the tree"]}),
            [{"text": "the cat"}, {"text": None}, {"text": float("nan")}, {"text": "the tree"}],
        ]

        assert np.isfinite(wanted).all()
        for frame in frames:
            found = single.logits(frame)
            assert found.shape == (4, 3)
            assert np.abs(found - wanted).max() < 1e-5
        assert np.abs(wanted[1] - single.logits([""])[0]).max() < 1e-5

    @pytest.mark.parametrize(
        ("rows", "message"),
        [
            ("the cat", "expected a list of rows, found one str"),
            (np.array("the cat"), r"expected a list of rows, found one str; write \['the cat'\]"),
            (pd.DataFrame({"TEXT": []}), "no column 'text'; did you mean 'TEXT'"),
            ({}, "no column 'text'; columns: none"),
            ([("a", "b")], r"rows\[0\]: expected 1 text "),
            ([{"txet": "a"}], r"rows\[0\]: no column 'text'; did you mean 'txet'"),
            (["a", 3], r"rows\[1\]: expected a string or a dict by column, found int"),
            (pd.DataFrame({"TEXT": ["a"]}), "text"),
        ],
        ids=["one string", "one string in an array", "an empty frame without the column", "no columns", "a pair",
             "another column", "a number", "a frame without the column"],
    )  # fmt: skip
    def test_rows_of_another_form_are_errors_that_say_what_is_expected(
        self, single: Predictor, rows: Any, message: str
    ) -> None:
        with pytest.raises(DataError, match=message):
            single.predict(rows)

    def test_a_single_text_for_a_pair_is_an_error(self, models: dict[str, Predictor]) -> None:
        with pytest.raises(DataError, match=r"this task reads pairs, \(first, second\); found one text"):
            models["pair"].predict(["the cat"])


class TestAnswers:
    @pytest.mark.parametrize("threshold", ["0.3", [0.3], np.array([0.3, 0.4])])
    def test_a_threshold_is_a_number(self, models: dict[str, Predictor], threshold: Any) -> None:
        for model in (models["multi"], models["single"]):
            with pytest.raises(ConfigError, match=r"--threshold .*: expected a number between 0 and 1\."):
                model.predict(["the cat"], threshold=threshold)

    def test_single_label_probabilities_sum_to_one_and_the_largest_is_the_prediction(self, single: Predictor) -> None:
        rows = texts()
        shares = single.predict_proba(rows)

        assert shares.dtype == np.float64
        assert np.allclose(shares.sum(axis=1), 1, rtol=0, atol=1e-12)
        assert single.predict(rows) == [single.labels[number] for number in shares.argmax(axis=1)]
        assert set(single.predict(rows)) <= set(TOPICS)

    def test_multi_label_answers_are_lists_of_the_names_with_a_probability_of_one_half(
        self, models: dict[str, Predictor]
    ) -> None:
        model, rows = models["multi"], [row["text"] for row in multi_rows(60, seed=8)]
        shares, names = model.predict_proba(rows), model.predict(rows)

        assert ((shares > 0) & (shares < 1)).all()
        assert names == [[model.labels[number] for number in np.flatnonzero(row >= 0.5)] for row in shares]
        assert {len(row) for row in names} > {0, 1}  # none, one and more

    def test_the_model_has_learnt_what_can_be_learnt(self, single: Predictor) -> None:
        rows = topic_rows(60, seed=11)
        right = [name == row["label"] for name, row in zip(single.predict(rows), rows, strict=True)]

        assert np.mean(right) > 0.6  # one of three labels by chance

    def test_bf16_answers_nearly_as_fp32(self, single: Predictor) -> None:
        assert single.bundle.folder is not None
        rough = bertune.load(single.bundle.folder, precision="bf16", threads=1)
        wanted = single.logits(texts())

        assert 0 < np.abs(rough.logits(texts()) - wanted).max() < 0.05 * np.abs(wanted).max()

    def test_a_folder_that_is_no_result_is_an_error(self, tmp_path: Path, tiny_bert: Path) -> None:
        with pytest.raises(ModelError, match="no such folder"):
            bertune.load(tmp_path / "nothing")
        with pytest.raises(ModelError, match="a plain model folder, not the result of a run"):
            bertune.load(tiny_bert)
