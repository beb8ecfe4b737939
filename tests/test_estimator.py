"""bertune.Classifier in scikit-learn's own tools, with every form of texts and labels that people have."""

from __future__ import annotations

import copy
import gc
import pickle
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
from sklearn.base import clone, is_classifier
from sklearn.exceptions import NotFittedError
from sklearn.metrics import accuracy_score
from sklearn.model_selection import GridSearchCV, cross_val_predict, cross_val_score
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.estimator_checks import check_parameters_default_constructible

import bertune
from bertune.errors import ConfigError, DataError, TrainingError
from bertune.training.optim import Optimizer
from tiny_runs import TOPICS, multi_rows, pair_rows, topic_rows

pytestmark = pytest.mark.usefixtures("one_thread", "no_pictures")

ROWS = topic_rows(60)
TEXTS = [row["text"] for row in ROWS]
LABELS = [row["label"] for row in ROWS]
SETTINGS = {"train.threads": 1, "train.precision": "fp32", "train.device": "cpu"}
Make = Callable[..., bertune.Classifier]


@pytest.fixture(scope="module")
def make(tiny_bert: Path) -> Make:
    def classifier(**values: Any) -> bertune.Classifier:
        quick = {"model": str(tiny_bert), "epochs": 1, "batch_size": 16, "lr": 1e-2, "max_length": 16}
        return bertune.Classifier(**quick | {"settings": SETTINGS} | values)

    return classifier


@pytest.fixture(scope="module")
def wanted(make: Make) -> np.ndarray:
    """Probabilities of a model that was fitted on a plain list."""
    return make().fit(TEXTS, LABELS).predict_proba(TEXTS)


class TestTexts:
    @pytest.mark.parametrize(
        "form",
        [list, tuple, np.array, lambda texts: np.array(texts, dtype=object), pd.Series, pl.Series,
         lambda texts: [(text,) for text in texts], lambda texts: np.array(texts)[:, None],
         lambda texts: pd.DataFrame({"body": texts}), lambda texts: pl.DataFrame({"body": texts}),
         lambda texts: pl.DataFrame({"body": texts}).to_arrow()],
        ids=["list", "tuple", "array", "object array", "pandas Series", "polars Series", "list of 1-tuples",
             "array of one column", "pandas frame", "polars frame", "arrow table"],
    )  # fmt: skip
    def test_every_form_of_the_same_texts_gives_the_same_model(
        self, make: Make, wanted: np.ndarray, form: Callable[[Any], Any]
    ) -> None:
        model = make().fit(form(TEXTS), LABELS)

        assert np.allclose(model.predict_proba(form(TEXTS)), wanted, atol=1e-6)
        assert model.predict_proba(form(TEXTS)).shape == (60, 3)

    def test_pairs_are_tuples_arrays_or_two_named_columns(self, make: Make) -> None:
        rows = pair_rows(40)
        pairs = [(row["first"], row["second"]) for row in rows]
        labels = [row["label"] for row in rows]
        frame = pd.DataFrame(rows).drop(columns="label")
        fits = [
            make().fit(pairs, labels).predict_proba(pairs),
            make().fit(np.array(pairs), labels).predict_proba(np.array(pairs)),
            make(text="first", text_pair="second").fit(frame, labels).predict_proba(frame),
        ]

        assert np.allclose(fits[0], fits[1], atol=1e-6)
        assert np.allclose(fits[0], fits[2], atol=1e-6)

    def test_all_columns_of_a_frame_are_text_unless_some_are_named(self, make: Make) -> None:
        frame = pd.DataFrame({"title": TEXTS, "body": TEXTS[::-1]})

        assert make().fit(frame, LABELS).model_.task.text == ("title", "body")
        assert make(text="body").fit(frame, LABELS).model_.task.text == ("body",)

    def test_columns_are_found_by_their_names_in_whatever_order_they_come(self, make: Make) -> None:
        frame = pd.DataFrame({"title": TEXTS, "body": TEXTS[::-1]})
        model = make().fit(frame, LABELS)
        other = frame[["body", "title"]].assign(more=1)

        assert model.feature_names_in_.tolist() == ["title", "body"]
        assert np.allclose(model.predict_proba(other), model.predict_proba(frame), atol=1e-6)

    def test_missing_cells_at_prediction_are_read_as_empty(self, make: Make) -> None:
        model = make().fit(pd.DataFrame({"body": TEXTS}), LABELS)
        shares = model.predict_proba(pd.DataFrame({"body": ["the cat", None, np.nan]}))

        assert shares.shape == (3, 3)
        assert np.allclose(shares[1], shares[2])

    def test_missing_texts_at_prediction_may_stand_in_any_row(self, make: Make) -> None:
        model = make().fit(TEXTS, LABELS)
        cat, nothing = model.predict_proba(["the cat", ""])

        for rows in ([None, "the cat"], [np.nan, "the cat"], pd.Series([pd.NA, "the cat"], dtype="string")):
            assert np.allclose(model.predict_proba(rows), [nothing, cat], atol=1e-6)
        assert np.allclose(model.predict_proba([None, np.nan]), nothing, atol=1e-6)


