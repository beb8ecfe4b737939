"""Doubted labels, the relabel queue and the plan: what is wrong is found, proposed, and applied to training rows."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml

import bertune
from bertune.config import Config
from bertune.doctor.mislabeled import confident_labels, doubted, label_quality, nearest_rows
from bertune.errors import ConfigError, DataError
from bertune.training.doubt import frozen_probabilities
from bertune.training.prepare import read_splits
from shell import Done, call
from shell import bertune as process
from tiny_runs import QUICK, TOPICS, Told, multi_rows, topic_rows

pytestmark = pytest.mark.usefixtures("one_thread")


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    pl.DataFrame(rows).write_csv(path)
    return path


def test_confident_learning_by_hand() -> None:
    targets = np.array([0, 0, 0, 1, 1])
    probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9], [0.3, 0.7], [0.45, 0.55]])
    # Thresholds: mean of .9, .8, .1 is .6; mean of .7 and .55 is .625.
    assert confident_labels(targets, probabilities).tolist() == [0, 0, 1, 1, -1]
    found = doubted(targets, probabilities, "single")
    assert found.rows.tolist() == [2] and found.suggested.tolist() == [1]
    assert found.score == pytest.approx([(0.1 - 0.9 + 1) / 2])
    assert (found.given, found.better) == (pytest.approx([0.1]), pytest.approx([0.9]))
    assert label_quality(targets, probabilities, "single") == pytest.approx([0.9, 0.8, 0.1, 0.7, 0.55])


def test_each_of_many_labels_is_a_question_of_its_own() -> None:
    truth = np.random.default_rng(0).random((300, 3)) < 0.4
    probabilities = np.where(truth, 0.85, 0.15)
    given = truth.copy()
    given[[5, 80], 1] ^= True
    given[200, [0, 2]] ^= True
    found = doubted(given.astype(np.float32), probabilities, "multi")
    assert sorted(found.rows.tolist()) == [5, 80, 200]
    for row, suggested in zip(found.rows, found.suggested, strict=True):
        assert (suggested == truth[row]).all()
    without = doubted(given.astype(np.float32), probabilities, "multi", known=np.array([True, False, True]))
    assert without.rows.tolist() == [200]


def test_probabilities_come_from_models_that_have_not_seen_the_row() -> None:
    random = np.random.default_rng(0)
    states = random.normal(size=(60, 40)).astype(np.float32)
    targets = random.integers(0, 2, 60)
    folds = [(np.arange(30, 60), np.arange(30)), (np.arange(30), np.arange(30, 60))]
    one = frozen_probabilities(states, targets, folds, kind="single", labels=2)
    changed = targets.copy()
    changed[:30] = 1 - changed[:30]
    other = frozen_probabilities(states, changed, folds, kind="single", labels=2)
    assert (one[:30] == other[:30]).all() and (one[30:] != other[30:]).any()


def test_nearest_rows_leave_copies_out() -> None:
    states = np.array([[1, 0], [1, 0.01], [0.9, 0.1], [0, 1]], np.float32)
    near = nearest_rows(states, np.array([0]), np.array([0, 0, 2, 3]), count=2)
    assert near.tolist() == [[2, 3]]


@pytest.fixture(scope="module")
def flawed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, set[int]]:
    """Topics that a bag of words tells, the label of some rows being wrong: the file and the numbers of those rows."""
    rows = topic_rows(400, seed=5)
    wrong = {7, 50, 123, 200, 321, 390}
    for number in wrong:
        names = list(TOPICS)
        rows[number - 1]["label"] = names[(names.index(rows[number - 1]["label"]) + 1) % 3]
    return write(tmp_path_factory.mktemp("flawed") / "rows.csv", rows), wrong


ALL_TRAIN = {"data.hold_out": False}


def test_wrong_labels_are_first_in_the_queue(flawed: tuple[Path, set[int]], mini_dir: Path, tmp_path: Path) -> None:
    file, wrong = flawed
    found = bertune.check(file, model=mini_dir, settings=ALL_TRAIN)
    assert found.doubts is not None
    first = {doubt.place["row"] for doubt in found.doubts[: len(wrong)]}
    assert len(first & wrong) >= 5
    doubt = next(doubt for doubt in found.doubts if doubt.place["row"] in wrong)
    assert doubt.suggested != doubt.label and 0 <= doubt.neighbours <= 1 and doubt.given < 0.5 < doubt.better
    finding = next(finding for finding in found.findings if finding.kind == "label_error")
    assert finding.count == len(found.doubts)
    relabelled = {entry.row for entry in found.plan().rows if entry.action == "relabel"}
    assert relabelled and len(relabelled & wrong) >= 0.8 * len(relabelled)


def test_folds_can_be_trained_anew(tiny_bert: Path, tmp_path: Path) -> None:
    random, names = np.random.default_rng(5), list(TOPICS)
    rows = [{"text": " ".join(random.choice(TOPICS[name], 3)), "label": name}
            for name in np.array(names)[random.integers(0, 3, 160)]]  # fmt: skip
    wrong = {7, 50, 123}
    for number in wrong:
        rows[number - 1]["label"] = names[(names.index(rows[number - 1]["label"]) + 1) % 3]
    told = Told()
    found = bertune.check(
        write(tmp_path / "rows.csv", rows), model=tiny_bert, label_errors="tuned", listener=told,
        settings={**QUICK, **ALL_TRAIN, "check.folds": 2, "train.epochs": 12},
    )  # fmt: skip
    assert [line for line in told.said if line.startswith("Fold")] == ["Fold 1 of 2:", "Fold 2 of 2:"]
    assert found.doubts
    assert sum(doubt.place["row"] in wrong for doubt in found.doubts) >= len(found.doubts) / 2


def test_folds_of_doubt_know_nothing_of_the_splits_and_promises_around_them(tiny_bert: Path, tmp_path: Path) -> None:
    rows = [{**row, "place": "here"} for row in topic_rows(120)]
    settings = {
        **QUICK, "check.folds": 2, "train.epochs": 1, "check.label_errors": "tuned", "data.fold": "1/3",
        "decide.coverage": 0.5, "report.slices": ["place"], "data.share": 0.5, "data.split_seed": 1,
    }  # fmt: skip
    told = Told()
    bertune.train(rows, text="text", label="label", out=tmp_path / "run", model=tiny_bert, settings=settings,
                  listener=told)  # fmt: skip
    sizes = [line for line in told.said if line.startswith("Splits:")]
    fold = "fold 1/3, split seed 1; 0.5 of the training rows, share seed 0"
    assert sizes[0] == f"Splits: 36 train, 8 valid, 40 test rows ({fold})."
    assert sizes[1:] == ["Splits: 18 train rows (all rows train)."] * 2
    assert (tmp_path / "run/run/relabel.csv").is_file()


def test_labels_that_a_model_does_not_know_are_not_doubted(tmp_path: Path, tiny_bert: Path) -> None:
    random = np.random.default_rng(0)
    rows = [{**row, "label": str(random.choice(["a", "b"]))} for row in topic_rows(120)]
    done = call("check", write(tmp_path / "t.csv", rows), "--model", tiny_bert, "--queue", tmp_path / "q.csv")
    assert done.code == 0
    assert "Labels are not doubted: models that have not seen the row hardly know them" in done.err
    assert (tmp_path / "q.csv").read_text(encoding="utf-8").count("\n") == 1


def table_with_copies() -> list[dict[str, Any]]:
    rows = topic_rows(60, seed=2)
    rows[10] = dict(rows[3])
    rows[20] = dict(rows[4])
    rows[20]["label"] = next(name for name in TOPICS if name != rows[4]["label"])
    return rows


def planned(tmp_path: Path, tiny_bert: Path) -> tuple[Path, Path]:
    """A file with faults, and the plan that check writes for it."""
    data, plan = write(tmp_path / "rows.csv", table_with_copies()), tmp_path / "plan.yaml"
    done = call("check", data, "--model", tiny_bert, "--label-errors", "none", "--fix", plan, "--set",
                "data.hold_out=no", "--max-length", "24")  # fmt: skip
    assert done.code == 0, done.err
    return data, plan


def splits_with(data: Path, plan: Path, **more: Any) -> tuple[Any, list[str]]:
    given = {"files": [str(data)], "hold_out": False, "plan": str(plan), **more}
    config = Config().updated({"data": given})
    said: list[str] = []
    return read_splits(None, config.data, said.append), said


def test_the_plan_is_reviewed_and_then_applied(tmp_path: Path, tiny_bert: Path) -> None:
    data, plan = planned(tmp_path, tiny_bert)
    entries = yaml.safe_load(plan.read_text(encoding="utf-8"))["rows"]
    assert [(entry["row"], entry["action"]) for entry in entries] == [(5, "keep"), (11, "drop"), (21, "keep")]
    assert entries[1]["why"] == "duplicate of train row 4 of rows.csv"
    assert "the same text is also labelled" in entries[0]["why"]
    before = data.read_bytes()

    entries[0] |= {"action": "relabel", "label": "tools"}
    entries[2]["action"] = "drop"
    plan.write_text(yaml.safe_dump({"version": 1, "rows": entries}), encoding="utf-8")
    prepared, said = splits_with(data, plan)
    numbers = prepared.train.table.row_numbers.tolist()
    assert numbers == [number for number in range(1, 61) if number not in (11, 21)]
    assert prepared.task.labels[prepared.train.targets[4]] == "tools"
    assert "Plan: 2 training rows dropped, 1 relabelled, 0 kept." in said
    assert data.read_bytes() == before


def test_a_training_takes_the_plan_and_leaves_other_splits_alone(tmp_path: Path, tiny_bert: Path) -> None:
    data, plan = planned(tmp_path, tiny_bert)
    settings = [item for name, value in QUICK.items() for item in ("--set", f"{name}={value}")]
    done = call("train", data, "--plan", plan, "--test", "0.5", "--model", tiny_bert, "--out", tmp_path / "run",
                *settings)  # fmt: skip
    assert done.code == 0, done.err
    elsewhere = "Plan: 1 of its rows are not training rows here, and are left as they are." in done.err
    assert elsewhere != ("Plan: 1 training rows dropped" in done.err)
    with (tmp_path / "run/run/splits.csv").open(encoding="utf-8") as file:
        rows = [(row["split"], row["row"]) for row in csv.DictReader(file)]
    assert sum(split == "test" for split, _ in rows) == 30
    assert (("test", "11") in rows) == elsewhere


def refused(data: Path, plan: Path, entries: list[dict[str, Any]]) -> str:
    plan.write_text(yaml.safe_dump({"rows": entries}), encoding="utf-8")
    with pytest.raises((DataError, ConfigError)) as caught:
        splits_with(data, plan)
    return str(caught.value)


def test_a_plan_that_does_not_fit_the_data_is_refused(tmp_path: Path, tiny_bert: Path) -> None:
    data, plan = planned(tmp_path, tiny_bert)
    entry = yaml.safe_load(plan.read_text(encoding="utf-8"))["rows"][1]
    assert "row 99: there is no such row in the data" in refused(data, plan, [{**entry, "row": 99}])
    assert "the text is not the one that the plan was made for" in refused(data, plan, [{**entry, "row": 12}])
    assert "stands in it twice" in refused(data, plan, [entry, entry])
    assert "'tool' is not a label of this task; did you mean 'tools'?" in refused(
        data, plan, [{**entry, "action": "relabel", "label": "tool"}]
    )
    assert "relabel needs the one label" in refused(data, plan, [{**entry, "action": "relabel", "label": []}])
    assert "'rows.0.action' cannot be 'delete'" in refused(data, plan, [{**entry, "action": "delete"}])
    with pytest.raises(ConfigError, match="no such plan"):
        splits_with(data, tmp_path / "none.yaml")


def test_a_plan_for_many_labels_gives_a_row_all_of_them(tmp_path: Path, tiny_bert: Path) -> None:
    rows = multi_rows(40)
    rows[8] = dict(rows[2])
    data, plan = write(tmp_path / "rows.csv", rows), tmp_path / "plan.yaml"
    call("check", data, "--model", tiny_bert, "--label-errors", "none", "--fix", plan, "--set", "data.hold_out=no")
    entry = yaml.safe_load(plan.read_text(encoding="utf-8"))["rows"][0]
    plan.write_text(yaml.safe_dump({"rows": [{**entry, "action": "relabel", "label": ["animals", "tools"]}]}))
    prepared, _ = splits_with(data, plan)
    assert prepared.train.targets[8].tolist() == [1, 0, 1]


def test_check_prints_a_table_or_json_and_ends_with_0(tmp_path: Path, tiny_bert: Path) -> None:
    data = write(tmp_path / "rows.csv", table_with_copies())
    command = ("check", data, "--model", tiny_bert, "--label-errors", "none")
    done = process(*command)
    assert done.code == 0 and done.out.startswith("finding ") and "Check: " in done.out
    told = call(*command, "--json").json
    assert set(told["findings"][0]) == {"kind", "severity", "count", "rows", "message", "advice"}
    severities = [finding["severity"] for finding in told["findings"]]
    assert severities == sorted(severities, key=["error", "warning", "note"].index)
    assert not (tmp_path / "runs").exists()


def only_error(done: Done) -> str:
    assert done.code == 2 and "Traceback" not in done.err
    return done.err.splitlines()[-1]


def test_strict_turns_warnings_into_errors(tmp_path: Path, tiny_bert: Path) -> None:
    data = write(tmp_path / "rows.csv", table_with_copies())
    options = ("--model", tiny_bert, "--set", "data.hold_out=no")
    done = call("check", data, *options, "--label-errors", "none", "--strict")
    assert only_error(done).startswith("Error: the check found errors: contradiction, duplicate")
    done = call("train", data, *options, "--out", tmp_path / "run", "--strict")
    assert only_error(done).startswith("Error: the check of the data ends this: error, contradiction: 1 text has")
    assert not (tmp_path / "run").exists()


def test_empty_texts_are_all_listed_by_check(tmp_path: Path, tiny_bert: Path) -> None:
    rows = topic_rows(40)
    rows[4]["text"] = rows[9]["text"] = " "
    done = call("check", write(tmp_path / "rows.csv", rows), "--model", tiny_bert, "--label-errors", "none", "--json")
    assert done.code == 2
    finding = done.json["findings"][0]
    assert (finding["kind"], finding["severity"], finding["count"]) == ("empty_text", "error", 2)
    assert sorted(place["row"] for place in finding["rows"]) == [5, 10]


def test_train_says_and_keeps_what_was_found_unless_told_not_to(tmp_path: Path, tiny_bert: Path) -> None:
    data = write(tmp_path / "rows.csv", table_with_copies())
    settings = {**QUICK, "train.epochs": 1, "data.hold_out": False}
    common = ("train", data, "--model", tiny_bert, *(x for k, v in settings.items() for x in ("--set", f"{k}={v}")))
    done = call(*common, "--out", tmp_path / "run")
    assert done.code == 0 and "  warning, duplicate: 1 of 60 rows of train (1.7 %)" in done.err
    assert "duplicate" in (tmp_path / "run/run/check.json").read_text(encoding="utf-8")
    done = call(*common, "--out", tmp_path / "quiet", "--set", "check.enabled=no")
    assert done.code == 0 and "duplicate" not in done.err and not (tmp_path / "quiet/run/check.json").exists()
    done = call(*common, "--out", tmp_path / "never", "--set", "check.enabled=no", "--strict")
    assert only_error(done) == (
        "Error: check.enabled: no leaves nothing for --strict and --label-errors to do; leave them out."
    )


def test_a_queue_without_doubts_is_refused_before_the_work(tmp_path: Path) -> None:
    done = call("check", "none.csv", "--label-errors", "none", "--queue", tmp_path / "q.csv")
    assert only_error(done).startswith("Error: --queue: lists doubted labels; --label-errors none doubts none.")
