"""Rows of a reproduction that are one training of all data of their table: made once, for every cell it answers."""

from __future__ import annotations

import hashlib
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml

from bertune.config import Config
from bertune.errors import ConfigError
from bertune.multitaskconfig import MultiConfig
from bertune.reproduce import run as reproduce_run
from bertune.reproduce.keep import Done, cell_key, read_cell
from bertune.reproduce.run import draw_part, make_cells
from bertune.reproduce.spec import Cell, Data, Encoder, Spec, cells, read_spec
from bertune.reproduce.tables import markdown, results
from bertune.training.multitask import Joint, multitask
from bertune.training.outcome import Outcome
from shell import bertune as shell
from technique_runs import Stop, Stopper
from tiny_runs import QUICK, Told, multi_rows, pair_rows, topic_rows

pytestmark = pytest.mark.usefixtures("one_thread", "no_pictures")

BOTH = {"topics", "pairs"}


@pytest.fixture
def values(tmp_path: Path, tiny_bert: Path) -> dict[str, Any]:
    """A recipe with a table of two sets of data, which lie in tmp_path/data; one has longer texts, and more of them."""
    folder = tmp_path / "data"
    folder.mkdir()
    longer = [row | {"text": " ".join([row["text"]] * 4)} for row in topic_rows(90)]
    for name, rows in (("topics", longer), ("pairs", pair_rows(60)), ("many", multi_rows(60))):
        pl.DataFrame(rows).write_csv(folder / f"{name}.csv")
    return {
        "title": "A tiny study",
        "data": {"topics": {"files": ["topics.csv"], "part": {"train": 40, "test": 8}},
                 "pairs": {"files": ["pairs.csv"], "options": {"text": ["first"], "text_pair": ["second"]},
                           "part": {"train": 24}}},
        "settings": QUICK | {"model.name": str(tiny_bert), "train.epochs": 1, "model.max_length": 48},
        "tables": {"joint": {
            "title": "Together", "data": ["topics", "pairs"], "reference": "plain",
            "rows": {"plain": {"published": 5}, "joint": {"together": "tasks", "published": {"topics": 4}},
                     "joint, then alone": {"together": "alone", "published": {"topics": 3}}},
        }},
    }  # fmt: skip


@pytest.fixture
def spec(values: dict[str, Any], tmp_path: Path) -> Spec:
    return written(values, tmp_path)


def written(values: dict[str, Any], tmp_path: Path) -> Spec:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    return read_spec(str(path))


def wanted(spec: Spec, *, seeds: int = 1, rows: Any = None) -> list[Cell]:
    found = cells(spec, list(spec.tables), seeds=seeds)
    return [cell for cell in found if rows is None or cell.row in rows]


def make(spec: Spec, tmp_path: Path, some: list[Cell], *, out: str = "out", listener: Told | None = None) -> Told:
    listener = listener or Told()
    assert make_cells(
        spec, some, out=tmp_path / out, data=tmp_path / "data", hours=None, listener=listener
    )
    return listener


def done(spec: Spec, cell: Cell, tmp_path: Path, *, out: str = "out") -> Done:
    found = read_cell(spec, cell, tmp_path / out)
    assert found is not None
    return found


def begun(told: Told) -> list[str]:
    """The trainings that were begun, as they were announced."""
    return [text for text in told.said if ": table " in text]


def test_one_training_a_seed_gives_the_cells_of_all_data_and_of_both_rows(spec: Spec, tmp_path: Path) -> None:
    some = wanted(spec, seeds=2)
    told = make(spec, tmp_path, some)

    assert begun(told)[:3] == [
        "1 of 6: table joint, topics, plain, seed 0", "2 of 6: table joint, topics, pairs together, joint, seed 0",
        "3 of 6: table joint, pairs, plain, seed 0",
    ]  # fmt: skip
    assert len(begun(told)) == 6 and len({cell_key(spec, cell) for cell in some}) == len(some) == 12
    assert all(read_cell(spec, cell, tmp_path / "out") for cell in some)
    assert not list((tmp_path / "out/running").iterdir())
    again = make(spec, tmp_path, some)
    assert not again.said and not again.steps


