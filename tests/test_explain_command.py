"""The command `explain`, its page fragment, and the nearest training rows, which are the rows trained on."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

import bertune
from bertune.data.cache import cache_entries
from bertune.doctor.plan import Entry, digest
from bertune.errors import DataError
from bertune.explain.explanation import Explanation, Neighbor, Word
from bertune.explain.markup import fragment
from bertune.explain.nearest import most_similar
from bertune.ship.predict import Predictor
from explained_runs import SETTINGS, alone
from shell import call, write_rows
from tiny_runs import topic_rows

pytest.importorskip("captum")
pytestmark = pytest.mark.usefixtures("one_thread")


class TestNeighbors:
    def test_a_training_row_is_its_own_nearest(self, runs: Path, single: Predictor) -> None:
        row = next(near for near in alone(single, "a bird", neighbors=1).neighbors)
        (found,) = single.explain([row.texts[0]])
        assert [len(found.neighbors), found.neighbors[0].texts] == [3, row.texts]
        assert found.neighbors[0].similarity == pytest.approx(1, abs=1e-5)
        similar = [near.similarity for near in found.neighbors]
        assert similar == sorted(similar, reverse=True)
        line = (runs / "single.csv").read_text(encoding="utf-8").splitlines()[found.neighbors[0].row]
        assert line == f"{row.texts[0]},{found.neighbors[0].labels[0]}"

    def test_only_rows_that_were_trained_on_are_among_them(self, runs: Path, pair: Predictor) -> None:
        splits = (runs / "pair" / "run" / "splits.csv").read_text(encoding="utf-8").splitlines()
        trained = {int(line.rpartition(",")[2]) for line in splits if line.startswith("train,")}
        found = alone(pair, ("the cat", "a dog"), neighbors=1000)
        assert {near.row for near in found.neighbors} == trained
        assert {len(near.texts) for near in found.neighbors} == {2}

    def test_their_states_are_kept_in_the_cache(self, runs: Path, empty_cache: None) -> None:
        first = alone(bertune.load(runs / "single", threads=1), "a bird", neighbors=3)
        (entry,) = (entry for entry in cache_entries() if entry.kind == "states")
        # The same again comes from there, so that what lies there is what is shown.
        again = alone(bertune.load(runs / "single", threads=1), "a bird", neighbors=3)
        assert again.neighbors == first.neighbors
        assert [found.path for found in cache_entries() if found.kind == "states"] == [entry.path]

    def test_equal_ones_stand_in_the_order_of_the_rows(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("bertune.explain.nearest._BLOCK", 3)
        known = np.array([[0, 1], [1, 0], [1, 0], [0.6, 0.8], [1, 0]], np.float32)
        rows, similar = most_similar(np.array([[1, 0], [0, 1]], np.float32), known, 4)
        assert [row.tolist() for row in rows] == [[1, 2, 4, 3], [0, 3, 1, 2]]
        assert similar[1].tolist() == pytest.approx([1, 0.8, 0, 0])

    def test_moved_data_is_found_where_it_is_said_to_lie(self, runs: Path, tmp_path: Path) -> None:
        known = bertune.load(runs / "single", threads=1)
        before = alone(known, "a bird", neighbors=2).neighbors
        moved = shutil.copy(runs / "single.csv", tmp_path / "renamed.csv")
        after = alone(known, "a bird", neighbors=2, data=[moved]).neighbors
        assert [replace(near, file="") for near in after] == [replace(near, file="") for near in before]
        assert {near.file for near in after} == {"renamed.csv"}

    def test_data_in_memory_is_said_to_be_missing_and_taken_where_it_is_handed_in(self, runs: Path) -> None:
        model = bertune.load(runs / "frame", threads=1)
        found = alone(model, "a bird", neighbors=2)
        assert found.neighbors == ()
        assert found.remark == (
            "No neighbors: the model was trained on data in memory; pass it, or files that hold it, as data."
        )
        assert len(alone(model, "a bird", neighbors=2, data=topic_rows(40)).neighbors) == 2

    def test_data_that_is_gone_is_said_to_be_missing(self, runs: Path, tmp_path: Path) -> None:
        copied = Path(shutil.copytree(runs / "single", tmp_path / "copied"))
        config = copied / "run" / "config.yaml"
        text = config.read_text(encoding="utf-8")
        config.write_text(text.replace("single.csv", "gone.csv"), encoding="utf-8")
        remark = alone(bertune.load(copied, threads=1), "a bird", neighbors=1).remark
        assert remark.startswith("No neighbors: the training data cannot be read (")
        assert "gone.csv" in remark
        assert remark.endswith("); say where it lies now.")
        shutil.rmtree(copied / "run")
        assert alone(bertune.load(copied, threads=1), "a bird", neighbors=1).remark == (
            "No neighbors: the folder of the model has no record of its training rows in run/."
        )

    def test_other_data_is_an_error(self, runs: Path, single: Predictor, tmp_path: Path) -> None:
        other = write_rows(tmp_path / "other.csv", topic_rows(160, seed=1))
        with pytest.raises(DataError) as caught:
            single.explain(["a"], data=other)
        assert str(caught.value) == (
            f"{other}: not the data that {runs / 'single'} was trained on: the texts of its training rows are others "
            "there. Pass the right files with --data, or --neighbors 0."
        )
        short = write_rows(tmp_path / "short.csv", topic_rows(20))
        with pytest.raises(DataError, match=r"of its 128 training rows are not there\. Pass the right files"):
            single.explain(["a"], data=short)

    def test_a_plan_of_repairs_has_the_last_word_about_labels(
        self, tiny_bert: Path, tmp_path: Path, no_pictures: None
    ) -> None:
        rows = topic_rows(40)
        path = write_rows(tmp_path / "data.csv", rows)
        checked = bertune.check(path, label_errors="none", settings={"data.hold_out": False})
        plan = checked.plan()
        entry = Entry(
            file="data.csv", row=1, action="relabel", label=["tools" if rows[0]["label"] != "tools" else "plants"],
            was=[rows[0]["label"]], why="test", text=rows[0]["text"], sha256=digest([rows[0]["text"]]),
        )  # fmt: skip
        plan = plan.model_copy(update={"rows": [entry]})
        plan.write(tmp_path / "plan.yaml")
        bertune.train(
            path, out=tmp_path / "run", model=tiny_bert,
            settings=SETTINGS | {"train.epochs": 1, "data.hold_out": False, "data.plan": str(tmp_path / "plan.yaml")},
        )  # fmt: skip
        found = alone(bertune.load(tmp_path / "run", threads=1), rows[0]["text"], neighbors=1).neighbors[0]
        assert (found.row, found.labels) == (1, tuple(entry.label))


class _Words(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.scores: list[str] = []
        self.text: list[str] = []
        self.inside = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        found = dict(attrs)
        self.inside = found.get("class") == "word"
        if self.inside:
            self.scores.append(str(found["data-score"]))

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.text.append(data)
        self.inside = False


class TestMarkup:
    def test_nothing_of_a_text_is_taken_for_html(self, single: Predictor) -> None:
        bad = "<script>alert('x')</script> &amp; \"cat\""
        found = replace(
            alone(single, bad), label="<b>", remark="",
            neighbors=(Neighbor("<f>.csv", 1, ("<script>a</script>",), ("<i>",), 0.5),),
        )  # fmt: skip
        html = fragment(found)
        assert "<script" not in html and "<b>" not in html and "<i>" not in html and "<f>" not in html
        read = _Words()
        read.feed(html)
        assert read.text == [word.text for word in found.words]
        assert read.scores == [f"{word.score:.4f}" for word in found.words]
        assert set(read.tags) <= {"div", "p", "strong", "span", "table", "tr", "td", "th", "br"}

    def test_colours_follow_the_scores(self) -> None:
        words = (Word(0, 0, 1, "a", 2.0), Word(0, 2, 3, "b", -1.0))
        found = Explanation(0, "x", 1.0, 0.0, 0.5, False, ("a b",), words, 32, 0.0, 3)
        html = fragment(found)
        assert 'rgba(31,119,220,0.75)">a</span> <span' in html
        assert 'rgba(230,120,20,0.38)">b</span>' in html
        assert "not predicted" in html and "did not read the last 3 tokens" in html


class TestCommand:
    def test_it_tells_words_completeness_and_neighbours(self, runs: Path) -> None:
        text = "the [red]old[/red] dog was in my garden"
        done = call("explain", runs / "single", text, "--neighbors", "2", "--label", "animals", "--quiet")
        assert (done.code, done.err) == (0, "")
        lines = done.out.splitlines()
        assert lines[0].startswith("animals")
        assert lines[1] == text
        assert lines[3].split() == ["strongest", "words", "score"]
        assert any(line.split()[:1] == ["dog"] and " +" in line for line in lines)
        assert any("Completeness error: " in line and line.endswith("32 steps.") for line in lines)
        assert lines[-3].split() == ["similarity", "label", "nearest", "training", "row", "text"]
        assert all(" single.csv row " in line for line in lines[-2:])

    def test_json_is_one_object_with_the_same_values(self, runs: Path, pair: Predictor) -> None:
        done = call("explain", runs / "pair", "the cat", "a dog", "--label", "same", "--neighbors", "1", "--json")
        (found,) = done.json["explanations"]
        known = alone(pair, ("the cat", "a dog"), label="same", neighbors=1).to_dict()
        assert found == json.loads(json.dumps(known))
        assert set(found) == {
            "row", "label", "logit", "baseline", "probability", "predicted", "texts", "words", "steps", "error",
            "relative_error", "cut", "neighbors", "remark",
        }  # fmt: skip

    def test_stdin_holds_a_text_a_line_or_a_pair_with_a_tab(self, runs: Path) -> None:
        done = call("explain", runs / "single", "-", "--neighbors", "0", stdin="a cat\na tree\n")
        assert [line[:6] for line in done.out.splitlines() if line.startswith("Row ")] == ["Row 1:", "Row 2:"]
        done = call("explain", runs / "pair", "-", "--neighbors", "0", "--json", stdin="a cat\ta dog\n")
        assert done.json["explanations"][0]["texts"] == ["a cat", "a dog"]

    def test_without_the_data_it_says_why_no_rows_are_near(self, runs: Path) -> None:
        done = call("explain", runs / "frame", "a cat")
        assert done.code == 0
        assert done.out.splitlines()[-1].startswith("No neighbors: the model was trained on data in memory")

    def test_a_terminal_gets_colours_unless_it_wants_none(
        self, single: Predictor, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        from bertune.commands.coloured import show

        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.delenv("NO_COLOR", raising=False)
        found = alone(single, "a [bold]cat[/bold] \x1b[31m")
        strongest = found.strongest(1)[0]
        shade = "31;119;220" if strongest.score > 0 else "230;120;20"
        for terminal, wanted in (("truecolor", f"\x1b[30;48;2;{shade}m{strongest.text}\x1b[0m"), ("", strongest.text)):
            monkeypatch.setenv("COLORTERM", terminal)
            monkeypatch.setenv("TERM", "xterm")
            show(found, sys.stdout, numbered=False)
            line = capsys.readouterr().out.splitlines()[1]
            assert wanted in line and "\x1b[30;" in line
            assert "\x1b[31m" not in line  # what the text itself holds is not obeyed
        monkeypatch.setenv("NO_COLOR", "1")
        show(found, sys.stdout, numbered=False)
        assert capsys.readouterr().out.splitlines()[1] == "a [bold]cat[/bold]  [31m"

    @pytest.mark.parametrize(
        "name, arguments, message",
        [
            ("single", ["a", "--label", "plant"], "Error: --label plant: not a label of this model, which has animals, "
             "plants, tools; did you mean 'plants'?"),
            ("single", ["a", "b"], "Error: bertune explain: the model reads one text, found 2; put the text in "
             "quotes."),
            ("pair", ["a"], "Error: bertune explain: the model reads pairs, found 1 text; give both sides: bertune "
             "explain DIR 'first' 'second'."),
            ("single", ["a", "--steps", "0"], "Error: --steps 0: takes at least 1; leave it out, and as many as needed "
             "are taken."),
        ],
    )  # fmt: skip
    def test_what_cannot_be_is_said_in_a_sentence(
        self, runs: Path, name: str, arguments: list[str], message: str
    ) -> None:
        done = call("explain", runs / name, *arguments)
        assert (done.code, done.out, done.err.strip()) == (2, "", message)

    def test_an_encoder_outside_the_family_is_refused(self, runs: Path, tmp_path: Path) -> None:
        copied = Path(shutil.copytree(runs / "single", tmp_path / "copied"))
        described = json.loads((copied / "bertune.json").read_text(encoding="utf-8"))
        (copied / "bertune.json").write_text(json.dumps(described | {"encoder": "adapter"}), encoding="utf-8")
        done = call("explain", copied, "a")
        assert done.code == 2
        assert done.err.strip() == (
            f"Error: {copied}: its encoder is outside the family and runs through transformers; only models with an "
            "encoder of the family (bert, roberta, distilbert, electra, modernbert) can be explained."
        )

    def test_without_captum_it_says_what_to_install(self, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "captum", None)  # as where it is not installed
        done = call("explain", runs / "single", "a")
        assert done.code == 2
        assert done.err.strip() == (
            "Error: explaining a model needs the package 'captum': pip install 'bertune[explain]'"
        )