class TestLabels:
    @pytest.mark.parametrize(
        "labels",
        [LABELS, np.array(LABELS), pd.Series(LABELS), pl.Series(LABELS), [len(label) for label in LABELS],
         np.array([float(len(label)) for label in LABELS]), [label == "tools" for label in LABELS],
         pd.Series(LABELS, dtype="category"), [f" {label}" for label in LABELS]],
        ids=["list", "array", "pandas Series", "polars Series", "int", "float", "bool", "category", "padded"],
    )  # fmt: skip
    def test_labels_come_back_in_kind(self, make: Make, labels: Any) -> None:
        model = make().fit(TEXTS, labels)
        plain = np.array(list(labels))
        found = model.predict(TEXTS)

        assert model.classes_.tolist() == sorted(set(plain.tolist()))
        assert set(found.tolist()) <= set(plain.tolist())
        assert found.dtype.kind == plain.dtype.kind
        assert model.score(TEXTS, labels) == accuracy_score(plain, found)
        assert model.predict_proba(TEXTS).shape == (60, len(model.classes_))

    def test_dates_come_back_as_dates(self, make: Make) -> None:
        days = np.array(["2024-01-01", "2024-02-01"], dtype="datetime64[ns]")
        labels = days[[int(label == "tools") for label in LABELS]]
        model = make().fit(TEXTS, labels)

        assert model.classes_.dtype == days.dtype
        assert model.classes_.tolist() == days.tolist()
        assert model.predict(TEXTS[:2]).dtype == days.dtype
        assert list(model.model_.labels) == ["2024-01-01T00:00:00.000000000", "2024-02-01T00:00:00.000000000"]

    def test_predictions_are_the_classes_of_the_largest_probability(self, make: Make) -> None:
        model = make(epochs=6, pooling="mean").fit(TEXTS, LABELS)

        assert model.predict(TEXTS).tolist() == model.classes_[model.predict_proba(TEXTS).argmax(axis=1)].tolist()
        assert np.allclose(model.predict_proba(TEXTS).sum(axis=1), 1)
        assert model.score(TEXTS, LABELS) > 0.5

    @pytest.mark.parametrize("form", [np.array, pd.DataFrame, "sparse"], ids=["array", "frame", "sparse"])
    def test_indicators_make_a_multi_label_task(self, make: Make, form: Any) -> None:
        rows = multi_rows(60)
        texts = [row["text"] for row in rows]
        frame = pd.DataFrame([{name: row[name] for name in TOPICS} for row in rows])
        if form == "sparse":
            from scipy.sparse import csr_matrix

            target: Any = csr_matrix(frame.to_numpy())
        else:
            target = form(frame)
        model = make(epochs=12, batch_size=8, pooling="mean").fit(texts, target)
        found = model.predict(texts)

        assert model.model_.task.kind == "multi"
        assert found.shape == (60, 3)
        assert set(np.unique(found)) == {0, 1}
        assert np.array_equal(found, model.predict_proba(texts) >= 0.5)
        assert model.classes_.tolist() == (list(TOPICS) if form is pd.DataFrame else [0, 1, 2])
        assert model.score(texts, frame.to_numpy()) == (found == frame.to_numpy()).all(axis=1).mean()

    def test_the_decision_function_has_one_column_for_two_classes(self, make: Make) -> None:
        two = make().fit(TEXTS, [label == "tools" for label in LABELS])
        three = make().fit(TEXTS, LABELS)

        assert two.decision_function(TEXTS).shape == (60,)
        assert np.array_equal(two.decision_function(TEXTS) > 0, two.predict(TEXTS))
        assert three.decision_function(TEXTS).shape == (60, 3)