def test_cells_hold_what_a_joint_training_of_the_same_rows_answers(spec: Spec, tmp_path: Path) -> None:
    some = wanted(spec, rows={"joint", "joint, then alone"})
    make(spec, tmp_path, some)
    parts = {
        name: draw_part(name, spec.data[name], out=tmp_path / "out", folder=tmp_path / "data", listener=Told())
        for name in ("topics", "pairs")
    }
    model = {"name": str(spec.settings["model.name"]), "max_length": 48}
    train = {name.removeprefix("train."): spec.settings[name] for name in spec.settings if name.startswith("train.")}
    config = MultiConfig.parse({
        "model": model, "train": train, "check": {"enabled": False}, "then_alone": True,
        "tasks": {name: {"data": part.model_dump(mode="json")} for name, part in parts.items()},
    })  # fmt: skip
    multitask(config, out=tmp_path / "by-hand")

    for cell in some:
        found = done(spec, cell, tmp_path)
        outcome = Outcome.read(tmp_path / "by-hand" / ("alone" if cell.alone else "tasks") / cell.data, "test")
        columns = [f"logit:{label}" for label in found.record["labels"]]
        assert np.array_equal(found.scores.logits, outcome.frame.select(columns).to_numpy().astype(np.float32))
        assert found.record["joint"]["tasks"] == ["topics", "pairs"]
        assert found.record["joint"]["then_alone"] == (cell.row == "joint, then alone")


def test_the_rows_of_a_cell_are_those_of_a_training_alone(spec: Spec, tmp_path: Path) -> None:
    some = wanted(spec)
    make(spec, tmp_path, some)

    for name in BOTH:
        one, *others = (done(spec, cell, tmp_path).scores.truth for cell in some if cell.data == name)
        assert len(others) == 2 and all(np.array_equal(one, other) for other in others)


@pytest.mark.parametrize(("at", "kept"), [(3, 2), (11, 10)])  # of 8 steps together, and 5 and 3 alone
def test_one_that_was_stopped_goes_on_to_the_same_cells(spec: Spec, tmp_path: Path, at: int, kept: int) -> None:
    spec.settings["train.checkpoint_steps"] = 2
    some = wanted(spec, rows={"joint", "joint, then alone"})
    with pytest.raises(Stop):
        make(spec, tmp_path, some, listener=StopAfter(at))
    assert not (tmp_path / "out/cells").exists()
    told = make(spec, tmp_path, some)
    make(spec, tmp_path, some, out="whole")

    assert len(told.steps) == 16 - kept
    for cell in some:
        one, other = (done(spec, cell, tmp_path, out=name) for name in ("out", "whole"))
        assert np.array_equal(one.scores.logits, other.scores.logits)


class StopAfter(Stopper):
    """Ends after so many steps of all trainings."""

    def step(self, step: Any) -> None:
        Told.step(self, step)
        if len(self.steps) == self.at:
            raise Stop


def test_it_counts_as_one_training_when_the_time_is_over(
    spec: Spec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(0, 10**6, 4000))
    monkeypatch.setattr(reproduce_run.time, "monotonic", lambda: float(next(clock)))
    told = Told()
    assert not make_cells(spec, wanted(spec), out=tmp_path, data=tmp_path / "data", hours=1, listener=told)

    assert told.said == ["3 trainings are left; run the same command again to go on."]


def test_nothing_is_trained_further_where_no_row_shows_it(spec: Spec, tmp_path: Path) -> None:
    told = make(spec, tmp_path, wanted(spec, rows={"joint"}))

    assert len(told.steps) == 8 and not any("alone" in text for text in told.said)


