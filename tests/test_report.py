"""The page of a result: what it says is what was measured, and nothing in it is taken for markup."""

from __future__ import annotations

import html
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from markupsafe import Markup
from sklearn.metrics import precision_recall_fscore_support

import bertune
from bertune.errors import ModelError
from bertune.evaluate.rule import Rule
from bertune.report.gather import Gathered, gather
from bertune.report.page import script_json
from bertune.report.pretraining import headline
from bertune.report.sweep import MARKS, sweep
from bertune.report.write import write_pretraining, write_report
from made_results import ATTACK, make_pretraining, make_result
from shell import call, write_rows
from tiny_runs import QUICK, topic_rows

AWKWARD = (ATTACK, "\"&'", "עברית <b>", "😀 $x$ $y$", "W" * 300)
VOID = {"meta", "link", "img", "br", "input", "hr", "path", "use", "rect", "line"}


class Page(HTMLParser):
    """Tags with their attributes, the text that a person reads, and the scripts of a page; complains of tags that do
    not close."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag
        if tag in {"td", "th", "dt"}:
            self.words.append(" ")

    def handle_data(self, data: str) -> None:
        if self.open[-1:] == ["script"]:
            self.scripts.append(data)
        elif self.open[-1:] != ["style"]:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page without figures, for tests that are not about them."""
    monkeypatch.setattr("bertune.report.write.draw_all", lambda gathered: {})


@pytest.fixture(scope="module")
def awkward(tmp_path_factory: pytest.TempPathFactory) -> tuple[Gathered, str]:
    """A multi-label result whose labels and texts hold everything that could be taken for markup."""
    folder = tmp_path_factory.mktemp("awkward")
    texts = [f"{AWKWARD[number % 5]} {number} {ATTACK}" for number in range(60)]
    by = {"column <i>": [AWKWARD[number % 2] for number in range(60)]}
    gathered = gather(make_result(folder / f"x{ATTACK.replace('/', '')}", AWKWARD, texts=texts, by=by))
    return gathered, write_report(gathered).read_text(encoding="utf-8")


def test_nothing_of_a_user_is_taken_for_markup(awkward: tuple[Gathered, str]) -> None:
    gathered, text = awkward
    page = Page(text)

    assert [attributes.get("type") for tag, attributes in page.tags if tag == "script"] == ["application/json", None]
    assert len(page.scripts) == 2 and not any("alert" in script for script in page.scripts[1:])
    assert not {tag for tag, _ in page.tags} & {"b", "i", "img", "iframe", "object", "link"}
    for label in AWKWARD:
        assert label in page.text
        assert label in [row["name"] for row in json.loads(page.scripts[0])["labels"]]
    assert gathered.mistakes and all(mistake.texts for mistake in gathered.mistakes)
    for mistake in gathered.mistakes:
        assert " ".join(mistake.texts[0][1].split()) in page.text
    assert "2 of 9 rows <b>of test</b> are in train, too" in page.text and "a&b.csv row 3" in page.text


def test_the_page_fetches_nothing(awkward: tuple[Gathered, str]) -> None:
    page = Page(awkward[1])
    policies = [each["content"] for tag, each in page.tags if each.get("http-equiv") == "Content-Security-Policy"]

    assert policies[0] is not None and policies[0].startswith("default-src 'none'; style-src 'unsafe-inline'")
    for _, attributes in page.tags:
        for name in ("src", "href", "xlink:href", "data", "action", "poster", "srcset"):
            assert (attributes.get(name) or "#").startswith("#"), attributes
    bare = awkward[1].replace("http://www.w3.org/", "")
    assert not re.search(r"(?i)https?://|url\((?!#)|@import", bare)


def test_every_id_is_unique_and_every_reference_has_one(awkward: tuple[Gathered, str]) -> None:
    page = Page(awkward[1])
    ids = [attributes["id"] for _, attributes in page.tags if attributes.get("id")]
    used = {(attributes.get("href") or "")[1:] for _, attributes in page.tags} - {""}
    used |= set(re.findall(r"url\(#([^)]+)\)", awkward[1]))
    for name in ("aria-labelledby", "for"):
        used |= {attributes[name] or "" for _, attributes in page.tags if name in attributes}

    assert len(set(ids)) == len(ids)
    assert used <= set(ids)


