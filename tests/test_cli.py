"""The command line does the whole job: train, evaluate and predict, for every kind of task and every way in and out."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bertune as package
from bertune import cli
from bertune.bundle import Bundle
from bertune.commands.options import flags_of
from bertune.commands.output import shell_word
from bertune.commands.sheet import Sheet
from bertune.data.tasks import Task
from bertune.paths import cache_entry, cache_settings
from bertune.presets import PRESETS
from shell import PROGRAM, bertune, call, environment, read_rows, write_rows
from tiny_runs import TOPICS, multi_rows, pair_rows, topic_rows

QUICK = (
    "--epochs", "2", "--lr", "5e-3", "--batch-size", "8", "--precision", "fp32", "--device", "cpu", "--threads", "1",
)  # fmt: skip


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> dict[str, Any]:
    """A run over one label a row, started with --json; its table has a column that is neither text nor label."""
    folder = tmp_path_factory.mktemp("single")
    rows = [{"id": str(number), **row} for number, row in enumerate(topic_rows(60), 100)]
    table = write_rows(folder / "topics.csv", rows)
    out = folder / "runs" / "topics"
    done = bertune("train", table, "--model", tiny_bert, "--out", out, "--json", *QUICK, "--label", "label")
    assert done.code == 0, done.err
    return {"table": table, "out": out, "done": done, "rows": rows}


@pytest.fixture(scope="module")
def multi(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> dict[str, Any]:
    """A run over 0/1 columns, one of which has a | in its name, and two text columns."""
    folder = tmp_path_factory.mktemp("multi")
    rows: list[dict[str, Any]] = []
    for row in multi_rows(60):
        begin, _, end = row["text"].partition(" ")
        flags = {name.replace("tools", "tools | toys"): row[name] for name in TOPICS}
        rows.append({"TITLE": begin, "ABSTRACT": end, **flags})
    table = write_rows(folder / "papers.csv", rows)
    out = folder / "papers"
    done = bertune("train", table, "--model", tiny_bert, "--out", out, *QUICK, "--text", "TITLE", "--text", "ABSTRACT")
    assert done.code == 0, done.err
    return {"table": table, "out": out, "done": done, "rows": rows}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> dict[str, Any]:
    """A quiet run over pairs in SNLI's columns, with a file a split; a row of each has no label ('-')."""
    folder = tmp_path_factory.mktemp("pairs")
    tables = {}
    for number, name in enumerate(("train", "dev", "test")):
        rows = [
            {"gold_label": row["label"], "sentence1": row["first"], "sentence2": row["second"]}
            for row in pair_rows(40, seed=number)
        ]
        rows[3]["gold_label"] = "-"
        tables[name] = write_rows(folder / f"{name}.tsv", rows)
    out = folder / "nli"
    done = bertune(
        "train", tables["train"], "--valid", tables["dev"], "--test", tables["test"], "--model", tiny_bert,
        "--out", out, "--quiet", *QUICK,
    )  # fmt: skip
    assert done.code == 0, done.err
    return {"tables": tables, "out": out, "done": done}


def probabilities_of(rows: list[dict[str, Any]], out: Path) -> np.ndarray:
    labels = Bundle.read(out).task.labels
    return np.array([[float(row[f"prob:{label}"]) for label in labels] for row in rows])


# train


def test_json_is_one_object_and_the_rest_goes_to_stderr(single: dict[str, Any]) -> None:
    printed = single["done"].json
    assert set(printed) == {"out", "task", "metrics"}
    assert printed["out"] == str(single["out"])
    assert printed["task"]["labels"] == sorted(TOPICS)
    assert printed["metrics"] == json.loads((single["out"] / "run" / "metrics.json").read_text(encoding="utf-8"))


def test_training_says_what_it_found_and_chose(single: dict[str, Any]) -> None:
    said = single["done"].err
    for words in ("Task: single-label", "Splits: 48 train, 6 valid", "Machine: cpu", "Estimate:", "Epoch 1, valid"):
        assert words in said
    assert "\x1b" not in said and "\r" not in said  # a pipe gets plain lines