def test_a_cell_that_is_there_stays_as_it_is(spec: Spec, tmp_path: Path) -> None:
    some = wanted(spec, rows={"joint"})
    make(spec, tmp_path, some)
    kept, lost = (tmp_path / "out/cells" / f"{cell_key(spec, cell)}.json" for cell in some)
    before = kept.stat().st_mtime_ns
    lost.unlink()
    make(spec, tmp_path, some)

    assert lost.is_file() and kept.stat().st_mtime_ns == before


def test_options_of_the_joint_training_make_another_one(values: dict[str, Any], tmp_path: Path) -> None:
    values["tables"]["joint"]["rows"]["even"] = {"together": "tasks", "joint": {"sampling": "sqrt"}}
    spec = written(values, tmp_path)
    some = wanted(spec, rows={"joint", "even"})
    told = make(spec, tmp_path, some)
    shares = [text for text in told.said if text.startswith("Steps by task")]

    assert len(begun(told)) == len(set(shares)) == 2
    by_row = {cell.row: done(spec, cell, tmp_path).record["joint"]["sampling"] for cell in some}
    assert by_row == {"joint": "proportional", "even": "sqrt"}


def test_it_begins_with_an_encoder_that_is_pretrained_once_on_the_texts_of_all(spec: Spec, tmp_path: Path) -> None:
    small = {"pretrain.max_length": 24, "pretrain.max_steps": 2, "model.name": spec.settings["model.name"]}
    before = {cell_key(spec, cell) for cell in wanted(spec, rows={"joint"})}
    spec.encoders["both"] = Encoder(parts=["topics", "pairs"], settings=small)
    spec.tables["joint"].rows["joint"].encoder = "both"
    some = wanted(spec, seeds=2, rows={"joint"})
    told = make(spec, tmp_path, some)

    assert told.said.count("Pre-training the encoder both.") == 1 and len(begun(told)) == 2
    assert any("Corpus: 64 documents" in text for text in told.said)
    assert not before & {cell_key(spec, cell) for cell in some}


def test_a_share_of_the_rows_is_drawn_of_every_task(spec: Spec, tmp_path: Path) -> None:
    spec.tables["joint"].rows["joint"].settings = {"data.share": 0.5}
    some = wanted(spec, rows={"joint"})
    make(spec, tmp_path, some)

    rows = {cell.data: done(spec, cell, tmp_path).record["train"]["rows"] for cell in some}
    assert rows == {"topics": 20, "pairs": 12}


