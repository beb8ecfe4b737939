"""The model card: README.md of a result, with front matter that the model hub reads, and no path of this machine."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from bertune.data.tasks import Task
from bertune.errors import printable
from bertune.evaluate.rule import Rule
from bertune.evaluate.tables import label_table, result_table
from bertune.longtext import LongText

# Licence identifiers that the hub knows, among those that encoders are published under.
_LICENCES = {
    "apache-2.0", "mit", "bsd-3-clause", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0", "cc0-1.0",
    "gpl-3.0", "openrail", "afl-3.0",
}  # fmt: skip
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True, kw_only=True)
class CardInfo:
    """What the card says. Texts may hold anything: they are escaped; paths are cut down to file names.

    results: metrics (as `evaluate` returns them) by the name of the split, and beside them what `result_columns` gives.
    verdict: what they come to. split_rows: rows by split, in the order train, valid, test. settings: options worth
    telling.
    """

    name: str  # of the model, for the title
    version: str  # of bertune
    task: Task
    files: Sequence[str]
    split_rows: Mapping[str, int]
    split_rule: str  # fractions or files, stratified or grouped, the seed
    results: Mapping[str, Mapping[str, Any]]
    verdict: Sequence[str]
    settings: Mapping[str, Any]
    max_length: int
    truncation: str
    chosen_by_valid: bool  # whether the valid split chose which weights were kept
    opens_in_transformers: bool
    base_title: str
    stands_alone: bool = True  # or beside a base (LoRA) or an encoder (several tasks) that it needs
    base_repo: str | None = None  # its name on the hub
    base_licence: str | None = None
    base_note: str | None = None
    base_languages: str | None = None
    rule: Rule = field(default_factory=Rule)
    long_text: LongText = field(default_factory=LongText)
    remarks: Sequence[str] = field(default_factory=tuple)  # more sentences for the limits: rows cut, rows left out

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as in run/card.json: without any path of this machine."""
        plain = {each.name: getattr(self, each.name) for each in fields(self)}
        plain["files"] = [file_name(file) for file in self.files]
        return plain | {
            "task": self.task.to_dict(), "rule": self.rule.model_dump(mode="json"), "long_text": asdict(self.long_text)
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> CardInfo:
        """What `to_dict` gave."""
        made: dict[str, Any] = {
            "task": Task.from_dict(values["task"]), "rule": Rule.model_validate(values["rule"]),
            "long_text": LongText(**values.get("long_text", {})),
        }  # fmt: skip
        return cls(**{**values, **made})


def model_card(info: CardInfo) -> str:
    """README.md as text."""
    sections = [
        _front_matter(info),
        f"# {escaped(info.name)}",
        _purpose(info),
        "## Results",
        _results(info),
        "## How to use",
        _usage(info),
        "## Data",
        _data(info),
        "## Training",
        _training(info),
        "## Intended use",
        _intended(info),
        "## Limits",
        _bullets(_limits(info)),
        f"Made with bertune {escaped(info.version)}.",
    ]
    return "\n\n".join(sections) + "\n"


def merged_card(readme: str, values: Mapping[str, Any], *, opens_in_transformers: bool) -> str:
    """README.md of a result that was made to stand alone; as it was where its owner has edited it. values: of its
    run/card.json."""
    info = CardInfo.from_dict(values)
    if readme != model_card(info):
        return readme
    return model_card(replace(info, opens_in_transformers=opens_in_transformers, stands_alone=True))


def escaped(text: object) -> str:
    """Any text as one line of Markdown (also in a table cell) that shows exactly it: no HTML, links or emphasis."""
    line = printable(str(text))
    line = re.sub(r"([\\`*\[\]|~$#])", r"\\\1", html.escape(line, quote=False))
    line = re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", line)  # inside a word it means nothing
    # Bare addresses would become links, and a list's or a heading's mark must not open the line.
    line = re.sub(r"(?i)(https?|ftp):(?=//)|(www)\.", lambda m: f"{m[1]}&#58;" if m[1] else f"{m[2]}&#46;", line)
    return re.sub(r"^(\d*)([-+=.)])(?=\W|$)", r"\1\\\2", line.strip()) or "(empty)"


def markdown_table(table: Sequence[Sequence[str]]) -> str:
    """A table whose cells are escaped; the first column is aligned left, the rest right."""
    head, *rows = [[escaped(cell) if cell else " " for cell in row] for row in table]
    marks = ["---"] + ["---:"] * (len(head) - 1)
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, marks, *rows])


