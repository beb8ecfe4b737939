"""Reproductions: every training once, tables that say what our intervals say, recipes that are checked before work."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml

from bertune.config import Config
from bertune.errors import ConfigError
from bertune.evaluate.resample import Scores, differences
from bertune.evaluate.seeds import SeedVariance, interval_over_seeds, seed_differences, seed_variance
from bertune.reproduce import run as reproduce_run
from bertune.reproduce.keep import cell_key, read_cell, training_key
from bertune.reproduce.run import draw_part, make_cells
from bertune.reproduce.spec import Encoder, Spec, cells, known_specs, read_spec
from bertune.reproduce.tables import markdown, results, verdict
from bertune.training.run import run
from shell import bertune as shell
from shell import call
from technique_runs import Stop, Stopper
from tiny_runs import QUICK, Told, multi_rows, topic_rows

pytestmark = pytest.mark.usefixtures("one_thread", "no_pictures")


@pytest.fixture
def spec(tmp_path: Path, tiny_bert: Path) -> Spec:
    """Two ways on two small sets of data, which lie in tmp_path/data."""
    folder = tmp_path / "data"
    folder.mkdir()
    pl.DataFrame(topic_rows(90)).write_csv(folder / "topics.csv")
    pl.DataFrame(multi_rows(60)).write_csv(folder / "many.csv")
    values = {
        "title": "A <tiny> study",
        "data": {
            "topics": {"files": ["topics.csv"], "part": {"train": 40, "test": 8}, "note": "a part"},
            "many": {"files": ["many.csv"], "options": {"text": ["text"]}},
        },
        "settings": QUICK | {"model.name": str(tiny_bert), "train.epochs": 1},
        "tables": {
            "ways": {
                "title": "Ways", "data": ["topics"], "reference": "plain",
                "rows": {"plain": {"published": 5.0}, "mean": {"settings": {"model.pooling": "mean"}, "published": 6}},
            },
            "others": {
                "title": "Others", "data": ["many"], "reference": "plain", "unit": "micro_f1",
                "rows": {"plain": {}, "frozen": {"settings": {"model.freeze": "encoder"}}},
            },
        },
    }  # fmt: skip
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    return read_spec(str(path))


def make(spec: Spec, tmp_path: Path, *, seeds: int = 1, told: Told | None = None, tables: Any = None) -> list[Any]:
    wanted = list(cells(spec, tables or list(spec.tables), seeds=seeds))
    make_cells(spec, wanted, out=tmp_path / "out", data=tmp_path / "data", hours=None, listener=told or Told())
    return wanted


class TestRecipes:
    @pytest.mark.parametrize("name", known_specs())
    def test_installed_recipes_ask_for_trainings_that_exist(self, name: str) -> None:
        spec = read_spec(name)

        assert spec.name == name and spec.source
        known: dict[str, Any] = {}
        for cell in cells(spec, list(spec.tables), seeds=1):
            assert known.setdefault(cell_key(spec, cell), cell.config) == cell.config  # nothing is taken for another

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ({"data": ["x"]}, "'x' is not one of"), ({"reference": "b"}, "reference 'b' is not"),
            ({"unit": "kg"}, "unit 'kg'"), ({"speed": 3}, "'tables.t.speed' is not an option"),
            ({"rows": {"a": {"against": "b"}}}, r"a: against: 'b' is not one of the table's rows, a\."),
            ({"rows": {"a": {"against": "a"}}}, "a: against: 'a' is the row itself"),
            ({"title": ...}, "'tables.t.title' is missing"),
            ({"rows": {"a": {"encoder": "e {x}"}}, "data": ["d"]}, "'e {x}' is not one of the encoders"),
            ({"rows": {"a": {"only": ["e"]}}, "data": ["d"]}, "t, a: only: 'e' is not one of the table's data, d"),
            ({"rows": {"a": {"published": {"e": 1}}}}, "t, a: published: 'e' is not one of the table's data, none"),
            ({"rows": {"a": {"settings": {"data.text": ["x"]}}}}, "data.text says what the rows are; write it under"),
            ({"settings": {"train.seed": 1}}, "table t: settings: train.seed changes with every seed"),
        ],
    )  # fmt: skip
    def test_a_recipe_that_is_wrong_is_refused_in_a_sentence(
        self, tmp_path: Path, change: dict[str, Any], said: str
    ) -> None:
        path = tmp_path / "wrong.yaml"
        table = {"title": "", "data": [], "reference": "a", "rows": {"a": {}}} | change
        table = {name: value for name, value in table.items() if value is not ...}
        values = {"title": "t", "data": {"d": {"files": []}}, "tables": {"t": table}}
        path.write_text(yaml.safe_dump(values), encoding="utf-8")
        with pytest.raises(ConfigError, match=said):
            read_spec(str(path))

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ({"encoders": {"e": {"parts": ["x"]}}}, "encoder e: 'x' is not one of the data, topics, many"),
            ({"encoders": {"e": {"settings": {}}}}, "encoder e: has no texts to learn from; name parts or files"),
            ({"encoders": {"e": {"start": "e"}}}, "encoder e: start: 'e' is not one of .* above it, of which"),
            ({"encoders": {"e": {"files": ["a"]}, "f": {"start": "x"}}},
             "encoder f: start: 'x' is not one of .* above it, e"),
            ({"encoders": {"e": {"files": ["a"]}, "f": {"start": "e", "settings": {"pretrain.from_scratch": "mini"}}}},
             "encoder f: start says what it begins with, and so does pretrain.from_scratch"),
            ({"encoders": {"e/f": {"files": ["a"]}}}, "'e/f' is part of a file's name, too"),
            ({"data": {"topics": {"files": [], "part": {"vaild": 3}}}}, "vaild"), ({"tables": {}}, "tables"),
            ({"data": {"topics": {"files": [], "test": None}}}, "test"),
            ({"settings": {"train.seed": 3}}, "settings: train.seed changes with every seed"),
        ],
    )  # fmt: skip
    def test_so_is_one_whose_data_or_encoders_are_wrong(self, spec: Spec, change: dict[str, Any], said: str) -> None:
        with pytest.raises(ValueError, match=said):
            Spec.model_validate(spec.model_dump() | change)

    def test_a_setting_that_is_none_is_named_with_its_place(self, spec: Spec) -> None:
        spec.tables["ways"].rows["mean"].settings["model.poling"] = "mean"
        with pytest.raises(ConfigError, match=r"tiny, table ways, mean: 'model.poling' is not an option"):
            list(cells(spec, ["ways"], seeds=1))

    def test_an_encoder_that_is_not_described_is_refused(self, spec: Spec) -> None:
        values = spec.model_dump()
        values["tables"]["ways"]["rows"]["mean"]["encoder"] = "{data}-within"
        with pytest.raises(ValueError, match="'topics-within' is not one of the encoders"):
            Spec.model_validate(values)

    def test_an_unknown_name_is_answered_with_the_nearest(self) -> None:
        with pytest.raises(ConfigError, match="sun2019"):
            read_spec("sun2018")


STUDIES = sorted((Path(__file__).parents[1] / "benchmarks").glob("*.yaml"))


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_study_of_the_benchmarks_is_whole(path: Path) -> None:
    spec = read_spec(str(path))
    assert len({(cell.table, cell.data, cell.row) for cell in cells(spec, list(spec.tables), seeds=1)}) > 1


class TestTrainings:
    def test_each_is_made_once_and_only_its_answers_are_kept(self, spec: Spec, tmp_path: Path) -> None:
        wanted = make(spec, tmp_path, seeds=2)
        told = Told()
        (tmp_path / "out/running" / training_key(spec, wanted[0])).mkdir()  # a stop came before it was removed
        make(spec, tmp_path, seeds=2, told=told)

        assert not told.said and not told.steps
        assert len(list((tmp_path / "out/cells").glob("*.json"))) == len(wanted) == 8
        assert not list((tmp_path / "out/running").iterdir())
        record = json.loads(next((tmp_path / "out/cells").glob("*.json")).read_text(encoding="utf-8"))
        assert record["test"]["rows"] > 0 and str(tmp_path / "data") not in json.dumps(record)

    def test_one_that_was_stopped_goes_on(
        self, spec: Spec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        spec.settings["train.checkpoint_steps"] = 2
        wanted = list(cells(spec, ["ways"], seeds=1))
        options: dict[str, Any] = {"out": tmp_path / "out", "data": tmp_path / "data", "hours": None}
        with pytest.raises(Stop):
            make_cells(spec, wanted, listener=Stopper(4), **options)
        told = Told()
        monkeypatch.chdir(tmp_path)
        options["out"] = Path("out")  # another name of the same folder
        spec.settings |= {"train.threads": 2, "train.measure_precision": "auto"}  # of the machine: it goes on as begun
        assert make_cells(spec, list(cells(spec, ["ways"], seeds=1))[:1], listener=told, **options)
        assert "Resumed after step 2 of 5." in told.said
        spec.settings |= {"train.threads": 1, "train.measure_precision": "fp32"}
        assert make_cells(spec, wanted, listener=Told(), **options)

        whole = list(cells(spec, ["ways"], seeds=1))
        make_cells(spec, whole, listener=Told(), **options | {"out": tmp_path / "whole"})
        for cell in whole:
            one, other = (read_cell(spec, cell, tmp_path / name) for name in ("out", "whole"))
            assert one is not None and other is not None and np.array_equal(one.scores.logits, other.scores.logits)

    def test_what_was_trained_before_a_stop_counts_in_its_time(
        self, spec: Spec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def resumed(*given: Any, **how: Any) -> Any:
            result = run(*given, **how)
            result.metrics["train"]["seconds"] += 3600.0  # of an earlier go
            return result

        monkeypatch.setattr(reproduce_run, "run", resumed)
        cell = next(cells(spec, ["ways"], seeds=1))
        make_cells(spec, [cell], out=tmp_path / "out", data=tmp_path / "data", hours=None, listener=Told())
        done = read_cell(spec, cell, tmp_path / "out")
        assert done is not None and done.record["seconds"] > 3600

    def test_no_training_begins_when_the_time_is_over(
        self, spec: Spec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        clock = iter(range(0, 10**6, 4000))
        monkeypatch.setattr(reproduce_run.time, "monotonic", lambda: float(next(clock)))
        told = Told()
        wanted = list(cells(spec, ["ways"], seeds=1))
        done = make_cells(spec, wanted, out=tmp_path, data=tmp_path / "data", hours=1, listener=told)

        assert not done and told.said[-1] == "2 trainings are left; run the same command again to go on."

    def test_all_of_them_see_the_same_rows_and_validation_rows_are_no_test_rows(
        self, spec: Spec, tmp_path: Path
    ) -> None:
        parts = [
            draw_part("topics", spec.data["topics"], out=tmp_path / name, folder=tmp_path / "data", listener=Told())
            for name in ("a", "b")
        ]
        frames = [pl.read_parquet(path) for path in (*parts[0].files, parts[0].valid, parts[0].test)]

        assert [len(frame) for frame in frames] == [40, 9, 8]
        assert frames[0].equals(pl.read_parquet(parts[1].files[0]))
        texts = pl.concat(frames)["text 0"].to_list()
        known = {row["text"] for row in topic_rows(90)}
        assert set(texts) <= known and len(texts) == 57

    def test_an_encoder_is_pretrained_once_for_all_seeds_on_training_texts_alone(
        self, spec: Spec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        small = {"pretrain.max_length": 24, "pretrain.max_steps": 2, "model.name": spec.settings["model.name"]}
        spec.encoders["topics-within"] = Encoder(parts=["topics"], settings=small)
        spec.tables["ways"].rows["mean"].encoder = "{data}-within"
        told = Told()
        wanted = make(spec, tmp_path, seeds=2, told=told, tables=["ways"])

        assert told.said.count("Pre-training the encoder topics-within.") == 1
        [folder] = (tmp_path / "out/encoders").iterdir()
        assert (folder / "run/pretrained.json").is_file()
        assert any("Corpus: 40 documents" in text for text in told.said)
        assert len({cell_key(spec, cell) for cell in wanted}) == 4
        before = cell_key(spec, wanted[1])
        spec.encoders["topics-within"].settings["pretrain.max_steps"] = 3
        assert cell_key(spec, list(cells(spec, ["ways"], seeds=1))[1]) != before

    def test_one_whose_encoder_was_stopped_goes_on_however_the_folders_are_named(
        self, spec: Spec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        small = {"pretrain.max_length": 24, "pretrain.max_steps": 4, "model.name": spec.settings["model.name"]}
        spec.encoders["many"] = Encoder(files=["many.csv"], settings=small | {"train.checkpoint_steps": 2})
        spec.tables["ways"].rows["mean"].encoder = "many"
        wanted, options = list(cells(spec, ["ways"], seeds=1))[1:], {"hours": None}
        monkeypatch.chdir(tmp_path)
        with pytest.raises(Stop):
            make_cells(spec, wanted, out=Path("out"), data=Path("data"), listener=Stopper(3), **options)
        told = Told()
        assert make_cells(spec, wanted, out=tmp_path / "out", data=tmp_path / "data", listener=told, **options)
        assert "Resumed after step 2 of 4." in told.said

    def test_encoders_that_are_made_alike_are_made_once(self, spec: Spec, tmp_path: Path) -> None:
        small = {"pretrain.max_length": 24, "pretrain.max_steps": 1, "model.name": spec.settings["model.name"]}
        for data in ("topics", "many"):
            spec.encoders[f"{data}-cross"] = Encoder(files=["many.csv"], settings=small)
        spec.tables["ways"].rows["mean"].encoder = spec.tables["others"].rows["frozen"].encoder = "{data}-cross"
        told = Told()
        make(spec, tmp_path, told=told)

        assert len([said for said in told.said if said.startswith("Pre-training the encoder")]) == 1
        assert len(list((tmp_path / "out/encoders").iterdir())) == 1

    def test_an_encoder_may_go_on_from_another_one(self, spec: Spec, tmp_path: Path) -> None:
        small = {"pretrain.max_length": 24, "pretrain.max_steps": 1}
        scratch = {"pretrain.from_scratch": "mini", "pretrain.layers": 1, "pretrain.vocab_size": 100}
        spec.encoders["own"] = Encoder(files=["many.csv"], settings=small | scratch)
        spec.encoders["further"] = Encoder(start="own", parts=["topics"], settings=small)
        spec.tables["ways"].rows["plain"].encoder, spec.tables["ways"].rows["mean"].encoder = "own", "further"
        spec.settings.pop("model.name")
        told = Told()
        wanted = make(spec, tmp_path, told=told, tables=["ways"])

        assert [said for said in told.said if said.startswith("Pre-training the")] == [
            "Pre-training the encoder own.", "Pre-training the encoder further."
        ]  # fmt: skip
        own, further = sorted((tmp_path / "out/encoders").iterdir(), reverse=True)
        assert (further / "tokenizer.json").read_bytes() == (own / "tokenizer.json").read_bytes()
        config = yaml.safe_load((further / "run/config.yaml").read_text(encoding="utf-8"))
        assert config["model"]["name"] == str(own)
        assert all(read_cell(spec, cell, tmp_path / "out") for cell in wanted)
        [_, (_, stage)] = wanted[1].encoder
        other = list(cells(spec, ["ways"], seeds=1, own=partial(Config.updated, values={"model": {"name": "bert"}})))
        assert other[1].encoder[1][1] == stage and other[0].encoder[0][1].model.name == "mini"  # not for --model
        before = cell_key(spec, wanted[1])
        spec.encoders["own"].settings["pretrain.max_steps"] = 2
        assert cell_key(spec, list(cells(spec, ["ways"], seeds=1))[1]) != before

    def test_what_a_caller_says_of_the_machine_is_for_pre_trainings_too(self, spec: Spec) -> None:
        spec.encoders["own"] = Encoder(files=["many.csv"])
        spec.tables["ways"].rows["mean"].encoder = "own"
        machine = {"checkpoint_minutes": 1, "checkpoint_steps": 7, "compile": "no", "threads": 3}
        own = partial(Config.updated, values={"train": machine})
        cell = list(cells(spec, ["ways"], seeds=1, own=own))[1]

        assert machine.items() <= cell.encoder[0][1].train.model_dump().items()

    def test_a_table_may_ask_for_fewer_seeds(self, spec: Spec) -> None:
        spec.tables["ways"].seeds = 1
        own = partial(Config.updated, values={"train": {"seed": 5}})
        found = [(cell.table, cell.seed) for cell in cells(spec, ["ways", "others"], seeds=2, own=own)]

        assert found == [("ways", 5)] * 2 + [("others", 5)] * 2 + [("others", 6)] * 2

    def test_threads_make_no_other_cell_and_precision_does(self, spec: Spec) -> None:
        owns = [
            partial(Config.updated, values={"train": machine})
            for machine in (
                {"checkpoint_minutes": 5}, {"checkpoint_minutes": 1, "measure_precision": "bf16"}, {"clip": None}
            )
        ]
        keys = [cell_key(spec, next(cells(spec, ["others"], seeds=1, own=own))) for own in owns]

        assert keys[0] == keys[1] != keys[2]

    def test_what_a_caller_sets_is_laid_over_the_study_and_its_tables_and_below_the_rows(self, spec: Spec) -> None:
        spec.tables["ways"].settings = {"train.batch_size": 16, "model.pooling": "max", "train.warmup": 0.5}
        own = partial(Config.updated, values={"train": {"epochs": 2, "batch_size": 8}, "model": {"pooling": "auto"}})
        plain, mean = (cell.config for cell in cells(spec, ["ways"], seeds=1, own=own))

        assert (plain.train.epochs, plain.train.batch_size, plain.train.warmup) == (2, 8, 0.5)
        assert (plain.model.pooling, mean.model.pooling) == ("auto", "mean")

    @pytest.mark.parametrize(("change", "kept"), [({}, True), ({"new": None}, True), ({"warmup": 0.5}, False)])
    def test_a_cell_outlives_new_options_but_not_another_default(
        self, spec: Spec, tmp_path: Path, change: dict[str, Any], kept: bool
    ) -> None:
        """change: options that the program had of another value, or (None) did not have when the cell was made."""
        [cell] = [cell for cell in make(spec, tmp_path, tables=["others"]) if cell.row == "plain"]
        [path] = [path for path in (tmp_path / "out/cells").glob("*.json") if path.stem == cell_key(spec, cell)]
        record = json.loads(path.read_text(encoding="utf-8"))
        if "new" in change:
            del record["config"]["train"]["clip"]
        record["config"]["train"] |= {name: value for name, value in change.items() if value is not None}
        path.write_text(json.dumps(record), encoding="utf-8")

        assert (read_cell(spec, cell, tmp_path / "out") is not None) == kept

    def test_a_share_of_the_rows_is_drawn_with_the_seed(self, spec: Spec, tmp_path: Path) -> None:
        spec.tables["ways"].rows["mean"].settings = {"data.share": 0.5}
        wanted = make(spec, tmp_path, seeds=2, tables=["ways"])
        rows = {}
        for cell in wanted:
            done = read_cell(spec, cell, tmp_path / "out")
            assert done is not None
            rows[cell.row, cell.seed] = done.record["train"]["rows"], done.record["config"]["data"]["share_seed"]

        assert rows == {("plain", 0): (40, 0), ("mean", 0): (20, 0), ("plain", 1): (40, 0), ("mean", 1): (20, 1)}

    def test_data_that_is_not_there_is_named_before_the_first_training(self, spec: Spec, tmp_path: Path) -> None:
        (tmp_path / "data" / "many.csv").unlink()  # of the second table
        told = Told()
        with pytest.raises(ConfigError, match=r"many.csv: no such file. Pass the folder .* with --data"):
            make(spec, tmp_path, told=told)
        assert not told.said and not (tmp_path / "out").exists()

    def test_a_file_of_an_encoder_that_is_not_there_is_named_before_the_first_training(
        self, spec: Spec, tmp_path: Path
    ) -> None:
        values = spec.model_dump() | {"encoders": {"more": {"files": ["more.txt", "most.txt"]}}}
        values["tables"]["others"]["rows"]["frozen"]["encoder"] = "more"
        with pytest.raises(ConfigError, match=r"more.txt: no such file \(and 1 more\)"):
            make(Spec.model_validate(values), tmp_path)
        assert not (tmp_path / "out").exists()

    def test_an_option_of_data_that_is_none_is_named_with_its_place(self, spec: Spec, tmp_path: Path) -> None:
        spec.data["topics"].options["txet"] = ["text"]
        with pytest.raises(ConfigError, match=r"data topics: 'data.txet' is not an option"):
            make(spec, tmp_path)


class TestTables:
    @pytest.mark.parametrize(
        ("gap", "low", "high", "said"),
        [
            (-0.2, -0.5, 0.1, "noise"), (-0.2, -0.5, -0.1, "holds"), (-0.2, 0.1, 0.5, "does not hold"),
            (0.3, 0.1, 0.5, "holds"), (None, 0.1, 0.5, "worse"), (None, -0.5, -0.1, "better"),
            (0.0, 0.1, 0.5, "worse"),
        ],
    )  # fmt: skip
    def test_a_finding_holds_where_our_interval_lies_on_the_published_side(
        self, gap: float | None, low: float, high: float, said: str
    ) -> None:
        assert verdict(gap, low, high, lower_is_better=True) == said

    def test_lines_hold_means_over_seeds_and_paired_differences_in_the_unit_of_the_table(
        self, spec: Spec, tmp_path: Path
    ) -> None:
        wanted = make(spec, tmp_path, seeds=2)
        found = results(spec, wanted, tmp_path / "out")
        reference, other = found["ways"]

        errors = {}
        for cell in wanted:
            done = read_cell(spec, cell, tmp_path / "out")
            assert done is not None
            if cell.table == "ways":
                errors.setdefault(cell.row, []).append(100 * (1 - done.scores.right.mean()))
        assert reference["value"] == pytest.approx(np.mean(errors["plain"])) and reference["verdict"] is None
        assert other["difference"] == pytest.approx(np.mean(errors["mean"]) - np.mean(errors["plain"]))
        assert other["low"] <= other["difference"] <= other["high"]
        assert other["sd"] == pytest.approx(np.std(errors["mean"], ddof=1)) and other["seeds"] == 2
        text = markdown(spec, found, model="tiny", seeds=2)
        assert "## ways: Ways" in text and "- topics: a part" in text and "published, error, %" in text

    def test_a_row_may_be_compared_with_another_one_than_the_reference(self, spec: Spec, tmp_path: Path) -> None:
        wanted = make(spec, tmp_path)
        table = spec.tables["ways"]
        table.rows["as well"] = table.rows["plain"].model_copy(update={"against": "mean", "published": 7.5})
        wanted = list(cells(spec, ["ways"], seeds=1))
        plain, mean, other = results(spec, wanted, tmp_path / "out")["ways"]

        assert (mean["against"], other["against"]) == ("plain", "mean")
        assert other["value"] == plain["value"]  # the same training, which is not made again
        assert other["difference"] == pytest.approx(-mean["difference"])
        text = markdown(spec, {"ways": [plain, mean, other]}, model="tiny", seeds=1)
        assert "against another row" in text and " to mean |" in text and " to plain |" in text

    def test_what_is_not_there_yet_is_left_open(self, spec: Spec, tmp_path: Path) -> None:
        wanted = list(cells(spec, list(spec.tables), seeds=1))
        found = results(spec, wanted, tmp_path)

        assert found["ways"][1] | {"published": 6.0, "seeds": 0, "value": None} == found["ways"][1]
        assert "| mean | 6.00 |   | 0 |" in markdown(spec, found, model="tiny", seeds=1)

    def test_differences_over_one_seed_are_those_of_its_rows(self) -> None:
        random = np.random.default_rng(0)
        truth = random.integers(0, 3, 200)
        one, other = (Scores("single", random.normal(size=(200, 3)), truth) for _ in range(2))
        wanted = differences(one, other, ["accuracy"])["accuracy"]

        assert seed_differences("accuracy", [one], [other]) == pytest.approx(
            (wanted["difference"], wanted["low"], wanted["high"])
        )

    @pytest.mark.parametrize("seeds", [2, 3, 5])
    @pytest.mark.parametrize("rows", [0.0, 0.5, 1.0, 3.0])
    def test_the_interval_over_few_seeds_holds_the_truth_as_often_as_it_says(self, seeds: int, rows: float) -> None:
        random = np.random.default_rng(0)
        held, times = 0, 1500
        for _ in range(times):  # seeds vary by 1, rows by `rows` for all seeds alike; the truth is 0
            low, high = interval_over_seeds(random.normal(size=seeds) + rows * random.normal(), rows**2, 1000)
            held += low <= 0 <= high

        assert held / times > 0.89  # .9 to .98; drawn anew from themselves, two seeds hold it in .6

    @pytest.mark.parametrize("ways", [3, 12])
    @pytest.mark.parametrize("odd", [1.0, 4.0])
    def test_what_all_ways_tell_of_seeds_is_sharper_and_holds_as_often(self, ways: int, odd: float) -> None:
        random = np.random.default_rng(0)
        spread = np.r_[1.0, odd, np.ones(ways - 2)][:, None]
        held, lengths, times = np.zeros(2), np.zeros((2, 1500)), 1500
        for turn in range(times):  # a seed does something to all ways, and something to each; the truth is 0
            values = spread * random.normal(size=(ways, 2)) + random.normal(size=2)
            pooled = seed_variance({way: dict(enumerate(of)) for way, of in enumerate(values)})
            for place, known in enumerate((None, pooled)):
                low, high = interval_over_seeds(values[1] - values[0], 0.1, 1000, pooled=known)
                held[place] += low <= 0 <= high
                lengths[place, turn] = high - low

        alone, together = held / times
        assert together > (0.92 if odd == 1 else 0.84) and together > alone - 0.03
        assert np.median(lengths[1]) < np.median(lengths[0])

    def test_a_variance_of_seeds_is_what_ways_and_seeds_leave(self) -> None:
        found = seed_variance({"a": {0: 1.0, 1: 3.0}, "b": {0: 2.0, 1: 6.0}, "c": {1: 9.0}})
        assert found is not None and found.freedom == 1 and found.variance == pytest.approx(1.0)
        shifted = seed_variance({"a": {0: 1.0, 1: 3.0}, "b": {0: 2.0, 1: 4.0}})
        assert shifted is not None and shifted.variance == pytest.approx(0)
        assert seed_variance({"a": {0: 1.0}, "b": {0: 2.0}}) is None and seed_variance({}) is None
        assert seed_variance({"a": {0: 1.0, 1: math.nan}, "b": {0: 2.0, 1: 5.0}}) is None

    def test_one_seed_takes_the_variance_of_others(self) -> None:
        low, high = interval_over_seeds(np.array([1.0]), 0.0, 1000, pooled=SeedVariance(0.5, 10))
        assert (low + high) / 2 == pytest.approx(1) and (high - low) / 2 == pytest.approx(2.228, abs=1e-3)
        with pytest.raises(ValueError, match="one seed does not tell"):
            interval_over_seeds(np.array([1.0]), 0.0, 1000)

    def test_an_undefined_metric_has_no_verdict_but_noise(self) -> None:
        truth = np.zeros(20, np.int64)
        pair = [Scores("single", np.random.default_rng(seed).normal(size=(20, 2)), truth) for seed in (0, 1)]
        for count in (1, 2):
            found = seed_differences("roc_auc_macro", pair[:count], pair[:count][::-1])
            assert np.isnan(found).all() and verdict(-1.0, *found[1:], lower_is_better=True) == "noise"

    def test_seeds_that_differ_widen_the_interval(self) -> None:
        truth = np.zeros(400, np.int64)

        def scores(wrong: int) -> Scores:
            logits = np.tile([1.0, 0.0], (400, 1))
            logits[:wrong] = [0.0, 1.0]
            return Scores("single", logits, truth)

        same, apart = ([scores(wrong) for wrong in many] for many in ([40, 40], [0, 80]))
        plain = [scores(0), scores(0)]
        narrow, wide = (seed_differences("accuracy", side, plain) for side in (same, apart))

        assert narrow[0] == pytest.approx(wide[0])
        assert wide[2] - wide[1] > 2 * (narrow[2] - narrow[1])


class TestCommand:
    def test_it_does_not_write_among_files_of_others(self, spec: Spec, tmp_path: Path) -> None:
        (tmp_path / "tiny.md").write_text("mine", encoding="utf-8")
        done = shell("reproduce", tmp_path / "tiny.yaml", "--data", tmp_path / "data", "--out", tmp_path)

        assert done.code == 2 and "and no reproduction. Choose another one." in done.err
        assert (tmp_path / "tiny.md").read_text(encoding="utf-8") == "mine"

    def test_it_trains_writes_the_tables_and_has_nothing_to_do_the_next_time(
        self, spec: Spec, tmp_path: Path
    ) -> None:
        arguments = ["reproduce", tmp_path / "tiny.yaml", "--data", tmp_path / "data", "--out", tmp_path / "out",
                     "--table", "ways", "--seeds", "1"]  # fmt: skip
        done = shell(*arguments)
        again = shell(*arguments, "--json")

        assert done.code == again.code == 0, done.err + again.err
        assert "## ways: Ways" in done.out and (tmp_path / "out/tiny.md").read_text(encoding="utf-8") in done.out
        assert again.json["tables"]["ways"][0]["seeds"] == 1
        assert "1 of 2" in done.err and "1 of 2" not in again.err

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["sun2018"], "did you mean 'sun2019'"), (["sun2019", "--table", "layer"], "did you mean 'layers'"),
            (["sun2019", "--seeds", "0"], "--seeds 0: takes at least 1"),
            (["sun2019", "--no-train"], "holds no trainings of a reproduction yet"),
            (["sun2019", "--set", "data.text=x"], "has no effect here"),
            (["sun2019", "--data", "nowhere"], "train.jsonl.gz: no such file"),
        ],
    )  # fmt: skip
    def test_what_is_wrong_ends_with_2_and_a_sentence(self, tmp_path: Path, arguments: list[str], said: str) -> None:
        done = call("reproduce", *arguments, "--out", tmp_path / "out")

        assert done.code == 2 and said in done.err

    def test_a_folder_of_something_else_is_not_written_into(self, tmp_path: Path) -> None:
        (tmp_path / "out" / "run").mkdir(parents=True)
        done = call("reproduce", "sun2019", "--out", tmp_path / "out")

        assert done.code == 2 and "out: the folder holds run, and no reproduction. Choose another one." in done.err
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["run"]