def test_the_time_is_shared_out_by_tokens_and_the_page_says_so(
    spec: Spec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def timed(*arguments: Any, **options: Any) -> Joint:
        joint = multitask(*arguments, **options)
        joint.metrics["train"] |= {"seconds": 600.0, "tokens_by_task": {"topics": 2000, "pairs": 1000}}
        for name, seconds in (("topics", 300.0), ("pairs", 100.0)):
            joint.metrics["alone"][name]["train"]["seconds"] = seconds
        return joint

    monkeypatch.setattr(reproduce_run, "multitask", timed)
    some = wanted(spec)
    make(spec, tmp_path, some)
    seconds = {(cell.row, cell.data): done(spec, cell, tmp_path).record["seconds"] for cell in some}

    assert (seconds["joint", "topics"], seconds["joint", "pairs"]) == (400, 200)
    assert (seconds["joint, then alone", "topics"], seconds["joint, then alone", "pairs"]) == (700, 300)
    lines = results(spec, some, tmp_path / "out")
    text = markdown(spec, lines, model="tiny", seeds=1)
    assert "| 7 |" in text and "| 12 |" in text
    assert "Minutes of a joint training are shared out by the tokens that it read of each set of data." in text
    del spec.tables["joint"].rows["joint"], spec.tables["joint"].rows["joint, then alone"]
    plain = results(spec, wanted(spec), tmp_path / "out")
    assert "joint training" not in markdown(spec, plain, model="tiny", seeds=1)


def test_published_figures_are_judged_as_those_of_other_rows(spec: Spec, tmp_path: Path) -> None:
    some = wanted(spec, seeds=2)
    make(spec, tmp_path, some)
    reference, joint, _ = (line for line in results(spec, some, tmp_path / "out")["joint"] if line["data"] == "topics")

    assert joint["published"] == 4 and joint["seeds"] == 2 and joint["verdict"] in ("noise", "holds", "does not hold")
    assert joint["difference"] == pytest.approx(joint["value"] - reference["value"])


class TestKeys:
    """Cells are expensive: whatever made them has the same key for ever."""

    def test_a_training_alone_is_known_by_its_data_and_what_is_set_and_nothing_else(self) -> None:
        """Written out here, since cells are made once and kept for years."""
        data = {"files": ["a.csv"], "valid": 0.1, "test": 0.1, "options": {}, "part": {"train": 40}}
        table = {"title": "", "data": ["a"], "reference": "x", "rows": {"x": {"settings": {"train.epochs": 2}}}}
        spec = Spec.model_validate({"title": "", "data": {"a": data | {"note": "n"}}, "tables": {"t": table}})
        machine = {"train": {"threads": 1, "device": "cpu", "seed": 1}}
        [cell] = cells(spec, ["t"], seeds=1, own=partial(Config.updated, values=machine))
        sections = {"model": {}, "train": {"epochs": 2, "seed": 1}, "decide": {}, "pretrain": {}, "data": {}}

        content = json.dumps(["a", data, sections], sort_keys=True)
        assert cell_key(spec, cell) == hashlib.sha256(content.encode()).hexdigest()[:16]
        assert set(Encoder.model_fields) == {"parts", "files", "settings", "start"}  # they are in keys, too, but start
        assert set(Data.model_fields) == {*data, "note"}

    def test_another_table_changes_no_key_of_the_others(self) -> None:
        spec = read_spec("sun2019")
        rest = read_spec("sun2019")
        del rest.tables["multi-task"], rest.encoders["all-three"]
        before, after = (
            {(cell.table, cell.row, cell.data, cell.seed): cell_key(some, cell) for cell in wanted(some, seeds=3)}
            for some in (rest, spec)
        )

        assert len(after) == len(before) + 4 * 3 * 2 and before.items() <= after.items()

    def test_the_reference_of_the_multi_task_table_is_that_of_the_pre_training_table(self) -> None:
        spec = read_spec("sun2019")
        found = wanted(spec, rows={"fine-tuned"})
        one, other = (
            {cell.data: cell_key(spec, cell) for cell in found if cell.table == table}
            for table in ("multi-task", "pre-training")
        )

        assert one["imdb"] == other["imdb"] and all(one[data] == other[data] for data in one.keys() & other.keys())

    def test_figures_and_names_of_joint_rows_are_no_part_of_it_and_the_order_of_the_tasks_is(
        self, values: dict[str, Any], tmp_path: Path
    ) -> None:
        def keys(**table: Any) -> set[str]:
            changed = values | {"tables": {"joint": values["tables"]["joint"] | table}}
            spec = written(changed, tmp_path)
            return {cell_key(spec, cell) for cell in wanted(spec) if cell.joint}

        before = keys()
        rows = {"plain": {}, "other name": {"together": "alone"}, "joint": {"together": "tasks"}}
        assert len(before) == 4 and keys(rows=rows) == before
        assert not keys(data=["pairs", "topics"]) & before
        assert not keys(settings={"train.epochs": 2}) & before


class TestRefusals:
    @pytest.mark.parametrize(
        ("row", "table", "said"),
        [
            ({"together": "tasks"}, {"data": ["topics"]},
             "together takes two sets of data or more, and the table has topics"),
            ({"together": "both"}, {},
             "'tables.joint.rows.joint.together' cannot be 'both': input should be 'tasks' or 'alone'"),
            ({"together": "tasks", "only": ["topics"]}, {},
             "only: a joint training is of all data of its table, topics, pairs; leave only out"),
            ({"joint": {"sampling": "sqrt"}}, {}, "joint has no effect without together"),
            ({"together": "tasks", "joint": {"then_alone": True}}, {},
             "joint: 'then_alone' is not one of its options, sampling, temperature, uncertainty"),
            ({"together": "tasks", "encoder": "{data}-own"}, {},
             "encoder '{data}-own': a joint training begins with one for all data; name one without {data}"),
            ({"together": "tasks", "encoder": "own"}, {}, "'own' is not one of the encoders"),
        ],
    )  # fmt: skip
    def test_a_row_that_its_table_cannot_have_is_one_sentence(
        self, values: dict[str, Any], tmp_path: Path, row: dict[str, Any], table: dict[str, Any], said: str
    ) -> None:
        values["tables"]["joint"] |= table
        values["tables"]["joint"]["rows"] = {"plain": {}, "joint": row}
        with pytest.raises(ConfigError) as caught:
            written(values, tmp_path)

        text = str(caught.value)
        assert said in text and "\n" not in text and len(text) < len(str(tmp_path)) + 200 and "{'" not in text

    @pytest.mark.parametrize(
        ("row", "said"),
        [
            ({"joint": {"sampling": "root"}},
             "'sampling' cannot be 'root': input should be 'proportional', 'sqrt' or 'temperature'"),
            ({"joint": {"temperature": 4}}, "temperature 4 needs sampling temperature"),
            ({"settings": {"train.metric": "accuracy"}}, "train.metric accuracy: not in a joint training"),
            ({"settings": {"model.lora": 4}}, "model.lora 4: not in a joint training"),
            ({"settings": {"model.long_text": "auto"}}, "tasks.topics: long_text auto"),
        ],
    )  # fmt: skip
    def test_options_that_no_joint_training_has_are_refused_before_any_training(
        self, values: dict[str, Any], tmp_path: Path, row: dict[str, Any], said: str
    ) -> None:
        values["tables"]["joint"]["rows"]["joint"] = {"together": "tasks"} | row
        written(values, tmp_path)
        failed = shell(
            "reproduce", tmp_path / "tiny.yaml", "--data", tmp_path / "data", "--out", tmp_path / "out"
        )

        assert failed.code == 2 and f"tiny, table joint, joint: {said}" in " ".join(failed.err.split())
        assert not (tmp_path / "out").exists()

    def test_a_unit_that_one_of_the_tasks_does_not_have_is_refused_before_its_training(
        self, values: dict[str, Any], tmp_path: Path
    ) -> None:
        values["data"]["many"] = {"files": ["many.csv"], "options": {"text": ["text"]}}
        values["tables"]["joint"] |= {"data": ["topics", "many"]}
        spec, told = written(values, tmp_path), Told()
        with pytest.raises(ConfigError, match="table joint: 'error' cannot be measured on many, which is multi-label"):
            make(spec, tmp_path, wanted(spec, rows={"joint"}), listener=told)
        assert not told.steps
        values["tables"]["joint"] |= {"unit": "macro_f1"}
        spec = written(values, tmp_path)
        make(spec, tmp_path, wanted(spec, rows={"joint"}))


def test_the_command_makes_the_table_and_writes_it_again_without_training(spec: Spec, tmp_path: Path) -> None:
    arguments = ["reproduce", tmp_path / "tiny.yaml", "--table", "joint", "--seeds", "1", "--out", tmp_path / "out"]
    first = shell(*arguments, "--data", tmp_path / "data")
    again = shell(*arguments, "--no-train", "--json")

    assert first.code == again.code == 0, first.err + again.err
    assert "| topics | joint, then alone | 3.00 |" in first.out and "2 of 3: table joint" in first.err
    assert [line["seeds"] for line in again.json["tables"]["joint"]] == [1] * 6
