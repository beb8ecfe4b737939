"""What goes wrong on the command line is one line on stderr, without a traceback, and an exit code that says whose."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import pytest

from bertune import cli
from bertune.commands.incoming import stdin_bytes
from bertune.errors import ConfigError, TrainingError
from shell import Done, bertune, call, write_rows
from tiny_runs import pair_rows, topic_rows


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("data") / "topics.csv", topic_rows(40))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path, table: Path) -> Path:
    """A result, trained for one step."""
    import bertune as package

    out = tmp_path_factory.mktemp("runs") / "topics"
    settings = {"train.max_steps": 1, "train.threads": 1, "train.device": "cpu"}
    package.train(table, out=out, model=tiny_bert, settings=settings)
    return out


def only_line(done: Done, code: int = 2) -> str:
    """The error, which is the last line and the only one that begins so; nothing is on stdout."""
    assert done.code == code, done.err
    assert done.out == ""
    assert "Traceback" not in done.err
    *others, last = done.err.splitlines()
    assert last.startswith("Error: ") and not any(line.startswith("Error") for line in others)
    return last.removeprefix("Error: ")


# The words of the command line


USAGE = {
    "an unknown command": (
        ["trian", "x.csv"], "No such command 'trian'. Did you mean 'train', 'pretrain'? See bertune --help.",
    ),
    "an unknown option": (
        ["train", "x.csv", "--lable", "y"],
        "bertune train: no option --lable; did you mean '--label'? See bertune train --help.",
    ),
    "a data file whose name is empty, as an unset variable makes it": (
        ["train", "", "--out", "x"],
        "The name of a data file is empty; expected a path or a pattern such as data/*.csv.",
    ),
    "a file of tasks whose name is empty": (
        ["multitask", "", "--out", "x"], "The name of the file of tasks is empty; expected a file of YAML.",
    ),
    "an option that has no flag": (
        ["train", "--max-steps", "4"],
        "bertune train: no option --max-steps; pass --set train.max_steps=VALUE. See bertune train --help.",
    ),
    "an option nothing resembles": (["cache", "--zzz"], "bertune cache: no option --zzz. See bertune cache --help."),
    "an option without its value": (["train", "--lr"], "Option '--lr' requires an argument. See bertune train --help."),
    "a missing argument": (["predict", "runs/x"], "Missing argument 'FILE'. See bertune predict --help."),
    "no output": (
        ["train", "--resume"],
        "--out is missing: name the folder of the run, for example --out runs/papers.",
    ),
    "no data": (
        ["train", "--out", "runs/x"],
        "DATA is missing: name one or more files, for example bertune train papers.csv --out runs/papers.",
    ),
    "no data and nothing to resume": (
        ["train", "--out", "runs/x", "--resume"],
        "DATA is missing, and runs/x holds no run to take up: name one or more files, "
        "for example bertune train papers.csv --out runs/papers.",
    ),
    "a choice that is none": (
        ["train", "x.csv", "--out", "runs/x", "--header", "maybe"],
        "--header: 'data.header' cannot be 'maybe': input should be 'auto', 'yes' or 'no'.",
    ),
    "a number that is none": (
        ["train", "x.csv", "--out", "runs/x", "--lr", "fast"],
        "--lr: 'train.lr' cannot be 'fast': input should be a valid number, unable to parse string as a number.",
    ),
    "a number out of range": (
        ["train", "x.csv", "--out", "runs/x", "--epochs", "0"],
        "--epochs: 'train.epochs' cannot be '0': input should be greater than or equal to 1.",
    ),
    "an empty value": (
        ["train", "x.csv", "--out", "runs/x", "--label-sep", ""],
        "--label-sep: is empty; expected TEXT, or leave the option out.",
    ),
    "an empty mix": (
        ["predict", "runs/x", "a.csv", "--label-mix", ""],
        "--label-mix: is empty; expected estimate|FILE.yaml|A=P,B=P, or leave the option out.",
    ),
    "an empty configuration": (
        ["train", "x.csv", "--out", "runs/x", "--config", ""],
        "--config: is empty; expected FILE.yaml, or leave the option out.",
    ),
    "a list on several lines": (
        ["train", "x.csv", "--out", "runs/x", "--labels", "a\nb"],
        "--labels: 'data.labels' cannot be 'a\\nb': a list a,b,c stands on one line.",
    ),
    "a setting without a value": (
        ["train", "x.csv", "--out", "runs/x", "--set", "train.lr"],
        "--set train.lr: expected section.option=value, for example train.lr=1e-4.",
    ),
    "a setting that does not exist": (
        ["train", "x.csv", "--out", "runs/x", "--set", "train.epoch=3"],
        "--set train.epoch=3: 'train.epoch' is not an option; did you mean 'epochs'?",
    ),
    "a configuration that is not there": (
        ["train", "x.csv", "--out", "runs/x", "--config", "no.yaml"],
        "no.yaml: no such configuration file.",
    ),
    "an unknown action": (["cache", "empty"], "bertune cache empty: expected list or clear."),
    "stdin beside files": (
        ["predict", "runs/x", "a.csv", "-"],
        "'-' is stdin and stands alone; name files, or pipe them in.",
    ),
    "an output of unknown format": (
        ["predict", "runs/x", "a.csv", "--out", "scored.xls"],
        "--out scored.xls: its ending tells no format; use one of .csv, .tsv, .tab, .jsonl, .ndjson, "
        "or pass --output-format.",
    ),
    "an unknown output format": (
        ["predict", "runs/x", "a.csv", "--output-format", "json"],
        "--output-format: no format 'json'; did you mean 'jsonl'?",
    ),
    "JSON in another format": (
        ["predict", "runs/x", "a.csv", "--json", "--output-format", "csv"],
        "--json writes JSON lines on stdout; leave out --output-format csv.",
    ),
    "an output in no folder": (
        ["predict", "runs/x", "a.csv", "--out", "nowhere/scored.csv"],
        "--out nowhere/scored.csv: there is no folder 'nowhere'. Make it, or choose another place.",
    ),
    "a result that is not there": (
        ["evaluate", "runs/x", "a.csv"],
        "runs/x: no such folder. Make a result folder with: bertune train DATA --out FOLDER.",
    ),
    "a setting that could not matter": (
        ["predict", "runs/x", "a.csv", "--set", "train.lr=1"],
        "--set train.lr=1: has no effect here; what has is data.columns, data.encoding, data.format, data.header, "
        "data.layout, data.quoting, data.text, data.text_pair, train.device, train.precision, train.seed, "
        "train.threads.",
    ),
    "an option of another command": (
        ["predict", "runs/x", "a.csv", "--patience", "-"],
        "bertune predict: no option --patience. See bertune predict --help.",
    ),
    "a model that is not there": (
        ["convert", "nothing", "out"],
        "'nothing' is no file or folder here and no preset. Presets: mini, bert, modern, science, multilingual, "
        "chinese, d2l-small, d2l-base. Or pass a model folder, an archive, or a hub name as owner/name.",
    ),
}


@pytest.mark.parametrize("case", USAGE)
def test_a_usage_error_is_one_sentence_and_exit_code_2(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments, expected = USAGE[case]
    assert only_line(call(*arguments)) == expected
    assert not list(tmp_path.iterdir())


def test_a_process_ends_with_the_same_line_and_code() -> None:
    arguments, expected = USAGE["an unknown option"]
    assert only_line(bertune(*arguments)) == expected


# The data


def test_a_misnamed_column_names_the_nearest_and_touches_nothing(table: Path, tiny_bert: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = bertune("train", table, "--model", tiny_bert, "--text", "txet", "--label", "label", "--out", out)
    assert f"{table}: no column 'txet'; did you mean 'text'?" in only_line(done)
    assert not out.exists()


def test_a_missing_file_is_named(tiny_bert: Path, tmp_path: Path) -> None:
    done = call("train", tmp_path / "topcis.csv", "--model", tiny_bert, "--out", tmp_path / "run")
    assert only_line(done) == f"{tmp_path / 'topcis.csv'}: no such file."


def test_predict_misses_a_column(trained: Path, tmp_path: Path) -> None:
    table = write_rows(tmp_path / "new.csv", [{"txt": "a", "id": "1"}])
    assert only_line(call("predict", trained, table)) == (
        f"{table}: no column 'text'; did you mean 'txt'? Pass --text COLUMN for a column with another name, or "
        "--columns A,B,C for a file without a header."
    )


def test_the_wrong_layout_is_said_with_the_way_out(table: Path, tmp_path: Path) -> None:
    assert only_line(call("train", table, "--layout", "trec", "--out", tmp_path / "run")) == (
        f"{table} row 1: 'text,label' is not 'COARSE:fine question', the TREC layout. Fix the row; or, if the file is "
        "no such one, leave out --layout trec or pass its --format."
    )


def test_stdin_is_for_predict_alone(trained: Path, tmp_path: Path) -> None:
    for command in (("evaluate", trained, "-"), ("train", "-", "--out", tmp_path / "run")):
        assert only_line(call(*command)) == "'-': standard input is read by bertune predict alone; name a file here."


@pytest.mark.parametrize("name", ["prediction", "prob:tools"])
def test_predict_refuses_a_column_that_it_would_write(trained: Path, tmp_path: Path, name: str) -> None:
    table = write_rows(tmp_path / "new.csv", [{"text": "a", name: "1"}])
    assert only_line(call("predict", trained, table)) == (
        f"{table}: has a column '{name}' already, and the output would have it twice. Rename it there, or remove it."
    )


def test_errors_about_a_piped_table_call_it_stdin(trained: Path) -> None:
    done = call("predict", trained, "-", "--format", "csv", stdin="txt,id\na,1\n")
    assert only_line(done).startswith("stdin: no column 'text'")


def test_predict_needs_some_input(trained: Path) -> None:
    assert only_line(call("predict", trained, "-")) == "stdin: is empty; expected one text a line."


def test_options_for_tables_do_not_fit_plain_lines(trained: Path) -> None:
    done = call("predict", trained, "-", "--columns", "a,b", stdin="x\n")
    assert only_line(done) == "--columns: - is read as one text a line; pass --format csv or jsonl for a table."


def test_pairs_do_not_fit_a_model_of_single_texts(trained: Path, table: Path) -> None:
    done = call("predict", trained, table, "--text-pair", "label")
    assert only_line(done) == "--text-pair label: the model reads one text, not pairs; leave it out."


def test_a_line_of_a_pair_needs_a_tab(tmp_path: Path, tiny_bert: Path) -> None:
    import bertune as package

    out = tmp_path / "pairs"
    settings = {"train.max_steps": 1, "train.threads": 1, "train.device": "cpu"}
    rows = pair_rows(40)
    package.train(
        rows, out=out, model=tiny_bert, text="first", text_pair="second", label="label", settings=settings
    )
    assert only_line(call("predict", out, "-", stdin="a\tb\nonly one\n")) == (
        "stdin line 2: expected the two texts of a pair with one tab between, found 1 text. "
        "Fix the line, or pass --format csv or jsonl."
    )


def test_evaluate_knows_its_labels(trained: Path, tmp_path: Path) -> None:
    rows = topic_rows(6)
    rows[4]["label"] = "tool"
    table = write_rows(tmp_path / "more.csv", rows)
    assert only_line(call("evaluate", trained, table)) == (
        f"{table} row 5, column 'label': 'tool' is not a label of this task; expected one of animals, plants, tools. "
        "Fix the row, or leave such rows out with --drop-label."
    )
    assert call("evaluate", trained, table, "--drop-label", "tool", "--json").json["rows"] == 5


def test_outputs_are_never_overwritten_silently(trained: Path, table: Path, tmp_path: Path) -> None:
    target = tmp_path / "scored.csv"
    target.write_text("old", encoding="utf-8")
    for command in ("predict", "evaluate"):
        done = call(command, trained, table, "--out", target)
        assert only_line(done) == (
            f"--out {target}: the file exists. Choose another name, or pass --overwrite to replace it."
        )
    done = call("predict", trained, table, "--out", table, "--overwrite")
    assert only_line(done) == f"--out {table}: is the file that is read; choose another name."
    pattern = str(table.parent / "*.csv")
    done = call("predict", trained, pattern, "--out", table, "--overwrite")
    assert only_line(done) == f"--out {table}: is the file that is read; choose another name."
    done = call("train", table, "--out", trained)
    assert only_line(done).startswith(f"--out {trained}: the folder holds an earlier run.")
    assert target.read_text(encoding="utf-8") == "old"


def test_an_output_is_no_file_that_is_read_in_any_role(
    trained: Path, table: Path, tmp_path: Path, tiny_bert: Path
) -> None:
    valid = write_rows(tmp_path / "dev.csv", topic_rows(12, seed=3))
    command = ("check", table, "--model", tiny_bert, "--label-errors", "none", "--valid", valid, "--overwrite")
    assert only_line(call(*command, "--fix", valid)) == f"--fix {valid}: is the file that is read; choose another name."
    plan = tmp_path / "plan.yaml"
    assert only_line(call(*command, "--fix", plan, "--page", plan)) == (
        "--fix, --queue and --page: two of them are the same file; name one for each."
    )
    mix = tmp_path / "mix.yaml"
    mix.write_text("{animals: 0.5, plants: 0.25, tools: 0.25}", encoding="utf-8")
    done = call("predict", trained, table, "--label-mix", mix, "--out", mix, "--overwrite", "--output-format", "csv")
    assert only_line(done) == f"--out {mix}: is the file that is read; choose another name."
    shares = "animals=0.5,plants=0.25,tools=0.25"
    done = call("predict", trained, table, "--label-mix", shares, "--out", mix, "--overwrite", "--output-format", "csv")
    assert done.code == 0 and mix.read_text(encoding="utf-8").startswith("text,")  # shares are no file


@pytest.mark.skipif(os.name == "nt", reason="has no named pipes in folders")
def test_a_device_or_pipe_is_not_replaced_by_a_file(trained: Path, table: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.csv")
    done = call("predict", trained, table, "--out", tmp_path / "pipe.csv", "--overwrite")
    assert only_line(done) == f"--out {tmp_path / 'pipe.csv'}: is a device or a pipe, not a file. Name a file."


def test_overwriting_spares_what_is_to_be_read(trained: Path, tmp_path: Path, tiny_bert: Path) -> None:
    out = shutil.copytree(trained, tmp_path / "out")
    table = write_rows(out / "run" / "more.csv", topic_rows(40))
    for command in ("train", "lr", "pretrain"):
        done = call(command, table, "--model", tiny_bert, "--out", out, "--overwrite")
        assert only_line(done) == (
            f"--overwrite: {table} lies in --out {out} and would be deleted. Move it first."
        ), command
    assert table.is_file()


def test_closed_streams_are_no_bugs(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    cli.prepare_output()
    print("to nobody")
    for stream in (sys.stdout, sys.stderr):
        stream.close()
    with pytest.raises(ConfigError, match="there is no standard input, it is closed; pipe the rows in"):
        stdin_bytes()


def test_an_output_where_nothing_can_be_written_is_refused_before_the_work(
    trained: Path, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "scored.csv"
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    assert only_line(call("predict", trained, table, "--out", target)) == (
        f"--out {target}: nothing can be written in '{tmp_path}'. Choose another place."
    )


@pytest.mark.skipif(os.name == "nt", reason="Windows says that such a name is not there")
def test_an_output_whose_name_is_too_long_is_refused_before_the_work(tmp_path: Path) -> None:
    long = tmp_path / ("x" * 300)
    reason = "there can be no such name (File name too long). Choose another one."
    for out in (long, tmp_path / "new" / long.name):
        for command in (("train", "none.csv"), ("pretrain", "none.csv"), ("reproduce", "sun2019", "--data", tmp_path)):
            assert only_line(call(*command, "--out", out)) == f"--out {out}: {reason}"
        assert only_line(call("predict", "none", "none.csv", "--out", f"{out}.csv")) == f"--out {out}.csv: {reason}"
        assert only_line(call("convert", "none", out)) == f"{out}: {reason}"
    assert not list(tmp_path.iterdir())


def test_an_output_below_a_file_is_refused_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "one.csv").write_text("a", encoding="utf-8")
    out = tmp_path / "one.csv" / "x"
    assert only_line(call("convert", "none", out)) == (
        f"{out}: {tmp_path / 'one.csv'} is a file, and nothing can be made below it. Name another folder."
    )
    assert only_line(call("train", "none.csv", "--out", out)) == (
        f"--out {out}: {tmp_path / 'one.csv'} is a file; the output is a folder. Choose another name."
    )
    assert only_line(call("reproduce", "sun2019", "--data", tmp_path, "--out", out)) == (
        f"--out {out}: {tmp_path / 'one.csv'} is a file, and a folder is wanted. Choose another name."
    )


@pytest.mark.parametrize(
    ("text", "problem"),
    [(b"abc", "UTF-16 stream does not start with BOM"), (b"\xff\xfea\0b", "byte 0x62 is not utf-16-le")],
)
def test_lines_of_another_encoding_are_said_to_be(trained: Path, text: bytes, problem: str) -> None:
    said = only_line(call("predict", trained, "-", "--encoding", "utf-16", stdin=text))
    assert said.startswith(f"stdin: {problem}. Pass the --encoding that ")


def test_a_run_over_data_in_memory_is_resumed_where_it_was_started(tmp_path: Path, tiny_bert: Path) -> None:
    import bertune as package

    out = tmp_path / "run"
    settings = {"train.max_steps": 1, "train.threads": 1, "train.device": "cpu"}
    package.train(topic_rows(40), out=out, model=tiny_bert, settings=settings)
    assert only_line(call("train", "--resume", "--out", out)) == (
        f"DATA is missing: the run in {out} was started in Python, with data in memory. "
        f"Go on with it there: bertune.train(data, out='{out}', resume=True)."
    )


def test_a_folder_that_is_no_result_is_said_to_be(tiny_bert: Path, table: Path) -> None:
    assert "a plain model folder" in only_line(call("predict", tiny_bert, table))


def test_labels_that_the_model_has_no_outputs_for_are_said_before_anything_is_written(
    trained: Path, table: Path, tmp_path: Path
) -> None:
    result = shutil.copytree(trained, tmp_path / "result")
    path = result / "bertune.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    values["task"]["labels"].append("fungi")
    values["decision"] = {}
    path.write_text(json.dumps(values), encoding="utf-8")
    assert only_line(call("predict", result, table, "--out", tmp_path / "scored.csv")) == (
        f"{path}: 'task.labels' names 4 labels, but the model has 3 outputs; the file is damaged. "
        "Copy the folder again."
    )
    assert not (tmp_path / "scored.csv").exists()


# What is nobody's input


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (TrainingError("The loss is not finite."), 1, "Error: The loss is not finite."),
        (ConfigError("No."), 2, "Error: No."),
        (ConfigError("'a\nb\x1b[2Jc' is no label."), 2, "Error: 'a b [2Jc' is no label."),
        (KeyboardInterrupt(), 130, "Error: interrupted."),
        (OSError(28, "No space left on device"), 1, "Error: the disk is full."),
        (PermissionError(13, "Permission denied", "x.csv"), 1, "Error: [Errno 13] Permission denied: 'x.csv'"),
    ],
)
def test_the_exit_code_tells_whose_fault_it_is(
    monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, line: str
) -> None:
    def fail(arguments: list[str]) -> int:
        raise error

    monkeypatch.setattr(cli, "run", fail)
    done = call("models")
    assert (done.code, done.err.strip()) == (code, line)


def test_an_unforeseen_error_is_called_a_bug(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("BERTUNE_DEBUG", raising=False)
    cli.report_bug(KeyError, KeyError("lost"), None)
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("Error: this is a bug in bertune") and first.endswith("KeyError: 'lost'")
    assert second == "BERTUNE_DEBUG=1 shows where it happened."
    cli.report_bug(ValueError, ValueError("\x1b[2J"), None)
    assert "\x1b" not in capsys.readouterr().err
    monkeypatch.setenv("BERTUNE_DEBUG", "1")
    try:
        raise KeyError("lost")
    except KeyError as error:
        cli.report_bug(KeyError, error, error.__traceback__)
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_without_out_the_folder_is_named_after_the_recipe_or_the_first_file() -> None:
    from bertune.commands.options import default_out

    assert default_out(None, ["data/my papers.csv.gz", "more.csv"]) == "runs/my-papers"
    assert default_out("recipes/snli-mini.yaml", ["x.csv"]) == "runs/snli-mini"
    assert default_out(None, None) is None