def _front_matter(info: CardInfo) -> str:
    import yaml

    single = info.task.kind == "single"
    licence = (info.base_licence or "").lower()
    values: dict[str, Any] = {
        "license": licence if licence in _LICENCES else None,
        "library_name": "transformers" if info.opens_in_transformers else "bertune",
        "pipeline_tag": "text-classification",
        "base_model": info.base_repo if info.base_repo and _HUB_NAME.fullmatch(info.base_repo) else None,
        "tags": ["bertune", f"{info.task.kind}-label", *(["sentence-pairs"] if info.task.is_pair else [])],
        "metrics": ["accuracy", "f1", "matthews_correlation"] if single else ["f1", "roc_auc"],
    }
    known = {key: value for key, value in values.items() if value is not None}
    return f"---\n{yaml.safe_dump(known, sort_keys=False, allow_unicode=True)}---"


def _purpose(info: CardInfo) -> str:
    task = info.task
    what = "pairs of texts" if task.is_pair else "texts"
    how = "Each row gets exactly one of" if task.kind == "single" else "Each row gets any number of"
    labels = _joined(task.labels, 40)
    second = f" and, as the second text, {_joined(task.text_pair)}" if task.is_pair else ""
    return (
        f"This model classifies {what}. {how} {task.num_labels} labels: {labels}. "
        f"It reads {_joined(task.text)}{second}.\n\n"
        f"It was fine-tuned from {escaped(info.base_title)}."
    )


def _results(info: CardInfo) -> str:
    if not info.results:
        return "No split was evaluated."
    parts = [" ".join(map(escaped, info.verdict))] if info.verdict else []
    parts.append(markdown_table(result_table(info.results, info.task.kind)))
    split = next((name for name in ("test", "valid") if name in info.results), None)
    if split is not None and info.results[split].get("per_label"):
        parts += [f"By label, on the {split} split:", markdown_table(label_table(info.results[split]))]
    if "valid" in info.results and info.chosen_by_valid:
        parts.append("The epoch was chosen by the valid split, so its figures lean to the bright side.")
    return "\n\n".join(parts)


def _usage(info: CardInfo) -> str:
    task = info.task
    if len(task.text) > 1 or len(task.text_pair) > 1:
        row = json.dumps(dict.fromkeys((*task.text, *task.text_pair), "..."), ensure_ascii=False)
    else:
        row = '("first text", "second text")' if task.is_pair else '"some text"'
    blocks = [
        f'```python\nimport bertune\n\nmodel = bertune.load("FOLDER")\nmodel.predict([{row}])\n'
        f"model.predict_proba([{row}])  # one column a label, in the order above\n```",
        "```sh\nbertune predict FOLDER new.csv --out scored.csv\n```",
    ]
    if info.opens_in_transformers:
        blocks.append(_transformers_usage(info))
    elif not info.stands_alone:
        blocks.append(
            "A part of this model's weights stands in another folder, so it opens in bertune only; "
            "`bertune convert FOLDER OUT` makes one that stands alone."
        )
    else:
        blocks.append("The head of this model is not one that transformers has, so it opens in bertune only.")
    return "\n\n".join(blocks)


def _transformers_usage(info: CardInfo) -> str:
    def side(name: str, columns: Sequence[str]) -> str:
        if len(columns) == 1:
            return f'{name} = "..."\n'
        parts = ", ".join(json.dumps(column, ensure_ascii=False) for column in columns)
        return f"{name} = tokenizer.sep_token.join([...])  # {parts}\n"

    task = info.task
    texts = side("first", task.text) + (side("second", task.text_pair) if task.is_pair else "")
    activation = "softmax(-1)" if task.kind == "single" else "sigmoid()"
    return (
        "Or in transformers:\n\n```python\n"
        "from transformers import AutoModelForSequenceClassification, AutoTokenizer\n\n"
        'tokenizer = AutoTokenizer.from_pretrained("FOLDER")\n'
        'model = AutoModelForSequenceClassification.from_pretrained("FOLDER")\n'
        f"{texts}inputs = tokenizer(first, {'second, ' if task.is_pair else ''}truncation=True, "
        f'max_length={info.max_length}, return_tensors="pt")\n'
        f"probabilities = model(**inputs).logits.{activation}\n```"
    )