def test_tables_and_controls_have_names_for_those_who_listen(awkward: tuple[Gathered, str]) -> None:
    page = Page(awkward[1])
    count = [tag for tag, _ in page.tags].count

    assert count("table") == count("caption") >= 4
    assert all(each.get("scope") in ("row", "col") for tag, each in page.tags if tag == "th")
    assert count("h1") == 1 and count("main") == 1
    assert all(each.get("role") == "img" and "aria-labelledby" in each for tag, each in page.tags if tag == "svg")
    assert count("svg") == count("title") - 1
    assert any(each.get("aria-live") == "polite" for _, each in page.tags)


@pytest.mark.parametrize("kind", ["multi", "single"])
def test_the_numbers_are_those_of_metrics_json(tmp_path: Path, kind: str) -> None:
    gathered = gather(make_result(tmp_path / "run", ("a", "b", "c"), kind=kind, rows=200))
    text = Page(write_report(gathered).read_text(encoding="utf-8")).text
    test, metric = gathered.metrics["test"], gathered.metrics["metric"]
    low, high = gathered.metrics["intervals"]["test"][metric]

    assert f"{test[metric]:.4f} 95 % interval {low:.4f} to {high:.4f}" in text
    assert "Clearly better than TF-IDF." in text
    for row in test["per_label"]:
        shown = f"{row['label']} {row['f1']:.4f} {row['precision']:.4f} {row['recall']:.4f} {row['support']}"
        assert shown in text
    assert f"{gathered.metrics['calibration']['test']['after']['ece']:.4f}" in text
    assert "test 200 4 1.2 % 0.0 %" in text
    for name in ("log_loss", "macro_f1"):
        assert f"{name} {test[name]:.4f}" in text


def test_every_figure_is_a_file_and_the_same_run_draws_the_same_bytes(tmp_path: Path) -> None:
    out = make_result(tmp_path / "run", ("a", "b"), kind="single")
    page = write_report(gather(out))
    first = {path.name: path.read_bytes() for path in (out / "run/figures").iterdir()}
    whole = page.read_bytes()
    write_report(gather(out))
    names = {"standing", "gains", "loss", "scores", "confusion", "precision-recall", "reliability", "coverage"}

    assert set(first) == {f"{name}.{kind}" for name in names for kind in ("svg", "png")}
    assert all(content.startswith(b"\x89PNG") for name, content in first.items() if name.endswith("png"))
    assert {path.name: path.read_bytes() for path in (out / "run/figures").iterdir()} == first
    assert page.read_bytes() == whole


def test_thirty_labels_and_fifty_thousand_rows_stay_under_three_megabytes(tmp_path: Path) -> None:
    labels = tuple(f"label {number} of a rather long kind" for number in range(30))
    page = write_report(gather(make_result(tmp_path / "run", labels, rows=50_000)), tmp_path / "page.html")

    assert page.stat().st_size < 3e6
    assert not (tmp_path / "run/run/figures").exists()


@pytest.mark.usefixtures("undrawn")
def test_more_labels_than_a_matrix_holds_are_told_in_pairs(tmp_path: Path) -> None:
    labels = tuple(f"label {number}" for number in range(250))
    page = write_report(gather(make_result(tmp_path / "run", labels, rows=300)))
    text = Page(page.read_text(encoding="utf-8")).text

    assert page.stat().st_size < 3e6
    assert "Too many labels for a matrix" in text
    assert "The 200 most frequent of 250 labels can be chosen." in text
    assert "The first 200 labels; 50 more are in run/metrics.json." in text