class TestTools:
    def test_parameters_are_read_set_and_cloned(self, make: Make) -> None:
        model = make(lr=3e-3)
        copied = clone(model).set_params(lr=1e-3, epochs=2)

        assert model.get_params()["lr"] == 3e-3
        assert copied.get_params() == model.get_params() | {"lr": 1e-3, "epochs": 2}
        assert is_classifier(model)
        assert "lr=0.003" in repr(model)

    def test_defaults_follow_the_rules_of_scikit_learn(self) -> None:
        check_parameters_default_constructible("Classifier", bertune.Classifier())

    def test_fit_changes_no_parameter_and_returns_the_estimator(self, make: Make) -> None:
        model = make()
        before = copy.deepcopy(model.get_params())

        assert model.fit(TEXTS, LABELS) is model
        assert model.get_params() == before

    def test_it_is_cross_validated(self, make: Make) -> None:
        scores = cross_val_score(make(), TEXTS, LABELS, cv=2)
        frame = pd.DataFrame({"body": TEXTS})

        assert scores.shape == (2,)
        assert ((scores >= 0) & (scores <= 1)).all()
        assert cross_val_predict(make(), frame, LABELS, cv=2, method="predict_proba").shape == (60, 3)

    def test_scorers_read_its_probabilities(self, make: Make) -> None:
        for name, labels in (("neg_log_loss", LABELS), ("roc_auc", [label == "tools" for label in LABELS])):
            assert np.isfinite(cross_val_score(make(), TEXTS, labels, cv=2, scoring=name)).all()

    def test_a_grid_is_searched(self, make: Make) -> None:
        search = GridSearchCV(make(), {"lr": [1e-8, 1e-2]}, cv=2).fit(np.array(TEXTS), LABELS)

        assert set(search.best_params_) == {"lr"}
        assert len(search.predict(TEXTS)) == 60
        assert search.best_estimator_.classes_.tolist() == list(TOPICS)

    def test_ctrl_c_ends_a_whole_search(self, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
        from bertune.training.loop import Course

        # Each reading of the course sends the signal that Ctrl-C sends.
        usual = Course.steps_per_epoch
        monkeypatch.setattr(
            Course, "steps_per_epoch", property(lambda course: signal.raise_signal(signal.SIGINT) or usual.fget(course))
        )
        with pytest.raises(KeyboardInterrupt):
            cross_val_score(make(), TEXTS, LABELS, cv=2)

    def test_it_ends_a_pipeline(self, make: Make, wanted: np.ndarray) -> None:
        pipeline = Pipeline(
            [("lower", FunctionTransformer(lambda texts: [text.lower() for text in texts])), ("model", make())]
        )
        pipeline.fit([text.upper() for text in TEXTS], LABELS)

        assert np.allclose(pipeline.predict_proba([text.upper() for text in TEXTS]), wanted, atol=1e-6)
        assert pipeline.set_params(model__lr=1e-4).get_params()["model__lr"] == 1e-4

    def test_a_pickled_estimator_answers_as_before_without_its_folder(self, make: Make) -> None:
        model = make().fit(TEXTS, LABELS)
        wanted, folder = model.predict_proba(TEXTS), model.folder_
        stored = pickle.dumps(model)
        del model
        gc.collect()
        assert not folder.exists()
        restored = pickle.loads(stored)

        assert np.array_equal(restored.predict_proba(TEXTS), wanted)
        assert restored.get_params() == make().get_params()
        assert np.array_equal(pickle.loads(pickle.dumps(restored)).predict_proba(TEXTS), wanted)

    def test_an_estimator_that_is_not_fitted_can_be_pickled(self, make: Make) -> None:
        assert pickle.loads(pickle.dumps(make())).get_params() == make().get_params()

    def test_predictions_keep_to_the_threads_that_were_asked_for(self, make: Make) -> None:
        import torch

        model = make().fit(TEXTS, LABELS)
        model.predict(TEXTS)
        assert torch.get_num_threads() == 1
        pickle.loads(pickle.dumps(model)).predict(TEXTS)

        assert torch.get_num_threads() == 1


class TestFolder:
    def test_a_temporary_result_lives_as_long_as_its_estimator(self, make: Make) -> None:
        model = make().fit(TEXTS, LABELS)
        first = model.folder_
        model.fit(TEXTS, LABELS)
        assert model.folder_.is_dir()
        assert not first.exists()
        folder = model.folder_
        del model
        gc.collect()

        assert not folder.exists()

    def test_a_named_result_stays_and_is_what_load_opens(self, make: Make, tmp_path: Path) -> None:
        model = make(out=tmp_path / "kept").fit(TEXTS, LABELS)
        wanted = model.predict_proba(TEXTS)
        del model
        gc.collect()

        assert np.allclose(bertune.load(tmp_path / "kept", threads=1).predict_proba(TEXTS), wanted)

    def test_a_named_folder_of_somebody_else_is_not_replaced(self, make: Make, tmp_path: Path) -> None:
        (tmp_path / "letters").mkdir()
        (tmp_path / "letters" / "dear.txt").write_text("dear", encoding="utf-8")

        with pytest.raises(ConfigError, match=r"dear\.txt"):
            make(out=tmp_path / "letters").fit(TEXTS, LABELS)
        assert (tmp_path / "letters" / "dear.txt").read_text(encoding="utf-8") == "dear"

    def test_a_named_result_is_replaced_by_its_own_estimator_alone(self, make: Make, tmp_path: Path) -> None:
        model = make(out=tmp_path / "kept").fit(TEXTS, LABELS)
        stored = pickle.dumps(model)

        with pytest.raises(ConfigError, match="kept': the folder holds another result"):
            clone(model).fit(TEXTS, [label == "tools" for label in LABELS])
        assert pickle.dumps(model) == stored
        assert model.fit(TEXTS, LABELS).folder_ == tmp_path / "kept"

    def test_a_named_result_stays_whole_until_the_next_is_complete(
        self, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model = make(out=tmp_path / "kept").fit(TEXTS, LABELS)
        before = {path: path.read_bytes() for path in (tmp_path / "kept").rglob("*") if path.is_file()}
        def stopped(*given: Any, **options: Any) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr("bertune.training.fit.Fit.run", stopped)
            with pytest.raises(KeyboardInterrupt):
                model.fit(TEXTS, [label == "tools" for label in LABELS])

        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
        assert set(pickle.loads(pickle.dumps(model)).predict(TEXTS)) <= set(LABELS)
        model.set_params(seed=1).fit(TEXTS, LABELS)
        assert [path.name for path in tmp_path.iterdir()] == ["kept"]
        answers = bertune.load(tmp_path / "kept", threads=1).predict_proba(TEXTS)
        assert np.allclose(answers, model.predict_proba(TEXTS))
        assert (tmp_path / "kept" / "model.safetensors").read_bytes() != before[tmp_path / "kept" / "model.safetensors"]

    def test_good_weights_of_a_refit_that_diverges_stay_where_the_error_says(
        self, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model = make(out=tmp_path / "kept").fit(TEXTS, LABELS)
        wanted = model.predict_proba(TEXTS)
        usual = Optimizer.gradient_norm
        steps = iter(range(100))
        monkeypatch.setattr(Optimizer, "gradient_norm", lambda self: usual(self) if next(steps) < 3 else np.inf)
        with pytest.raises(TrainingError) as caught:
            model.fit(TEXTS, LABELS)

        [place] = [path for path in tmp_path.iterdir() if path.name != "kept"]
        assert str(place / "run" / "last-good") in str(caught.value)
        assert bertune.load(place / "run" / "last-good", threads=1).predict(TEXTS)
        assert np.array_equal(model.predict_proba(TEXTS), wanted)

    def test_a_model_in_the_folder_that_would_be_replaced_is_refused(self, make: Make, tmp_path: Path) -> None:
        model = make(out=tmp_path / "kept").fit(TEXTS, LABELS)
        with pytest.raises(ConfigError, match="lies in --out"):
            model.set_params(model=str(tmp_path / "kept")).fit(TEXTS, LABELS)
        assert len(model.predict(TEXTS)) == len(TEXTS)

    def test_validation_rows_choose_the_best_epoch(self, make: Make) -> None:
        model = make(validation=0.2, epochs=2).fit(TEXTS, LABELS)

        assert model.metrics_["valid"]["rows"] == 12
        assert model.metrics_["train"]["rows"] == 48
        assert make().fit(TEXTS, LABELS).metrics_["train"]["rows"] == 60


class TestErrors:
    def test_a_fit_that_fails_leaves_the_earlier_one_whole(self, make: Make) -> None:
        model = make().fit(TEXTS, LABELS)
        before = {name: getattr(model, name) for name in vars(model) if name.endswith("_")}
        frame = pd.DataFrame({"body": TEXTS})

        model.set_params(head="none such")
        for labels in ([label == "tools" for label in LABELS], np.eye(60)):
            with pytest.raises(ConfigError, match="none such"):
                model.fit(frame, labels)
        assert {name: getattr(model, name) for name in vars(model) if name.endswith("_")} == before
        assert set(model.predict(TEXTS)) <= set(TOPICS)

    def test_it_must_be_fitted_first(self, make: Make) -> None:
        for ask in (make().predict, make().predict_proba, make().decision_function):
            with pytest.raises(NotFittedError):
                ask(TEXTS)

    @pytest.mark.parametrize(
        ("texts", "labels", "message"),
        [
            (TEXTS, LABELS[:-1], "y has 59 labels and X has 60 rows"),
            (TEXTS, [None, *LABELS[1:]], "y: some labels are missing"),
            (TEXTS, [float("nan")] + [1.0] * 59, "y: some labels are missing"),
            (TEXTS, [float("nan"), *LABELS[1:]], "y: some labels are missing"),
            (TEXTS, pd.Series([pd.NA, *LABELS[1:]], dtype="string"), "y: some labels are missing"),
            (TEXTS, None, "y is missing: pass a label for each row"),
            (TEXTS, [["a"], ["a", "b"]] * 30, "MultiLabelBinarizer"),
            (TEXTS, [{"a"}, {"b"}] * 30, "MultiLabelBinarizer"),
            (pd.DataFrame({"text": TEXTS, "label": LABELS}), LABELS, "the column 'label' would be read as text"),
            ({"text": TEXTS}, LABELS, "expected a list, array or frame of texts"),
            (TEXTS, ["same"] * 60, "label"),
            ([], [], "at least one row"),
            ("one text", ["a"], "expected a list, array or frame of texts"),
            (np.zeros((60, 3)), LABELS, "expected one text a row, or a pair"),
            (np.zeros(60), LABELS, "expected one text a row, or a pair"),
            (["a", 3] * 30, LABELS, "row 2"),
            (["a", ("b", "c")] * 30, LABELS, "row 2"),
            ([("a", "b"), "c"] * 30, LABELS, "one text a row, or a pair"),
            (TEXTS, np.full((60, 3), 2), "0 or 1"),
            (["", *TEXTS[1:]], LABELS, "row 1.*the text is empty"),
            (None, LABELS, "X: expected a list, array or frame of texts"),
            (5, LABELS, "X: expected a list, array or frame of texts"),
            (TEXTS, 5, "y: expected one label a row, or 0/1 indicators .*found 5"),
            (TEXTS, np.array("a"), "y: expected one label a row, or 0/1 indicators"),
            (TEXTS, "ab" * 30, "y: expected one label a row, or 0/1 indicators"),
            (TEXTS, np.zeros((60, 2, 2)), "y: expected one label a row, or 0/1 indicators"),
            (TEXTS, np.zeros((60, 1, 1)), "y: expected one label a row, or 0/1 indicators"),
            (TEXTS, [[]] * 60, "y: expected one label a row, or 0/1 indicators"),
            (TEXTS, np.full((60, 1), np.nan), "y: some labels are missing"),
            (TEXTS, np.array(["NaT", *["2024-01-01"] * 59], "datetime64[ns]"), "y: some labels are missing"),
        ],
        ids=["lengths", "a missing label", "a label that is no number", "NaN among texts", "NA among texts",
             "no labels", "lists of labels", "sets of labels", "labels among the texts", "a dict", "one class",
             "no rows", "one string",
             "numbers in columns", "numbers", "a number among texts", "a pair among texts", "a text among pairs",
             "no indicators", "an empty text", "nothing", "a number instead of texts", "a number instead of labels",
             "one label in an array", "one string of labels", "labels in three axes", "a label in two axes more",
             "lists without labels", "a column of NaN", "no date"],
    )  # fmt: skip
    def test_what_cannot_be_fitted_is_an_error_that_says_why(
        self, make: Make, texts: Any, labels: Any, message: str
    ) -> None:
        with pytest.raises(DataError, match=message):
            make().fit(texts, labels)

    def test_columns_that_are_not_there_are_named(self, make: Make) -> None:
        with pytest.raises(ConfigError, match="X has no column 'title'; its columns are body"):
            make(text="title").fit(pd.DataFrame({"body": TEXTS}), LABELS)

    def test_options_that_do_not_exist_are_refused(self, make: Make) -> None:
        with pytest.raises(ConfigError, match=r"'train\.lrr' is not an option"):
            make(settings={"train.lrr": 1}).fit(TEXTS, LABELS)

    def test_one_text_in_an_array_is_no_list_of_texts(self, make: Make) -> None:
        model = make().fit(TEXTS, LABELS)
        with pytest.raises(DataError, match="expected a list, array or frame of texts"):
            model.predict(np.array("cat"))

    @pytest.mark.parametrize("settings", [["train.lr=1"], "train.lr=1", {1: 1}])
    def test_settings_are_options_by_name(self, make: Make, settings: Any) -> None:
        with pytest.raises(ConfigError, match="settings: expected options by their dotted names"):
            make(settings=settings).fit(TEXTS, LABELS)

    def test_pairs_and_texts_are_not_mixed_between_fit_and_predict(self, make: Make) -> None:
        model = make().fit(TEXTS, LABELS)
        with pytest.raises(DataError, match="X has 2 texts a row, and was fitted with 1"):
            model.predict([("the cat", "the dog")])

    def test_a_frame_without_the_columns_of_the_fit_is_refused(self, make: Make) -> None:
        model = make().fit(pd.DataFrame({"body": TEXTS}), LABELS)
        with pytest.raises(ConfigError, match="X has no column 'body'; its columns are title"):
            model.predict(pd.DataFrame({"title": TEXTS}))