def test_training_ends_with_a_table_on_stdout(multi: dict[str, Any]) -> None:
    lines = multi["done"].out.splitlines()
    assert re.split("  +", lines[0].strip()) == ["train", "valid", "test", "test, 95 %", "TF-IDF", "majority"]
    assert lines[2].split() == ["rows", "48", "6", "6", "-", "6", "6"]
    assert any(line.startswith("micro_f1 ") for line in lines)
    assert [line.partition(" (")[0].partition(":")[0] for line in lines[-3:]] == [
        "micro_f1 on the test split", "Against TF-IDF", "Against majority"
    ]  # fmt: skip
    assert f"bertune predict {multi['out']} new.csv" in multi["done"].err


@pytest.mark.skipif(os.name == "nt", reason="the command line of Windows quotes in its own way")
@pytest.mark.parametrize("name", ["runs/my papers", "runs/$HOME", "it's"])
def test_the_next_command_can_be_typed_as_it_is_told(name: str) -> None:
    assert shlex.split(f"bertune predict {shell_word(Path(name))} new.csv")[2] == name


def test_quiet_leaves_the_result_alone(pairs: dict[str, Any]) -> None:
    assert pairs["done"].err == ""
    assert pairs["done"].out.splitlines()[2].split() == ["rows", "39", "39", "39", "-", "39", "39", "39"]


def test_resume_needs_no_data_and_a_complete_run_is_fine(single: dict[str, Any]) -> None:
    done = call("train", "--resume", "--out", single["out"])
    assert done.code == 0
    assert "complete run already" in done.err
    assert "accuracy" in done.out


