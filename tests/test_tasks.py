"""Tasks: which columns and labels a table has, in a fixed order, and what a cell that does not fit says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bertune.config import DataConfig
from bertune.data.read import Table, read_table
from bertune.data.tasks import Task, encode_labels, infer_task, sort_labels
from bertune.errors import ConfigError, DataError
from small_tables import infer, papers, reviews, table

SUBJECTS = ["Computer Science", "Physics", "Mathematics"]


# What is found without being told


def test_zero_one_columns_beside_the_texts_make_a_multi_label_task() -> None:
    task, sentence = infer(papers(), text=["TITLE", "ABSTRACT"])
    assert (task.kind, task.label_format) == ("multi", "columns")
    assert list(task.labels) == list(task.label) == SUBJECTS
    assert sentence == (
        "Task: multi-label over 3 labels (Computer Science, Physics, Mathematics), text = TITLE + ABSTRACT."
    )
    targets = encode_labels(task, table(papers()))
    assert targets.dtype == np.float32
    assert targets.tolist() == [[1, 0, 0], [0, 1, 0], [1, 1, 0]]


@pytest.mark.parametrize(
    "cells", [["0", "1", "1"], [0, 1, 1], [False, True, True], [0.0, 1.0, 1.0], ["0.0", "1.0", "1"]]
)
def test_zero_and_one_may_be_strings_numbers_or_booleans(cells: list[Any]) -> None:
    columns = {"text": ["a", "b", "c"], "x": cells, "y": [1, 0, 0]}
    task, _ = infer(columns)
    assert task.labels == ("x", "y")
    assert encode_labels(task, table(columns))[:, 0].tolist() == [0, 1, 1]


def test_an_id_column_is_no_label_even_in_two_rows() -> None:
    task, _ = infer({"id": ["0", "1"], "text": ["a", "b"], "x": ["1", "0"], "y": ["0", "1"]})
    assert task.labels == ("x", "y")


def test_one_zero_one_column_is_a_single_label_of_two_classes() -> None:
    task, _ = infer({"text": ["a", "b"], "spam": ["0", "1"], "sender": ["x", "y"]})
    assert (task.kind, task.label, task.labels) == ("single", ("spam",), ("0", "1"))


@pytest.mark.parametrize(
    ("columns", "text", "pair", "label"),
    [
        (["gold_label", "sentence1", "sentence2", "pairID"], "sentence1", "sentence2", "gold_label"),
        (["sentence1", "sentence2", "label", "label0", "genre"], "sentence1", "sentence2", "label"),
        (["Quality", "#1 ID", "#2 ID", "#1 String", "#2 String"], "#1 String", "#2 String", "Quality"),
        (["sentence", "label"], "sentence", None, "label"),
        (["label", "review"], "review", None, "label"),
        (["label", "fine_label", "text"], "text", None, "label"),
        (["Text", "Category"], "Text", None, "Category"),
        (["label", "utterance"], "utterance", None, "label"),
    ],
)
def test_well_known_layouts_need_no_flags(columns: list[str], text: str, pair: str | None, label: str) -> None:
    values = {name: [f"{name} one", f"{name} two"] for name in columns}
    task, _ = infer(values)
    assert (task.text, task.text_pair, task.label) == ((text,), (pair,) if pair else (), (label,))


def test_the_sentence_names_the_label_column_and_both_sides_of_a_pair() -> None:
    _, sentence = infer({"gold_label": ["b", "a"], "sentence1": ["x", "y"], "sentence2": ["z", "w"]})
    assert sentence == (
        "Task: single-label over 2 labels (a, b), label = gold_label, text = sentence1, second text = sentence2."
    )


def test_lists_of_labels_make_a_multi_label_task() -> None:
    columns = {"text": ["a", "b", "c"], "labels": [["x", "y"], [], ["z"]]}
    task, _ = infer(columns)
    assert (task.kind, task.label_format, task.labels) == ("multi", "list", ("x", "y", "z"))
    assert encode_labels(task, table(columns)).tolist() == [[1, 1, 0], [0, 0, 0], [0, 0, 1]]


def test_null_and_blank_items_of_a_list_are_no_labels() -> None:
    columns = {"text": ["a", "b", "c"], "label": [["x", None], [" ", "y", ""], [None]]}
    task, _ = infer(columns)
    assert task.labels == ("x", "y")
    assert encode_labels(task, table(columns)).tolist() == [[1, 0], [0, 1], [0, 0]]


def test_a_separator_splits_cells_and_an_empty_cell_has_no_label() -> None:
    columns = {"text": ["a", "b", "c"], "label": ["x; y", "", "z"]}
    task, sentence = infer(columns, label_sep=";")
    assert (task.kind, task.label_format, task.labels) == ("multi", "delimited", ("x", "y", "z"))
    assert encode_labels(task, table(columns)).tolist() == [[1, 1, 0], [0, 0, 0], [0, 0, 1]]
    assert sentence.endswith("Rows without any label: 1.")


def test_joined_ids_without_a_separator_are_pointed_out() -> None:
    task, sentence = infer({"text": ["a", "b"], "label": ["4,27", "3"]})
    assert (task.kind, task.labels) == ("single", ("3", "4,27"))
    assert "--label-sep ','" in sentence


# The order of labels


def test_numbers_are_ordered_by_value_and_names_by_string() -> None:
    assert sort_labels(["10", "9", "-1", "2.5", "9"]) == ["-1", "2.5", "9", "10"]
    assert sort_labels(["10", "9", "b"]) == ["10", "9", "b"]
    assert sort_labels(["nan", "1"]) == ["1", "nan"]


@given(st.permutations(["b", "a", "c", "10", "9", "b", "a"]), st.booleans())
@settings(max_examples=30, deadline=None)
def test_the_order_of_labels_does_not_depend_on_the_order_of_rows(labels: list[str], numbers: bool) -> None:
    labels = [str(len(label) * 7) if numbers else label for label in labels]
    task, _ = infer({"text": ["t"] * len(labels), "label": labels})
    assert list(task.labels) == sort_labels(labels)


def test_listed_labels_keep_their_order_and_exist_without_rows() -> None:
    task, _ = infer(reviews(), labels=["pos", "neutral", "neg", "mixed"])
    assert task.labels == ("pos", "neutral", "neg", "mixed")
    assert encode_labels(task, table(reviews())).tolist() == [0, 2, 1]


def test_label_columns_keep_the_order_of_the_flags_and_labels_reorders_them() -> None:
    task, _ = infer(papers(), text=["TITLE"], label=["Physics", "Computer Science"])
    assert task.labels == ("Physics", "Computer Science")
    task, _ = infer(papers(), text=["TITLE"], labels=["Mathematics", "Physics", "Computer Science"])
    assert task.labels == task.label == ("Mathematics", "Physics", "Computer Science")
    assert encode_labels(task, table(papers())).tolist() == [[0, 0, 1], [0, 1, 0], [0, 1, 1]]


def test_whole_numbers_are_one_label_in_every_format() -> None:
    for cells in ([1, 2, 1], [1.0, 2.0, 1.0], ["1", "2 ", " 1"]):
        columns = {"text": ["a", "b", "c"], "label": cells}
        task, _ = infer(columns)
        assert task.labels == ("1", "2")
        assert encode_labels(task, table(columns)).tolist() == [0, 1, 0]


@pytest.mark.parametrize(
    ("cells", "labels"), [([1.0, "1", "2"], ("1", "2")), ([True, "True", False], ("False", "True"))]
)
def test_a_value_beside_its_text_is_the_same_label(cells: list[Any], labels: tuple[str, ...]) -> None:
    for kind in (pd.DataFrame, dict):
        task, _ = infer(kind({"text": ["a", "b", "c"], "label": cells}))
        assert task.labels == labels
        task, _ = infer(kind({"text": ["a", "b", "c"], "label": [[cell] for cell in cells]}))
        assert task.labels == labels


def test_lists_of_numbers_are_labels_unless_all_are_vectors_of_zeros_and_ones() -> None:
    for cells in ([[0, 1], [1]], [[0, 1], [2, 0]], [[0], [1]], [["0", "1"], ["1", "0"]]):
        task, _ = infer({"text": ["a", "b"], "label": cells})
        assert set(task.labels) == {str(item) for cell in cells for item in cell}


# The kind can be forced


def test_one_label_a_row_can_be_a_multi_label_task() -> None:
    task, _ = infer(reviews(), task="multi")
    assert (task.kind, task.label_format) == ("multi", "column")
    assert encode_labels(task, table(reviews())).tolist() == [[0, 0, 1], [1, 0, 0], [0, 1, 0]]


def test_a_single_label_task_over_columns_needs_exactly_one_in_each_row() -> None:
    columns = {"text": ["a", "b", "c"], "x": ["1", "0", "0"], "y": ["0", "1", "1"]}
    task, _ = infer(columns, task="single")
    assert encode_labels(task, table(columns)).tolist() == [0, 1, 1]
    columns["x"] = ["1", "0", "1"]
    with pytest.raises(DataError, match=r"row 3, label 'x', 'y': found x, y, but a single-label task needs exactly"):
        encode_labels(task, table(columns))


# Label names


@pytest.fixture
def names(tmp_path: Path) -> str:
    path = tmp_path / "names.txt"
    path.write_text("world\nsports\nbusiness\n\n", encoding="utf-8")
    return str(path)


def test_cells_are_line_numbers_from_zero_or_names(names: str) -> None:
    columns = {"text": ["a", "b", "c"], "label": ["2", "0", "sports"]}
    task, sentence = infer(columns, label_names=names)
    assert (task.labels, task.label_ids, task.label_base) == (("world", "sports", "business"), True, 0)
    assert "counted from 0" in sentence
    assert encode_labels(task, table(columns)).tolist() == [2, 0, 1]


def test_numbers_from_one_to_the_count_are_taken_as_such_and_said(names: str) -> None:
    columns = {"text": ["a", "b", "c"], "label": [3, 1, 2]}
    task, sentence = infer(columns, label_names=names)
    assert "counted from 1" in sentence
    assert encode_labels(task, table(columns)).tolist() == [2, 0, 1]


def test_names_that_are_numbers_are_names_first(tmp_path: Path) -> None:
    (tmp_path / "stars.txt").write_text("2\n1\n0\n", encoding="utf-8")
    columns = {"text": ["a", "b", "c"], "label": ["0", "1", "2"]}
    task, _ = infer(columns, label_names=str(tmp_path / "stars.txt"))
    assert encode_labels(task, table(columns)).tolist() == [2, 1, 0]


def test_joined_line_numbers_are_split_at_commas_without_a_flag(names: str) -> None:
    columns = {"text": ["a", "b", "c"], "label": ["0,2", "1", "2"]}
    task, sentence = infer(columns, label_names=names)
    assert (task.kind, task.label_sep) == ("multi", ",")
    assert "joined by ','" in sentence
    assert encode_labels(task, table(columns)).tolist() == [[1, 0, 1], [0, 1, 0], [0, 0, 1]]


def test_a_line_number_out_of_range_is_an_error(names: str) -> None:
    columns = {"text": ["a", "b", "c"], "label": ["0", "1", "3"]}
    task, _ = infer(columns, label_names=names)
    with pytest.raises(DataError, match=r"row 3, column 'label': '3' is not a label .* a line number from 0 to 2"):
        encode_labels(task, table(columns))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a\nb\na\n", "line 3: 'a' stands in line 1"), ("a\n\nb\n", "line 2: blank"), ("a\n", "at least two"),
        (None, "no such file"), (b"\xff\xfe\x00", "not readable"),
    ],
)
def test_a_bad_label_names_file_is_an_error(tmp_path: Path, content: str | bytes | None, message: str) -> None:
    path = tmp_path / "names.txt"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError, match=message):
        infer(reviews(), label_names=str(path))


# A trained task over another table


def test_a_fixed_task_keeps_its_labels_and_takes_other_column_names() -> None:
    task, _ = infer(reviews())
    other = table({"body": ["x"], "stars": ["pos"]})
    again, sentence = infer_task(other, DataConfig(text=["body"], label=["stars"]), fixed=task)
    assert (again.labels, again.text, again.label) == (task.labels, ("body",), ("stars",))
    assert sentence.startswith("Task: single-label over 3 labels (neg, neutral, pos), label = stars, text = body.")
    assert encode_labels(again, other).tolist() == [2]
    with pytest.raises(DataError, match="no column 'text'"):
        infer_task(other, DataConfig(), fixed=task)


def test_a_fixed_task_of_columns_also_reads_delimited_labels() -> None:
    task, _ = infer(papers(), text=["TITLE"])
    other = table({"TITLE": ["x", "y"], "subjects": ["Physics|Mathematics", "Physics"]})
    again, _ = infer_task(other, DataConfig(label=["subjects"], label_sep="|"), fixed=task)
    assert encode_labels(again, other).tolist() == [[0, 1, 1], [0, 1, 0]]


def test_line_numbers_of_a_fixed_task_keep_their_base(names: str) -> None:
    task, _ = infer({"text": ["a", "b", "c"], "label": ["3", "1", "2"]}, label_names=names)
    other = table({"text": ["a", "b"], "label": ["1", "2"]})
    again, _ = infer_task(other, DataConfig(), fixed=task)
    assert encode_labels(again, other).tolist() == [0, 1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "multi"}, "leave --task out"),
        ({"labels": ["pos", "neg", "neutral"]}, "are neg, neutral, pos"),
        ({"text_pair": ["text"]}, "the model reads one text"),
        ({"label": ["text", "label"], "text": ["other"]}, "0/1 columns"),
    ],
)
def test_options_that_contradict_a_fixed_task_are_an_error(options: dict[str, Any], message: str) -> None:
    task, _ = infer(reviews())
    with pytest.raises(ConfigError, match=message):
        infer_task(table(reviews(other=["x", "y", "z"])), DataConfig(**options), fixed=task)


# Storing a task


def test_a_task_goes_through_json_unchanged(names: str) -> None:
    for task, _ in (
        infer(papers(), text=["TITLE", "ABSTRACT"]),
        infer({"label": ["0,1", "2"], "sentence1": ["a", "b"], "sentence2": ["c", "d"]}, label_names=names),
    ):
        assert Task.from_dict(json.loads(json.dumps(task.to_dict()))) == task
    assert (task.is_pair, task.num_labels) == (True, 3)
    assert (task.problem_type, task.activation) == ("multi_label_classification", "sigmoid")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lables": []}, r"'lables' is not one of its fields; did you mean 'labels'\?"),
        ({"kind": "both"}, "'kind'"),
        ({"labels": ["a", 1]}, "'labels'"),
        ({"labels": ["a", "a"]}, "'a' is listed twice"),
        ({"text": []}, "one text column"),
    ],
)
def test_a_stored_task_that_is_not_one_is_an_error(change: dict[str, Any], message: str) -> None:
    stored = Task("single", ("a", "b"), ("text",)).to_dict()
    with pytest.raises(ConfigError, match=message):
        Task.from_dict(stored | change)
    with pytest.raises(ConfigError, match="'text': field required"):
        Task.from_dict({"kind": "single", "labels": ["a", "b"]})


# Real files


def test_the_real_data_sets_are_understood_as_they_are(shared_data: Path) -> None:
    def look(name: str, **options: Any) -> tuple[Task, Table]:
        config = DataConfig(**options)
        data = read_table(shared_data / name, config).take(list(range(400)))
        return infer_task(data, config)[0], data

    task, data = look("papers/papers.csv", text=["TITLE", "ABSTRACT"])
    assert (task.kind, task.num_labels) == ("multi", 6)
    assert encode_labels(task, data).sum() > 400
    task, data = look("snli/dev.tsv")
    assert (task.labels, task.is_pair) == (("contradiction", "entailment", "neutral"), True)
    task, _ = look("mrpc/msr_paraphrase_train.txt", format="tsv")
    assert (task.text, task.labels) == (("#1 String",), ("0", "1"))
    task, data = look(
        "goemotions/dev.tsv", columns=["text", "label", "id"], header="no",
        label_names=str(shared_data / "goemotions" / "labels.txt"),
    )
    assert (task.kind, task.label_sep, task.num_labels) == ("multi", ",", 28)
    assert encode_labels(task, data).sum() > 400
    task, _ = look("zh/dev.json", format="jsonl")
    assert (task.text_pair, task.num_labels) == (("sentence2",), 3)
