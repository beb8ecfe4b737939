"""The page in a real browser: nothing is fetched or complained of, the slider counts, and it reads on every screen."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import precision_recall_fscore_support

from bertune.evaluate.rule import Rule
from bertune.report.gather import Gathered, gather
from bertune.report.write import write_pretraining, write_report
from made_results import make_pretraining, make_result

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
LABELS = ("plain", "<script>alert(1)</script>", "A" * 200)
Made = tuple[Gathered, str]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """The system's Chromium, without a window."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip("there is no Chromium on this machine")
    with api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def multi(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("multi")
    texts = [f"{'long' * 60} text {number} <img src=x onerror=alert(1)>" for number in range(120)]
    rule = Rule(thresholds=(0.4, 0.55, 0.5), temperatures=(1.2, 0.9, 1.0))
    gathered = gather(make_result(folder / "run", LABELS, rows=120, rule=rule, texts=texts))
    return gathered, write_report(gathered).as_uri()


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("single")
    gathered = gather(make_result(folder / "run", ("a", "b", "c"), kind="single", rows=150, rule=Rule(abstain=0.6)))
    return gathered, write_report(gathered).as_uri()


@pytest.fixture(scope="module")
def pretraining(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_pretraining(make_pretraining(tmp_path_factory.mktemp("pretraining") / "run")).as_uri()


class Visit:
    """A page that was opened, with what it asked the network for and what it complained of."""

    def __init__(self, browser: Any, address: str, **how: Any) -> None:
        self.context = browser.new_context(**how)
        self.page = self.context.new_page()
        self.asked: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.complaints.append(dialog.message), dialog.dismiss()))
        self.page.goto(address)

    def __enter__(self) -> Visit:
        return self

    def __exit__(self, *error: object) -> None:
        self.context.close()

    def number(self, name: str) -> str:
        return str(self.page.locator(f"#n-{name}").inner_text())

    def press(self, key: str, times: int) -> None:
        self.page.locator("#threshold").focus()
        for _ in range(times):
            self.page.keyboard.press(key)


def test_nothing_is_fetched_and_nothing_is_complained_of(
    browser: Any, multi: Made, single: Made, pretraining: str
) -> None:
    for address, title in ((multi[1], "report"), (single[1], "report"), (pretraining, "pre-training")):
        with Visit(browser, address) as visit:
            assert visit.asked == [address]
            assert visit.complaints == []
            assert visit.page.title() == f"run: {title}"


def test_a_script_that_is_slipped_in_does_not_run(browser: Any, multi: Made, tmp_path: Path) -> None:
    """The policy of the page holds even where escaping would fail."""
    text = Path(multi[1].removeprefix("file://")).read_text(encoding="utf-8")
    forged = tmp_path / "forged.html"
    forged.write_text(text.replace("</main>", "<script>document.title = 'taken'</script></main>"), encoding="utf-8")
    with Visit(browser, forged.as_uri()) as visit:
        assert visit.page.title() == "run: report"
        assert any("Content Security Policy" in complaint for complaint in visit.complaints)


def test_the_slider_moved_by_keyboard_shows_what_scikit_learn_gives(browser: Any, multi: Made) -> None:
    gathered, address = multi
    answers = gathered.answers
    assert answers is not None
    with Visit(browser, address) as visit:
        assert visit.number("f1") == f"{gathered.metrics['test']['micro_f1']:.4f}"
        assert visit.page.locator("#at").inner_text() == "as stored, one for each label"
        visit.press("ArrowRight", 7)
        _check(visit, answers.truth, answers.shares >= 0.57, average="micro")
        assert visit.number("exact") == f"{((answers.shares >= 0.57) == answers.truth).all(axis=1).mean():.4f}"

        visit.page.locator("#which").select_option("1")
        row = gathered.metrics["test"]["per_label"][1]
        assert (visit.number("f1"), visit.number("recall")) == (f"{row['f1']:.4f}", f"{row['recall']:.4f}")
        assert visit.page.locator("#mark").is_visible()
        visit.press("ArrowLeft", 25)  # from the stored 0.55
        _check(visit, answers.truth[:, 1], answers.shares[:, 1] >= 0.30, average="binary")
        assert visit.page.locator("#d-exact").is_hidden()

        visit.page.locator("#stored").focus()
        visit.page.keyboard.press("Enter")
        assert visit.number("f1") == f"{row['f1']:.4f}"


def _check(visit: Visit, truth: np.ndarray, said: np.ndarray, *, average: str) -> None:
    precision, recall, f1, _ = precision_recall_fscore_support(truth, said, average=average)
    shown = [visit.number(name) for name in ("precision", "recall", "f1")]
    assert shown == [f"{value:.4f}" for value in (precision, recall, f1)]


