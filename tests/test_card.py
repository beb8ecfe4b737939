"""The card is valid front matter and Markdown, shows user text as text, and tells no path; curves are pictures."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from bertune.data.tasks import Task
from bertune.evaluate.card import CardInfo, escaped, file_name, markdown_table, model_card
from bertune.evaluate.curves import plot_curves, smoothed
from bertune.evaluate.metrics import evaluate
from bertune.evaluate.rule import Rule
from bertune.evaluate.sets import Sets

NASTY = "<script>|x"


def info(**changes: Any) -> CardInfo:
    random = np.random.default_rng(0)
    task = Task("multi", ("physics", NASTY), ("TITLE", "ABSTRACT"), (), ("physics", NASTY), "columns")
    metrics = evaluate("multi", task.labels, random.normal(size=(40, 2)), random.integers(0, 2, (40, 2)))
    card = CardInfo(
        name="papers", version="0.1.0", task=task, files=["/home/me/data/papers.csv", "C:\\Users\\me\\more.csv"],
        split_rows={"train": 14377, "valid": 40, "test": 40},
        split_rule="80/10/10 at random, stratified over the labels, seed 0.",
        results={"valid": metrics, "test": metrics}, verdict=["micro_f1 on the test split: 0.9.", "Against |: noise."],
        settings={"model": "/home/me/models/mini", "epochs": 3, "lr": 2e-4, "max_steps": None, "texts": ["a", "b"]},
        max_length=256, truncation="longest-first", chosen_by_valid=True, opens_in_transformers=True,
        base_title="all-MiniLM-L6-v2", base_repo="sentence-transformers/all-MiniLM-L6-v2", base_licence="Apache-2.0",
        base_note="trained on sentence pairs that include SNLI", base_languages="English",
        remarks=["12 rows were cut."],
    )  # fmt: skip
    return replace(card, **changes)


def front_matter(text: str) -> dict[str, Any]:
    _, head, _ = text.split("---\n", 2)
    return yaml.safe_load(head)


def test_the_front_matter_is_what_the_hub_reads() -> None:
    assert front_matter(model_card(info())) == {
        "license": "apache-2.0", "library_name": "transformers", "pipeline_tag": "text-classification",
        "base_model": "sentence-transformers/all-MiniLM-L6-v2", "tags": ["bertune", "multi-label"],
        "metrics": ["f1", "roc_auc"],
    }  # fmt: skip
    text = model_card(info(base_licence="not stated", base_repo="/home/me/x", opens_in_transformers=False))
    unknown = front_matter(text)
    assert "licence of the base model is not known" in text
    assert "license" not in unknown and "base_model" not in unknown and unknown["library_name"] == "bertune"


def test_the_card_has_every_section_and_fact() -> None:
    text = model_card(info())
    for part in (
        "## Results", "## How to use", "## Data", "## Training", "## Intended use", "## Limits", "14,377", "seed 0",
        "papers.csv, more.csv", "| lr | 0.0002 |", "at most 256 tokens", "only the beginning is read", "English",
        "SNLI", "12 rows were cut.", "By label, on the test split", "sigmoid()", '{"TITLE": "...", "ABSTRACT": "..."}',
    ):  # fmt: skip
        assert part in text, part
    assert "max_steps" not in text


def test_pairs_and_single_labels_are_told_as_such() -> None:
    task = Task("single", ("ja", "nein"), ("a",), ("b",), ("label",))
    text = model_card(info(task=task, results={}, opens_in_transformers=False, truncation="only-second"))
    for part in ("pairs of texts", "exactly one of", '("first text", "second text")', "No split was evaluated",
                 "second side loses", "opens in bertune only"):  # fmt: skip
        assert part in text, part
    assert "softmax(-1)" in model_card(info(task=task, results={}))


def test_the_card_says_that_the_epoch_was_chosen_only_where_it_was() -> None:
    assert "The epoch was chosen by the valid split" in model_card(info())
    assert "chosen by the valid split" not in model_card(info(chosen_by_valid=False))


def test_no_place_of_this_machine_is_told() -> None:
    text = model_card(info())
    assert "/home" not in text and "Users" not in text
    assert file_name("hf://datasets/a/b.csv") == "hf://datasets/a/b.csv"
    assert file_name("data\\x.csv") == file_name("data/x.csv") == "x.csv"


def test_user_text_stays_text() -> None:
    text = model_card(info(name="a\n# b", remarks=["![x](http://e.vil) <img src=x onerror=y>"], base_note="*<b>"))
    assert "<script>" not in text and "<img" not in text and "<b>" not in text
    assert r"&lt;script&gt;\|x" in text
    tables = [line for line in text.split("\n") if line.startswith("|") and "script" in line]
    assert tables and all(len(re.findall(r"(?<!\\)\|", line)) == 9 for line in tables)
    assert "\n# a \\# b\n" in text


@pytest.mark.parametrize("text", [
    NASTY, "*a* _b_ c_d __e__ f__g__", "`c` ~~d~~ $e$",
    "[x](http://y)", "http://a.b www.c.d", "# h", "- item", "1. item", "+ x", "a\\",
    "&lt;", "---", "a\nb", "=", "**", "\\|", "![i](u)",
])  # fmt: skip
def test_escaped_text_renders_as_itself(text: str) -> None:
    markdown = pytest.importorskip("markdown_it").MarkdownIt("gfm-like", {"linkify": False})
    shown = " ".join(text.split("\n"))
    for source in (f"{escaped(text)}\n", f"- {escaped(text)}\n", markdown_table([["x"], [text]])):
        rendered = markdown.render(source)
        tags = set(re.findall(r"</?(\w+)", rendered)) - {"p", "ul", "li", "table", "thead", "tbody", "tr", "th", "td"}
        assert not tags, rendered
        plain = re.sub(r"<[^>]+>", "", rendered).replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", '"')
        assert plain.replace("&amp;", "&").split()[-len(shown.split()) :] == shown.split()


@given(st.text())
def test_escaping_leaves_no_tag_no_line_break_and_no_bare_pipe(text: str) -> None:
    line = escaped(text)
    assert line and not re.search(r"[<>\n\r]", line)
    assert not re.search(r"(?<!\\)(\\\\)*\|", line)


def steps(count: int) -> list[dict[str, Any]]:
    return [
        {"kind": "step", "step": step, "epoch": step / 10, "loss": 1 / step, "lr": 1e-4 / step}
        for step in range(1, count + 1)
    ]


def evaluation(epoch: float, split: str, accuracy: float | None) -> dict[str, Any]:
    metrics = {"accuracy": accuracy, "log_loss": 0.5}
    return {"kind": "eval", "step": 10, "epoch": epoch, "split": split, "metrics": metrics}


@pytest.mark.parametrize("history", [
    [], steps(1), [evaluation(1, "valid", 0.5)], [*steps(30), evaluation(1, "valid", 0.5)],
    [*steps(30), *(evaluation(e, split, e / 4) for e in (1, 2, 3) for split in ("train", "valid", "test"))],
    [*steps(3), evaluation(1, "valid", None), {"kind": "note", "step": 1}],
], ids=["nothing", "one step", "one evaluation", "short", "long", "undefined"])  # fmt: skip
def test_curves_are_drawn_from_any_history(history: list[dict[str, Any]], tmp_path: Path) -> None:
    path = tmp_path / "curves.png"
    plot_curves(history, path, metric="accuracy")
    assert path.read_bytes().startswith(b"\x89PNG\r\n") and list(tmp_path.iterdir()) == [path]


def test_a_single_step_is_a_point_since_a_line_needs_two(tmp_path: Path) -> None:
    from matplotlib.image import imread

    coloured = []
    for count in (0, 1):
        plot_curves(steps(count), tmp_path / "x.png", metric="accuracy")
        red, green, blue = (imread(tmp_path / "x.png")[:, :, channel] for channel in range(3))
        coloured.append(int(((blue > red + 0.3) & (blue > green + 0.1)).sum()))
    # The line in the legend has some 160 pixels of this colour; the point and its like there as many again.
    assert coloured[0] == 0 and coloured[1] > 300


def test_drawing_leaves_the_users_matplotlib_alone(tmp_path: Path) -> None:
    import matplotlib
    from matplotlib import pyplot

    before = matplotlib.get_backend(), pyplot.get_fignums()
    plot_curves(steps(3), tmp_path / "x.png", metric="accuracy")
    assert (matplotlib.get_backend(), pyplot.get_fignums()) == before


def test_smoothing_keeps_a_constant_and_the_length() -> None:
    assert smoothed(np.full(100, 2.0)) == pytest.approx(np.full(100, 2.0))
    assert smoothed(np.arange(5.0)).tolist() == [0, 1, 2, 3, 4]


def test_the_card_tells_what_the_model_promises() -> None:
    rule = Rule(sets=Sets(coverage=0.95, cutoffs=(0.1, 0.2)), abstain=0.8125)
    text = model_card(info(rule=rule))
    assert "a set of labels that holds the right one in 95 % of the rows" in text
    assert "Answers with a confidence below 0.812 are left to a person." in text
