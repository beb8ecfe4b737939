"""The pages: templates filled in, with everything that came from a user escaped and nothing that the network would have
to bring."""

from __future__ import annotations

import base64
import hashlib
import json
import shlex
from collections.abc import Mapping
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from bertune import __version__
from bertune.evaluate.baseline import TITLES
from bertune.evaluate.curves import spoken
from bertune.evaluate.tables import result_columns, result_table, shown, verdict
from bertune.explain.markup import STYLE
from bertune.report.figures import MOST, confused, confusion
from bertune.report.gather import Gathered
from bertune.report.ink import Picture
from bertune.report.sweep import shown as beginning
from bertune.report.sweep import sweep

if TYPE_CHECKING:
    from bertune.training.checkup import Checkup

TEXT = 1500  # characters of a text that a page shows
ROWS = 30  # rows of a finding, and labels beyond which a table is cut
TABLE = 200
HOW = {"tfidf": "words and word pairs with a linear model", "second_only": "the same, over the second side alone",
       "majority": "the most frequent answer for every row"}  # fmt: skip
_FOLDER = files("bertune.report") / "templates"


def run_page(
    gathered: Gathered, pictures: Mapping[str, Picture], attributions: Mapping[int, Markup] | None = None,
    remark: str = "",
) -> str:
    """The page of a run. attributions: for a mistake, by its `position`, markup that is shown in place of its text;
    remark: a sentence about them."""
    answers, metrics, split = gathered.answers, gathered.metrics, gathered.split
    found = None if answers is None else sweep(answers)
    table = metrics[split].get("per_label", []) if split is not None else []
    matrix = None
    if answers is not None and answers.task.num_labels <= MOST:
        matrix = confusion(answers).tolist()
    return render(
        "run.html", script=_read("page.js"), title=f"{gathered.name}: report", run=gathered, task=gathered.task,
        metrics=metrics, split=split, metric=metrics["metric"], headline=headline(gathered),
        said=verdict(metrics)[1:],  # the first is told in large type
        table=result_table(result_columns(metrics), gathered.task.kind) if split else [], titles=TITLES, how=HOW,
        pictures={name: Markup(each.inline()) for name, each in pictures.items()},
        labels=table[:TABLE], more_labels=max(0, len(table) - TABLE), matrix=matrix,
        confused=[] if answers is None else confused(answers), sweep=found,
        sweep_json=Markup(script_json(found)) if found else None, begin=beginning(found) if found else None,
        attributions=attributions or {}, remark=remark, text_limit=TEXT, machine=gathered.machine,
        command=f"bertune train --config {shlex.quote(gathered.name)}/run/config.yaml --out "
                f"{shlex.quote(gathered.name + '-again')}",
    )  # fmt: skip


def findings_page(checkup: Checkup, *, name: str) -> str:
    """The page of `bertune check`; name: what was looked at."""
    findings = checkup.to_dict()["findings"]
    rows = {} if checkup.corpus is None else {part: len(each.targets) for part, each in checkup.corpus.parts.items()}
    task = None if checkup.corpus is None else checkup.corpus.task
    return render(
        "doctor.html", script="", title=f"{name}: check of the data", name=name, findings=findings, rows=rows,
        task=task, summary=checkup.summary(), doubts=(checkup.doubts or [])[:ROWS],
        all_doubts=len(checkup.doubts or []), text_limit=TEXT,
    )  # fmt: skip


def headline(gathered: Gathered) -> str:
    """What it comes to, in a sentence that a hurried reader takes along."""
    metrics, split = gathered.metrics, gathered.split
    if split is None:
        return "No rows were held out, so nothing is known about how good this model is."
    gains = {TITLES[name]: found[split].get("gain") for name, found in metrics["baselines"].items()}
    known = {name: gain for name, gain in gains.items() if gain}
    if not known:
        return "There are no simple models beside it to compare with."
    noise = [name for name, gain in known.items() if gain["low"] <= 0 <= gain["high"]]
    worse = [name for name, gain in known.items() if gain["high"] < 0]
    if worse:
        return f"Worse than {' and '.join(worse)}."
    if noise:
        rows = metrics[split]["rows"]
        return f"Not clearly better than {' and '.join(noise)}: on {rows:,} rows the difference may be chance."
    return f"Clearly better than {' and '.join(known)}."


def script_json(value: Any) -> str:
    """JSON for a script element: no character in it can end the element, or begin a comment."""
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def render(template: str, *, script: str, **values: Any) -> str:
    """A template filled in; whatever is no `Markup` is escaped. script: the only one that may run."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, loader=FunctionLoader(_read), trim_blocks=True, lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "spoken": spoken, "shown": shown, "capital": capital, "plainly": plainly, "percent": percent,
        "brief": brief, "number": "{:,}".format,
    }  # fmt: skip
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template(template).render(
        style=Markup(_read("page.css") + STYLE), script=Markup(script), version=__version__, shown_rows=ROWS,
        # Nothing is fetched, and no script runs but this one.
        policy=f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; base-uri 'none'; "
               "form-action 'none'", **values,
    )  # fmt: skip


def brief(label: str, limit: int = 80) -> str:
    """A label where it is told again and again; the table of labels has it whole."""
    return label if len(label) <= limit else label[: limit - 1] + "…"


def capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def plainly(value: Any) -> str:
    """A setting as a person writes it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else str(value)


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _read(name: str) -> str:
    return (_FOLDER / name).read_text(encoding="utf-8")