def test_resume_takes_what_a_configuration_leaves_open_from_the_run(single: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("train: {epochs: 2}\n", encoding="utf-8")
    done = call("train", "--resume", "--config", tmp_path / "recipe.yaml", "--out", single["out"])
    assert done.code == 0 and "complete run already" in done.err
    assert "other options" not in done.err


@pytest.mark.skipif(os.name == "nt", reason="a process cannot be sent Ctrl-C alone on Windows")
def test_ctrl_c_saves_and_resume_goes_on_from_the_recorded_options(tmp_path: Path, tiny_bert: Path) -> None:
    table, out = write_rows(tmp_path / "topics.csv", topic_rows(60)), tmp_path / "run"
    arguments = ["train", table, "--model", tiny_bert, "--out", out, *QUICK, "--epochs", "400"]
    with subprocess.Popen(
        [*PROGRAM, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    ) as process:
        assert process.stderr is not None
        said = ""
        while "Epoch 1, valid" not in said:
            line = process.stderr.readline()
            assert line, said
            said += line
        process.send_signal(signal.SIGINT)
        _, rest = process.communicate(timeout=60)
    assert process.returncode == 130
    last = rest.splitlines()[-1]
    assert re.fullmatch(r"Error: Stopped after step [\d,]+ of 2,400; all is saved\. .* --resume\.", last), rest
    refused = call("train", "--resume", "--out", out, "--lr", "1e-3")
    assert refused.code == 2 and "train.lr" in refused.err


# evaluate


def test_evaluate_agrees_with_the_predictions(single: dict[str, Any], tmp_path: Path) -> None:
    target = tmp_path / "metrics.json"
    done = bertune("evaluate", single["out"], single["table"], "--json", "--out", target)
    assert done.code == 0, done.err
    metrics = done.json
    assert metrics == json.loads(target.read_text(encoding="utf-8"))
    scored = call("predict", single["out"], single["table"]).out
    predicted = [row["prediction"] for row in read_text(scored, tmp_path)]
    right = [prediction == row["label"] for prediction, row in zip(predicted, single["rows"], strict=True)]
    assert metrics["rows"] == 60
    assert metrics["accuracy"] == pytest.approx(np.mean(right))


def read_text(text: str, folder: Path) -> list[dict[str, str]]:
    (folder / "out.csv").write_text(text, encoding="utf-8", newline="")
    return read_rows(folder / "out.csv")


def test_evaluating_the_test_file_again_gives_the_recorded_metrics(pairs: dict[str, Any]) -> None:
    metrics = call("evaluate", pairs["out"], pairs["tables"]["test"], "--json").json
    recorded = json.loads((pairs["out"] / "run" / "metrics.json").read_text(encoding="utf-8"))["test"]
    assert metrics["confusion_matrix"] == recorded["confusion_matrix"]
    for name in ("rows", "accuracy", "macro_f1", "mcc", "log_loss"):
        assert metrics[name] == pytest.approx(recorded[name]), name


def test_evaluate_shows_a_table_and_one_a_label(multi: dict[str, Any]) -> None:
    done = call("evaluate", multi["out"], multi["table"], "--quiet")
    assert done.err == ""
    assert "subset_accuracy" in done.out
    assert re.search(r"^tools \| toys +\d", done.out, re.MULTILINE)


def test_evaluate_takes_a_whole_configuration_and_tells_what_it_leaves(pairs: dict[str, Any]) -> None:
    done = call("evaluate", pairs["out"], pairs["tables"]["dev"], "--config", pairs["out"] / "run" / "config.yaml")
    assert done.code == 0
    assert "config.yaml: data.files, data.task" in done.err
    assert "no effect here" in done.err


# predict


def test_predict_keeps_rows_order_and_columns(single: dict[str, Any], tmp_path: Path) -> None:
    target = tmp_path / "scored.csv"
    done = bertune("predict", single["out"], single["table"], "--out", target)
    assert (done.code, done.out) == (0, "")
    rows = read_rows(target)
    assert list(rows[0]) == ["id", "text", "label", "prediction", *(f"prob:{name}" for name in sorted(TOPICS))]
    assert [row["id"] for row in rows] == [row["id"] for row in single["rows"]]
    shares = probabilities_of(rows, single["out"])
    expected = package.load(single["out"], threads=1).predict_proba([row["text"] for row in single["rows"]])
    np.testing.assert_allclose(shares, expected, atol=1e-5)
    assert [row["prediction"] for row in rows] == [sorted(TOPICS)[place] for place in expected.argmax(1)]
    assert [path.name for path in tmp_path.iterdir()] == ["scored.csv"]


def test_predict_answers_texts_from_a_pipe_line_by_line(single: dict[str, Any]) -> None:
    done = bertune("predict", single["out"], "-", stdin="a cat was here\n\n  \nein Baum, 树\r\n")
    assert done.code == 0
    lines = done.out.splitlines()
    assert len(lines) == 4
    assert lines[0].endswith("  a cat was here") and lines[3].endswith("  ein Baum, 树")
    assert all(re.match(r"(animals|plants|tools) +0\.\d\d ", line) for line in lines)


def test_predict_reads_no_row_away(single: dict[str, Any]) -> None:
    lines = b"\xef\xbb\xbffirst\nnot \xff utf-8\n\nlast without end"
    done = call("predict", single["out"], "-", "--json", stdin=lines)
    assert [row["text"] for row in done.json_lines] == ["first", "not \ufffd utf-8", "", "last without end"]
    assert "stdin: lines with bytes that are not utf-8: 1;" in done.err
    latin = call("predict", single["out"], "-", "--json", "--encoding", "latin-1", stdin=b"caf\xe9\n")
    assert [row["text"] for row in latin.json_lines] == ["café"]


@pytest.mark.parametrize("form", ["csv", "jsonl", "tsv"])
def test_predict_reads_a_table_from_a_pipe(single: dict[str, Any], tmp_path: Path, form: str) -> None:
    piped = write_rows(tmp_path / f"some.{form}", [{"n": "1", "text": "a cat"}, {"n": "2", "text": ""}]).read_bytes()
    rows = call("predict", single["out"], "-", "--format", form, "--json", stdin=piped).json_lines
    assert [(row["n"], row["text"]) for row in rows] == [("1", "a cat"), ("2", "")]
    assert all(abs(sum(row[f"prob:{name}"] for name in TOPICS) - 1) < 1e-5 for row in rows)


def test_predict_takes_unlabelled_files_and_other_columns(single: dict[str, Any], tmp_path: Path) -> None:
    table = write_rows(tmp_path / "new.jsonl", [{"words": "a cat", "n": 1, "tags": ["x"]}, {"words": None, "n": 2.5}])
    rows = call("predict", single["out"], table, "--text", "words", "--json").json_lines
    assert [(row["words"], row["n"], row["tags"]) for row in rows] == [("a cat", 1, ["x"]), (None, 2.5, None)]
    sheet = read_text(call("predict", single["out"], table, "--text", "words").out, tmp_path)
    assert [(row["words"], row["n"], row["tags"]) for row in sheet] == [("a cat", "1.0", '["x"]'), ("", "2.5", "")]


def test_lines_show_the_texts_of_a_table_alone(single: dict[str, Any], tmp_path: Path) -> None:
    rows = [{"id": "7", "text": "a cat\x1b\nwas here " * 20}, {"id": "8", "text": ""}]
    table = write_rows(tmp_path / "new.csv", rows)
    lines = call("predict", single["out"], table, "--output-format", "lines").out.splitlines()
    assert re.fullmatch(r"\w+ 0\.\d\d +a cat was here a cat was here [a-z ]+…", lines[0])
    assert re.fullmatch(r"\w+ 0\.\d\d *", lines[1])


def test_what_a_terminal_would_obey_is_not_in_lines_and_survives_in_tables() -> None:
    task = Task("single", ("good\x1b[2J", "bad"), ("text",))
    sheets = {}
    for form in ("lines", "csv"):
        stream = io.StringIO()
        Sheet(stream, form, ["text"], task).write([["a\rb"]], ["good\x1b[2J"], np.array([[0.75, 0.25]]))
        sheets[form] = stream.getvalue()
    assert sheets["lines"] == "good [2J 0.75  a b\n"
    _, row = csv.reader(io.StringIO(sheets["csv"], newline=""))
    assert row == ["a\rb", "good\x1b[2J", "0.75", "0.25"]
    assert "\r\n" not in sheets["csv"]


def test_a_file_of_one_text_a_line_needs_no_column_name(multi: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("a cat and a tree\na hammer\n", encoding="utf-8")
    done = call("predict", multi["out"], tmp_path / "texts.txt", "--json")
    assert [row["text"] for row in done.json_lines] == ["a cat and a tree", "a hammer"]


def test_several_labels_are_joined_in_csv_and_a_list_in_json(multi: dict[str, Any], tmp_path: Path) -> None:
    target = tmp_path / "scored.tsv"
    done = call("predict", multi["out"], multi["table"], "--out", target, "--json")
    assert done.json == {"out": str(target), "rows": 60, "labels": ["animals", "plants", "tools | toys"]}
    rows, shares = read_rows(target), probabilities_of(read_rows(target), multi["out"])
    labels = np.array(["animals", "plants", "tools | toys"])
    # `|` is in a label, so `;` joins them
    assert [row["prediction"] for row in rows] == [";".join(labels[share >= 0.5]) for share in shares]
    listed = call("predict", multi["out"], multi["table"], "--output-format", "jsonl").json_lines
    assert [row["prediction"] for row in listed] == [list(labels[share >= 0.5]) for share in shares]


def test_a_pair_is_a_line_with_a_tab(pairs: dict[str, Any]) -> None:
    done = bertune("predict", pairs["out"], "-", "--json", stdin="a cat\ta dog\n\n")
    rows = done.json_lines
    assert [(row["sentence1"], row["sentence2"]) for row in rows] == [("a cat", "a dog"), ("", "")]
    assert all(row["prediction"] in ("other", "same") for row in rows)


def test_rows_without_a_label_train_nothing_and_are_predicted(pairs: dict[str, Any]) -> None:
    rows = call("predict", pairs["out"], pairs["tables"]["train"], "--json").json_lines
    assert len(rows) == 40
    assert rows[3]["gold_label"] == "-"


def test_a_failed_prediction_leaves_the_old_file(pairs: dict[str, Any], tmp_path: Path) -> None:
    target = tmp_path / "scored.csv"
    target.write_text("old", encoding="utf-8")
    lines = "a\tb\n" * 9000 + "no tab\n"  # the fault is beyond the first rows that are written
    done = call("predict", pairs["out"], "-", "--out", target, "--overwrite", stdin=lines)
    assert done.code == 2
    assert "stdin line 9001: expected the two texts of a pair" in done.err
    assert target.read_text(encoding="utf-8") == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["scored.csv"]


@pytest.mark.skipif(os.name == "nt", reason="Windows reports a closed pipe in another way")
def test_a_reader_that_leaves_ends_the_work_quietly(single: dict[str, Any]) -> None:
    with subprocess.Popen(
        [*PROGRAM, "predict", str(single["out"]), str(single["table"]), "--quiet"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(),
    ) as process:  # fmt: skip
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1


# models, convert, cache


def test_models_lists_presets_and_places() -> None:
    listed = {model["name"]: model for model in call("models", "--json").json["models"]}
    assert {"mini", "bert", "modern", "science", "multilingual", "chinese", "d2l-small", "d2l-base"} <= set(listed)
    assert all(model["licence"] and model["size"] > 0 and "where" in model for model in listed.values())
    table = call("models").out
    assert table.splitlines()[0].split("  ")[0] == "name"
    assert all(re.search(rf"^{name} ", table, re.MULTILINE) for name in listed)


def test_convert_writes_a_clean_folder_once(tiny_bert: Path, tmp_path: Path) -> None:
    out = tmp_path / "clean"
    assert call("convert", tiny_bert, out, "--json").json == {"source": str(tiny_bert), "out": str(out)}
    assert {path.name for path in out.iterdir()} == {"config.json", "model.safetensors", "vocab.txt"}
    again = call("convert", tiny_bert, out)
    assert again.code == 2 and "--overwrite" in again.err
    assert call("convert", tiny_bert, out, "--overwrite").code == 0


def test_the_cache_is_shown_and_cleared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bertune.data.cache import write_entry

    monkeypatch.setenv("BERTUNE_CACHE", str(tmp_path))
    monkeypatch.setenv("BERTUNE_CACHE_LIMIT", "20MB")
    write_entry(tmp_path, "tokens", "0" * 64, {"ids": np.zeros(1000, np.int32)}, {})
    shown = call("cache", "--json").json
    assert (shown["place"], shown["limit"]) == (str(tmp_path), 20_000_000)
    assert [entry["kind"] for entry in shown["entries"]] == ["tokens"]
    assert call("cache").out.startswith(f"{tmp_path}: 4.")
    assert call("cache", "clear").code == 0
    assert call("cache", "--json").json["entries"] == []


# what every command takes


EVERYWHERE = ("--seed", "--config", "--set", "--json", "--quiet")


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_takes_the_common_options(command: str) -> None:
    shown = call(command, "--help").out
    for flag in EVERYWHERE:
        assert re.search(rf"{flag} ", shown), flag


def test_a_configuration_moves_and_bounds_the_cache(tmp_path: Path) -> None:
    from bertune.paths import cache_root

    before, place = cache_root(), tmp_path / "place"
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"cache: {{folder: {json.dumps(str(place))}, limit: 20MB}}\ntrain: {{lr: 0.1}}\n", "utf-8")
    done = call("cache", "--config", recipe, "--set", "cache.limit=1GB", "--seed", "3", "--json")
    assert done.json == {"place": str(place), "bytes": 0, "limit": 10**9, "entries": []}
    assert done.err.splitlines() == [
        f"{recipe}: train.lr: no effect here.", "--seed changes nothing here: nothing is drawn by chance.",
    ]  # fmt: skip
    assert call("cache", "--config", recipe, "--seed", "3", "--json", "--quiet").err == ""
    assert cache_root() == before


def test_downloads_are_looked_for_in_the_cache_that_was_named(tmp_path: Path) -> None:
    preset = PRESETS["d2l-small"]
    assert preset.url is not None
    with cache_settings(str(tmp_path), None):
        entry = cache_entry("downloads", preset.url)
    entry.mkdir(parents=True)
    (entry / preset.url.rpartition("/")[2]).write_bytes(b"no archive")
    done = call("models", "--set", f"cache.folder={tmp_path}", "--json")
    notes = {model["name"]: model["note"] for model in done.json["models"]}
    assert "it is damaged" in notes["d2l-small"]
    assert "it is damaged" not in json.dumps(call("models", "--json").json)


def test_convert_takes_its_source_from_a_configuration(tiny_bert: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"model: {{name: {json.dumps(str(tiny_bert))}}}\n", "utf-8")
    out = tmp_path / "clean"
    done = call("convert", out, "--config", recipe, "--json", "--quiet")
    assert (done.json, done.err) == ({"source": str(tiny_bert), "out": str(out)}, "")
    assert call("convert", out, "--set", f"model.name={tiny_bert}", "--overwrite").code == 0
    alone = call("convert", out, "--overwrite")
    assert alone.code == 2 and "name the model and the folder to write" in alone.err


def test_training_keeps_encoded_texts_where_it_is_told(single: dict[str, Any], tiny_bert: Path, tmp_path: Path) -> None:
    place, out = tmp_path / "cache", tmp_path / "run"
    settings = ("--set", "train.max_steps=1", "--set", f"cache.folder={place}", "--label", "label", "--quiet")
    assert call("train", single["table"], "--model", tiny_bert, "--out", out, *QUICK, *settings).code == 0
    assert list(place.glob("tokens/*/meta.json"))
    assert "cache" not in (out / "run" / "config.yaml").read_text(encoding="utf-8")


# help


def test_help_is_for_every_command_with_examples() -> None:
    for command in ("train", "evaluate", "predict", "models", "convert", "cache"):
        done = call(command, "--help")
        assert done.code == 0
        assert "Examples:" in done.out and f"bertune {command}" in done.out
    assert call("--help").out == call().out


@pytest.mark.parametrize(
    ("command", "words"),
    [("models", "--seed N Taken by every command; changes nothing here."),
     ("compare", "What a run is called better or worse by. Default: what the first run was chosen by."),
     ("evaluate", "Column whose equal values are drawn together for the intervals.")],
)  # fmt: skip
def test_help_says_what_an_option_is_for_in_this_command(command: str, words: str) -> None:
    shown = re.sub(r"[\s│]+", " ", call(command, "--help").out)
    assert words in shown and "Seed of initialisation" not in shown


def test_every_option_of_the_configuration_is_in_the_help_of_train() -> None:
    shown = call("train", "--help").out
    for flag in flags_of():
        assert re.search(rf"{flag.name} ", shown), flag.name
    for group in ("Data", "Reading", "Model", "Training", "Machine"):
        assert f"─ {group} ─" in shown


def test_the_version_is_printed() -> None:
    assert call("--version").out == f"bertune {package.__version__}\n"


def test_help_of_a_command_imports_nothing_heavy() -> None:
    code = (
        "import sys; from bertune.cli import run; assert run(['train', '--help']) == 0; "
        "print(sorted({'numpy', 'torch', 'polars', 'sklearn', 'tokenizers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, encoding="utf-8")
    assert done.stdout.splitlines()[-1] == "[]"