@pytest.mark.parametrize("rule", [Rule(), Rule(thresholds=(0.3, 0.62, 0.5), temperatures=(1.5, 0.8, 1.0))])
def test_the_counts_of_the_slider_are_those_of_scikit_learn(tmp_path: Path, rule: Rule) -> None:
    gathered = gather(make_result(tmp_path / "run", ("a", "b", "c"), rows=300, rule=rule))
    answers = gathered.answers
    assert answers is not None
    found = sweep(answers)
    for step in (0, 17, 50, 81, 100):
        said = answers.shares >= MARKS[step]
        wanted = precision_recall_fscore_support(answers.truth, said, average=None, zero_division=0)
        for place, label in enumerate(found["labels"]):
            hits, calls = label["hits"][step], label["calls"][step]
            got = hits / calls if calls else 0, hits / label["support"], 2 * hits / (calls + label["support"])
            np.testing.assert_allclose(got, [wanted[number][place] for number in range(3)])
        assert found["all"]["exact"][step] == (said == answers.truth).all(axis=1).sum()
    stored = found["all"]["stored"]
    f1 = 2 * stored["hits"] / (stored["calls"] + found["all"]["support"])
    assert f1 == pytest.approx(gathered.metrics["test"]["micro_f1"])
    assert stored["exact"] / 300 == pytest.approx(gathered.metrics["test"]["subset_accuracy"])


def test_the_slider_of_one_label_a_row_leaves_the_unsure_to_a_person(tmp_path: Path) -> None:
    gathered = gather(make_result(tmp_path / "run", ("a", "b", "c"), kind="single", rows=300, rule=Rule(abstain=0.7)))
    answers = gathered.answers
    assert answers is not None
    found = sweep(answers)
    top, right = answers.shares.max(axis=1), answers.said == answers.targets

    assert found["stored"] == 0.7
    for step in (0, 40, 70, 99):
        given = top >= MARKS[step]
        assert (found["answered"][step], found["right"][step]) == (given.sum(), right[given].sum())


def test_mistakes_are_the_wrong_answers_with_the_highest_loss(tmp_path: Path) -> None:
    texts = [f"text {number}" for number in range(60)]
    gathered = gather(make_result(tmp_path / "run", ("a", "b", "c"), kind="single", texts=texts))
    answers = gathered.answers
    assert answers is not None
    losses = -np.log(answers.shares[np.arange(60), answers.targets])
    wrong = [row for row in np.argsort(-losses) if answers.said[row] != answers.targets[row]]

    assert [mistake.position for mistake in gathered.mistakes] == wrong[:20]
    assert [mistake.texts for mistake in gathered.mistakes] == [(("text", f"text {row}"),) for row in wrong[:20]]


@pytest.mark.usefixtures("undrawn")
def test_attributions_take_the_place_of_a_text(tmp_path: Path) -> None:
    texts = [f"text {number}" for number in range(60)]
    gathered = gather(make_result(tmp_path / "run", ("a", "b"), kind="single", texts=texts))
    first, second = gathered.mistakes[:2]
    page = write_report(gathered, attributions={first.position: Markup('<p class="words"><mark>told</mark></p>')})
    text = page.read_text(encoding="utf-8")

    assert '<p class="words"><mark>told</mark></p>' in text
    assert f">{first.texts[0][1]}<" not in text and f">{second.texts[0][1]}<" in text


REASONS = {
    "gone": "The data could not be read again where it was for the training",
    "other rows": "The data no longer holds these rows",
    "other labels": "The data has other labels now than in the training",
}


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("case", REASONS)
def test_where_texts_cannot_be_had_the_page_says_why(tmp_path: Path, case: str) -> None:
    out = make_result(tmp_path / "run", ("a", "b"), kind="single", texts=["text"] * 60)
    file = tmp_path / "texts.csv"
    lines = file.read_text(encoding="utf-8").splitlines()
    if case == "gone":
        file.unlink()
    elif case == "other rows":
        file.write_text("\n".join(lines[:3]), encoding="utf-8")
    else:
        flipped = [line[:-1] + ("b" if line.endswith("a") else "a") for line in lines[1:]]
        file.write_text("\n".join([lines[0], *flipped]), encoding="utf-8")
    text = Page(write_report(gather(out)).read_text(encoding="utf-8")).text

    assert REASONS[case] in text
    assert f"texts.csv row {gather(out).mistakes[0].row}" in text