def test_the_slider_of_one_label_a_row_shows_coverage_and_accuracy(browser: Any, single: Made) -> None:
    gathered, address = single
    answers = gathered.answers
    assert answers is not None
    with Visit(browser, address) as visit:
        assert visit.number("accuracy") == f"{gathered.metrics['test']['accuracy']:.4f}"
        visit.press("ArrowRight", 60)
        given = answers.shares.max(axis=1) >= 0.6
        assert visit.number("accuracy") == f"{(answers.said == answers.targets)[given].mean():.4f}"
        assert visit.number("share") == f"{100 * given.mean():.1f} %"
        assert visit.number("person") == str((~given).sum())


@pytest.mark.parametrize("width", [360, 768, 1280])
def test_nothing_is_wider_than_the_screen(
    browser: Any, multi: Made, single: Made, pretraining: str, width: int
) -> None:
    for address in (multi[1], single[1], pretraining):
        with Visit(browser, address, viewport={"width": width, "height": 740}) as visit:
            visit.page.evaluate("document.querySelectorAll('details').forEach(each => { each.open = true; })")
            assert visit.page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_in_both_schemes(browser: Any, multi: Made, scheme: str) -> None:
    """A contrast of at least 4.5 (WCAG 2.2, 1.4.3) of every colour of text with what it stands on."""
    with Visit(browser, multi[1], color_scheme=scheme) as visit:
        found = visit.page.evaluate(
            """() => {
              const style = getComputedStyle(document.documentElement);
              const value = name => {
                const probe = document.createElement("span");
                probe.style.color = style.getPropertyValue(name);
                document.body.append(probe);
                const colour = getComputedStyle(probe).color.match(/\\d+/g).map(Number);
                probe.remove();
                return colour;
              };
              const names = ["--ink", "--soft", "--accent", "--good", "--bad", "--warn", "--paper", "--card", "--bar",
                "--code"];
              return Object.fromEntries(names.map(name => [name, value(name)]));
            }"""
        )
        body = visit.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert body == f"rgb({', '.join(map(str, found['--paper']))})"
    for text in ("--ink", "--soft", "--accent", "--good", "--bad", "--warn"):
        for ground in ("--paper", "--card"):
            assert _contrast(found[text], found[ground]) >= 4.5, (text, ground)
    for ground in ("--bar", "--code"):
        assert _contrast(found["--ink"], found[ground]) >= 4.5, ground


def _contrast(one: list[int], other: list[int]) -> float:
    def light(colour: list[int]) -> float:
        parts = [part / 255 for part in colour]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return float(np.dot([0.2126, 0.7152, 0.0722], linear))

    low, high = sorted([light(one), light(other)])
    return (high + 0.05) / (low + 0.05)


def test_figures_take_the_colours_of_the_scheme(browser: Any, multi: Made) -> None:
    seen = {}
    for scheme in ("light", "dark"):
        with Visit(browser, multi[1], color_scheme=scheme) as visit:
            seen[scheme] = visit.page.locator("figure svg text").first.evaluate("each => getComputedStyle(each).fill")
            ink = visit.page.evaluate("getComputedStyle(document.body).color")
            assert seen[scheme] == ink
    assert seen["light"] != seen["dark"]


def test_print_leaves_the_controls_out_and_breaks_no_figure(browser: Any, multi: Made) -> None:
    with Visit(browser, multi[1], color_scheme="dark", viewport={"width": 680, "height": 960}) as visit:  # A4
        visit.page.emulate_media(media="print", color_scheme="dark")
        assert visit.page.locator("#slider").is_hidden() and visit.page.locator("nav").is_hidden()
        assert visit.page.locator("#verdict").is_visible()
        assert visit.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert visit.page.evaluate("document.documentElement.scrollWidth") <= 680
        breaks = visit.page.locator("figure").evaluate_all("all => all.map(each => getComputedStyle(each).breakInside)")
        assert breaks and set(breaks) == {"avoid"}
        assert visit.page.pdf(format="A4").startswith(b"%PDF")


def test_the_tab_key_reaches_every_control(browser: Any, multi: Made) -> None:
    with Visit(browser, multi[1]) as visit:
        seen: list[str] = []
        for _ in range(80):
            visit.page.keyboard.press("Tab")
            seen.append(visit.page.evaluate("document.activeElement.id || document.activeElement.className || ''"))
        assert seen[0] == "skip"
        order = [seen.index(name) for name in ("which", "threshold", "stored")]
        assert order == sorted(order)
        visit.page.locator(".skip").focus()
        outline = visit.page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline == "solid"
        visit.page.keyboard.press("Enter")
        assert visit.page.evaluate("document.activeElement.id") == "main"
