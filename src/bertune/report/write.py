"""From a result folder to its page and the files of its figures."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bertune.errors import listed, printable
from bertune.evaluate.card import file_name
from bertune.files import write_atomic
from bertune.report.explained import QUICK, explained
from bertune.report.figures import draw_all
from bertune.report.gather import Gathered, gather
from bertune.report.ink import Picture
from bertune.report.page import findings_page, run_page
from bertune.report.pretraining import draw_pretraining, gather_pretraining, pretraining_page

if TYPE_CHECKING:
    from markupsafe import Markup

    from bertune.config import Config
    from bertune.multitaskconfig import MultiConfig
    from bertune.training.checkup import Checkup

log = logging.getLogger("bertune")


def page_of(out: Path) -> Path:
    """Where the page of a result lies."""
    return out / "run" / "report.html"


def write_report(
    gathered: Gathered, target: Path | None = None, *, attributions: Mapping[int, Markup] | None = None,
    remark: str = "",
) -> Path:
    """Write the page of a result to `target`, or into its run folder with every figure as SVG and PNG in run/figures/;
    returns where it is.

    attributions: for each of `gathered.mistakes`, by its `position`, markup that shows its text with what each word
    added to the answer; a mistake without any shows its plain text. remark: a sentence about them.
    """
    pictures = draw_all(gathered)
    if target is None:
        target = _with_figures(gathered.out, pictures)
    write_atomic(target, run_page(gathered, pictures, attributions, remark))
    return target


def write_pretraining(out: Path, target: Path | None = None) -> Path:
    """The same for the pre-training in `out`."""
    found = gather_pretraining(out)
    pictures = draw_pretraining(found.history)
    if target is None:
        target = _with_figures(out, pictures)
    write_atomic(target, pretraining_page(found, pictures))
    return target


def _with_figures(out: Path, pictures: Mapping[str, Picture]) -> Path:
    """Where the page goes in the run folder, with the figures in files beside it."""
    folder = out / "run" / "figures"
    folder.mkdir(exist_ok=True)
    for name, picture in pictures.items():
        write_atomic(folder / f"{name}.svg", picture.svg)
        write_atomic(folder / f"{name}.png", picture.png)
    return page_of(out)


def write_findings(found: Checkup, target: Path, names: Sequence[str]) -> None:
    """Write the page of `bertune check` over the files `names`."""
    write_atomic(target, findings_page(found, name=listed([file_name(name) for name in names], 3)))


def keep_pages(
    out: Path, config: MultiConfig, *, sources: Mapping[str, Any], say: Callable[[str], None]
) -> None:
    """The pages of the tasks of a joint training, and of what each became alone afterwards."""
    for part in ("tasks", "alone") if config.options.then_alone else ("tasks",):
        for name in config.names:
            keep_page(out / part / name, config.task(name), source=sources.get(name), say=say)


def keep_page(out: Path, config: Config, *, source: Any, say: Callable[[str], None]) -> None:
    """The page of a training that has just ended, where it is wanted and not there yet."""

    def write() -> Path:
        gathered = gather(out, source=source)
        pieces, remark = explained(gathered, limit=QUICK, quick=True)
        return write_report(gathered, attributions=pieces, remark=remark)

    if config.report.page:
        _keep(out, write, say)


def keep_pretraining_page(out: Path, *, say: Callable[[str], None]) -> None:
    """The page of a pre-training that has just ended, where it is not there yet."""
    _keep(out, lambda: write_pretraining(out), say)


def _keep(out: Path, write: Callable[[], Path], say: Callable[[str], None]) -> None:
    """Write the page of a result, where it is not there yet. Nothing that goes wrong with it costs the result."""
    if page_of(out).exists():
        return
    try:
        say(f"The report is in {write()}.")
    except Exception as error:  # noqa: BLE001  (the model is trained, and a picture of it is no reason to fail)
        log.warning(
            "The report could not be made (%s: %s). The result is whole; bertune report %s tries again.",
            type(error).__name__, printable(str(error)), out,
        )  # fmt: skip