@pytest.mark.usefixtures("undrawn")
def test_data_that_has_moved_is_read_where_it_is_now(tmp_path: Path) -> None:
    out = make_result(tmp_path / "run", ("a", "b"), kind="single", texts=[f"text {number}" for number in range(60)])
    (tmp_path / "now").mkdir()
    place = (tmp_path / "texts.csv").rename(tmp_path / "now/texts.csv")
    done = call("report", out, "--set", f"data.files={place}", "--seed", "1")
    text = Page((out / "run/report.html").read_text(encoding="utf-8")).text

    assert (done.code, done.err.splitlines()[0]) == (0, "--seed changes nothing here: nothing is drawn by chance.")
    assert f"text {gather(out).mistakes[0].position}" in text and "not shown" not in text
    assert call("report", out, "--set", "train.lr=1").code == 2


def test_local_folders_do_not_leave_the_machine(awkward: tuple[Gathered, str]) -> None:
    assert str(awkward[0].out.parent) not in html.unescape(awkward[1])
    assert "texts.csv" in awkward[1]


def test_json_in_a_script_cannot_end_it() -> None:
    value = {"a": "</script><!-- & <script>", "b": [1, None]}
    text = script_json(value)

    assert not set("<>&") & set(text)
    assert json.loads(text) == value


# The doors


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> Path:
    """A result of the command line, with its page."""
    folder = tmp_path_factory.mktemp("report")
    rows = write_rows(folder / "topics.csv", topic_rows(60))
    settings = [part for name, value in QUICK.items() for part in ("--set", f"{name}={value}")]
    done = call("train", rows, "--model", tiny_bert, "--out", folder / "run", *settings)
    assert done.code == 0, done.err
    assert f"The report is in {folder / 'run' / 'run' / 'report.html'}." in done.err.splitlines()
    return folder / "run"


def test_training_leaves_the_page_with_the_curves(trained: Path) -> None:
    text = Page((trained / "run/report.html").read_text(encoding="utf-8")).text

    assert (trained / "run/curves.png").is_file() and (trained / "run/figures/loss.svg").is_file()
    assert "It reads texts and gives each exactly one of 3 labels" in text
    assert "bertune train --config run/run/config.yaml --out run-again" in text
    assert "It reads at most 24 tokens, special ones included." in text
    assert f"bertune {bertune.__version__}" in text


def test_bertune_report_makes_the_same_page_again_or_elsewhere(trained: Path, tmp_path: Path) -> None:
    page = trained / "run/report.html"
    by_training = page.read_text(encoding="utf-8")
    page.unlink()
    done = call("report", trained, "--quiet")
    assert (done.code, done.err) == (0, "")
    before = page.read_bytes()
    page.unlink()
    assert call("report", trained).err.endswith(f"The report is in {page}.\n")
    assert page.read_bytes() == before
    # A training explains a few of its errors quickly; the command explains all, with rows that are alike.
    told = [text.count('<div class="explanation"') for text in (by_training, before.decode())]
    assert 0 < told[0] <= told[1]
    assert "nearest training rows" in before.decode()
    assert "<th>nearest training rows</th>" not in by_training
    plain = call("report", trained, "--explain", "0", "--out", tmp_path / "plain.html")
    assert plain.code == 0 and '<div class="explanation"' not in (tmp_path / "plain.html").read_text(encoding="utf-8")
    assert "--explain -1: a number of errors" in call("report", trained, "--explain", "-1").err

    other = tmp_path / "page.html"
    assert call("report", trained, "--out", other, "--json").json == {"report": str(other)}
    assert other.read_bytes() == before
    again = call("report", trained, "--out", other)
    assert again.code == 2 and "the file exists" in again.err