def _data(info: CardInfo) -> str:
    table = [["split", "rows"], *([name, f"{rows:,}"] for name, rows in info.split_rows.items())]
    rule = escaped(info.split_rule.rstrip("."))
    return f"Files: {_joined(map(file_name, info.files))}.\n\n{markdown_table(table)}\n\nSplits: {rule}."


def _training(info: CardInfo) -> str:
    rows = [[name, _setting(value)] for name, value in info.settings.items() if value is not None]
    return markdown_table([["setting", "value"], *rows])


def _intended(info: CardInfo) -> str:
    threshold = (
        "It always names one of its labels, also for texts that none of them fits."
        if info.task.kind == "single"
        else _cuts(info)
    )
    return (
        f"Sorting texts that resemble the training data into the labels above. {threshold} Before relying on it, "
        "evaluate it on labelled texts of your own: `bertune evaluate FOLDER own.csv`. Do not let it decide about "
        "people without somebody who checks."
    )


def _cuts(info: CardInfo) -> str:
    """Where labels begin, in a sentence."""
    rule = info.rule
    few = f"a row gets at least {rule.min_labels}" if rule.min_labels else "a row may get none"
    few += "" if rule.max_labels is None else f", and at most {rule.max_labels}"
    if not rule.thresholds:
        return f"A label is given where its probability is at least one half; {few}."
    if len(set(rule.thresholds)) == 1:
        return f"A label is given where its calibrated probability is at least {rule.thresholds[0]:.3g}; {few}."
    pairs = zip(info.task.labels, rule.thresholds, strict=True)
    cuts = _joined((f"{label} {cut:.3g}" for label, cut in pairs), 40)
    return f"A label is given where its calibrated probability reaches its threshold ({cuts}); {few}."


def _limits(info: CardInfo) -> Iterable[str]:
    yield info.long_text.sentence(info.max_length, info.truncation, pair=info.task.is_pair)
    if info.base_languages:
        yield f"Languages of the base model: {escaped(info.base_languages)}."
    if info.base_note:
        yield f"About the base model {escaped(info.base_title)}: {escaped(info.base_note)}."
    if info.base_licence in (None, "", "not stated"):
        yield "The licence of the base model is not known here; look it up before passing this model on."
    yield "It repeats what its training data holds, errors and one-sidedness included."
    if info.rule.curves:
        yield (
            "Probabilities were calibrated on the valid split by a curve for each label. bertune does so by itself; "
            "other programs see the logits as they are."
        )
    elif info.rule.temperatures:
        heats = _joined((f"{heat:.3g}" for heat in info.rule.temperatures), 40)
        moves = _joined((f"{bias:+.3g}" for bias in info.rule.biases), 40)
        yield (
            f"Probabilities were calibrated on the valid split: logits are divided by {heats}"
            f"{f', then {moves} is added, label by label' if moves else ''}. bertune does so by itself; other programs "
            "see the logits as they are."
        )
    else:
        yield "Probabilities are the model's own and have not been calibrated."
    if info.rule.sets is not None:
        yield (
            "Beside an answer it tells a set of labels that holds the right one in "
            f"{100 * info.rule.sets.coverage:g} % of the rows, as long as rows are like those that it was measured on."
        )
    if info.rule.abstain is not None:
        yield f"Answers with a confidence below {info.rule.abstain:.3g} are left to a person."
    for remark in info.remarks:
        yield escaped(remark)


def file_name(path: str) -> str:
    """The last part of a local path of any system; addresses such as hf:// stay whole."""
    return path if "://" in path else PureWindowsPath(PurePosixPath(path).name).name or path


def _setting(value: Any) -> str:
    if isinstance(value, str):
        local = PurePosixPath(value).is_absolute() or PureWindowsPath(value).is_absolute() or value.startswith("~")
        return file_name(value) if local else value
    if isinstance(value, (list, tuple)):
        return ", ".join(_setting(item) for item in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _joined(names: Iterable[str], limit: int = 20) -> str:
    shown = [escaped(name) for name in names]
    rest = len(shown) - limit
    return ", ".join(shown[:limit]) + (f" and {rest} more" if rest > 0 else "")


def _bullets(sentences: Iterable[str]) -> str:
    return "\n".join(f"- {sentence}" for sentence in sentences)