def test_a_folder_that_is_no_result_is_told_in_a_sentence(trained: Path, tmp_path: Path) -> None:
    done = call("report", tmp_path)
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "not the result folder of a run (no bertune.json)" in done.err

    make_result(tmp_path / "half", ("a", "b"), kind="single")
    (tmp_path / "half/run/metrics.json").unlink()
    with pytest.raises(ModelError, match=r"has no run/metrics\.json, so there is nothing to report"):
        gather(tmp_path / "half")
    (tmp_path / "half/run/metrics.json").write_text('{"folds": 5}', encoding="utf-8")
    with pytest.raises(ModelError, match=r"holds a cross-validation; .* bertune report .*half/run/folds/1\."):
        gather(tmp_path / "half")


def test_a_report_that_fails_costs_no_result(
    trained: Path, tmp_path: Path, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(gathered: Gathered) -> None:
        raise ZeroDivisionError("no ink")

    monkeypatch.setattr("bertune.report.write.draw_all", fail)
    result = bertune.train(topic_rows(40), out=tmp_path / "run", model=tiny_bert, settings=QUICK)

    assert "The report could not be made (ZeroDivisionError: no ink). The result is whole" in caplog.text
    assert (result.out / "bertune.json").is_file() and not (result.out / "run/report.html").exists()


@pytest.mark.usefixtures("undrawn")
def test_data_in_memory_gives_its_texts_and_the_page_can_be_switched_off(tmp_path: Path, tiny_bert: Path) -> None:
    short = QUICK | {"train.max_steps": 1}
    rows = topic_rows(60)
    bertune.train(rows, out=tmp_path / "with", model=tiny_bert, settings=short)
    bertune.train(rows, out=tmp_path / "without", model=tiny_bert, settings=short | {"report.page": False})
    text = Page((tmp_path / "with/run/report.html").read_text(encoding="utf-8")).text
    mistake = gather(tmp_path / "with").mistakes[0]

    assert rows[mistake.row - 1]["text"] in text
    assert not (tmp_path / "without/run/report.html").exists() and not (tmp_path / "without/run/figures").exists()


@pytest.mark.usefixtures("undrawn")
def test_a_joint_training_leaves_a_page_a_task_and_another_where_it_went_on_alone(
    tmp_path: Path, tiny_bert: Path
) -> None:
    chosen = {
        "model": {"name": str(tiny_bert), "max_length": 24}, "check": {"enabled": False}, "then_alone": True,
        "train": {"threads": 1, "device": "cpu", "precision": "fp32", "max_steps": 4, "batch_size": 8},
        "tasks": {"loud": {}, "quiet": {"report": {"page": False}}},
    }  # fmt: skip
    rows = topic_rows(60)
    out = bertune.multitask(chosen, out=tmp_path / "out", data={"loud": rows, "quiet": rows}).out

    assert sorted(path.relative_to(out).as_posix() for path in out.rglob("report.html")) == [
        "alone/loud/run/report.html", "tasks/loud/run/report.html"
    ]  # fmt: skip
    mistake = gather(out / "alone/loud").mistakes[0]
    assert rows[mistake.row - 1]["text"] in Page((out / "alone/loud/run/report.html").read_text("utf-8")).text


@pytest.mark.usefixtures("undrawn")
def test_without_held_out_rows_the_page_says_that_nothing_is_known(tmp_path: Path, tiny_bert: Path) -> None:
    settings = QUICK | {"train.max_steps": 1, "data.hold_out": False}
    out = bertune.train(topic_rows(40), out=tmp_path / "run", model=tiny_bert, settings=settings).out
    text = Page((out / "run/report.html").read_text(encoding="utf-8")).text

    assert "No rows were held out, so nothing is known about how good this model is." in text


# Pre-training


def test_the_page_of_a_pre_training_has_its_figures_and_takes_nothing_for_markup(tmp_path: Path) -> None:
    out = make_pretraining(tmp_path / "out <b>")
    text = write_pretraining(out).read_text(encoding="utf-8")
    page = Page(text)

    assert "better than before: perplexity 60 before, 30 now." in page.text
    assert "Perplexity 60 30 Masked accuracy 0.1 0.3 Next-sentence accuracy 0.5 0.75" in page.text
    assert "1,234 tokens to guess, 99 pairs of texts" in page.text and "from 1 document of 5,678 tokens" in page.text
    assert f"It began with {ATTACK}." in page.text and f"head.{ATTACK}" in page.text
    assert "bertune pretrain --config 'out <b>'/run/config.yaml --out 'out <b>-again'" in page.text
    assert "texts <i>.txt" in page.text and str(tmp_path) not in html.unescape(text)
    tags = [tag for tag, _ in page.tags]
    assert not {"script", "b", "i"} & set(tags)
    assert tags.count("svg") == 4 and tags.count("table") == tags.count("caption") == 1
    ids = [attributes["id"] for _, attributes in page.tags if attributes.get("id")]
    assert len(set(ids)) == len(ids)
    policy = next(each["content"] for _, each in page.tags if each.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None and policy.startswith("default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256")
    assert not re.search(r"https?://", text.replace("http://www.w3.org/", ""))
    names = {"loss", "perplexity", "masked-accuracy", "next-accuracy"}
    assert {path.name for path in (out / "run/figures").iterdir()} == {
        f"{name}.{kind}" for name in names for kind in ("svg", "png")
    }


def test_the_verdict_of_a_pre_training_says_no_more_than_was_measured(tmp_path: Path) -> None:
    alone = Page(write_pretraining(make_pretraining(tmp_path / "a", objective="nsp")).read_text(encoding="utf-8")).text
    assert "It guesses next sentences of texts that it was not trained on better than before" in alone
    assert "Masked accuracy" not in alone and "to guess," not in alone
    unknown = make_pretraining(tmp_path / "b", held_out=False)
    text = Page(write_pretraining(unknown).read_text(encoding="utf-8")).text
    assert "Nothing was held out, so nothing is known about what it learned." in text and "before: " not in text
    assert headline({"before": {"perplexity": 5.0}, "held_out": {"perplexity": 5.0}}).endswith(
        "no better than before: perplexity 5 before, 5 now."
    )


def test_bertune_report_makes_the_page_of_a_pre_training(tmp_path: Path) -> None:
    out = make_pretraining(tmp_path / "out")
    done = call("report", out)
    assert (done.code, done.err) == (0, f"The report is in {out / 'run' / 'report.html'}.\n")
    assert call("report", out, "--explain", "3").code == 2
    (out / "run/metrics.json").unlink()
    done = call("report", out)
    assert done.code != 0 and "a pre-training that has not finished" in done.err


def test_a_page_that_cannot_be_written_is_named_as_it_was_given(tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.csv", topic_rows(20))
    done = call("check", rows, "--page", tmp_path)
    assert done.code == 2 and f"--page {tmp_path}: is a folder; name a file in it." in done.err


def test_check_writes_its_findings_as_a_page(tmp_path: Path, tiny_bert: Path) -> None:
    rows = topic_rows(40)
    rows += [{"text": rows[0]["text"], "label": "plants"}, {"text": rows[0]["text"], "label": ATTACK}]
    file = write_rows(tmp_path / "topics.csv", rows)
    page = tmp_path / "check.html"
    how = ["--model", tiny_bert, "--label-errors", "none", "--set", "model.max_length=24"]
    done = call("check", file, "--page", page, "--json", *how)
    found = done.json["findings"]
    parsed = Page(page.read_text(encoding="utf-8"))

    assert f"The page of all findings is in {page}." in done.err
    assert found and all(each["kind"] in parsed.text and each["advice"] in parsed.text for each in found)
    assert not [tag for tag, _ in parsed.tags if tag == "script"] and str(tmp_path) not in parsed.text
    assert "Check of the data topics.csv" in parsed.text
    assert call("check", file, "--page", page, *how).code == 2  # it is there already
