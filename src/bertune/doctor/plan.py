"""A plan of what to do to the training rows: written to be reviewed, then applied; the data file is never changed."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from bertune.data.read import Table
from bertune.data.rows import rows_of
from bertune.data.tasks import Task
from bertune.doctor.copies import Copies
from bertune.doctor.corpus import Corpus
from bertune.errors import ConfigError, DataError, listed, nearest
from bertune.files import write_atomic
from bertune.settings import read_yaml, sentence

if TYPE_CHECKING:
    from bertune.doctor.relabel import Doubt

EXCERPT = 100  # characters of a text that are shown
HEADER = """\
# What bertune check would do to the training rows. Review it: change any `action` to drop, relabel (to `label`) or
# keep, or remove rows from the list. Then: bertune train ... --plan {name}
# Validation and test rows, and the data files themselves, are never changed.
"""


class Entry(BaseModel):
    """What to do with one row. sha256: the beginning of the hash of its text, so that another row is not mistaken for
    it; label: the labels it shall have, for relabel."""

    model_config = ConfigDict(extra="forbid")

    file: str
    row: int
    action: Literal["drop", "relabel", "keep"]
    label: list[str] = []
    was: list[str] = []
    why: str = ""
    text: str = ""
    sha256: str

    @model_validator(mode="before")
    @classmethod
    def _one_label(cls, values: Any) -> Any:
        """A label may be written without brackets, and a number in place of its text."""
        if isinstance(values, dict):
            values = dict(values)
            for name in ("label", "was"):
                held = values.get(name, [])
                values[name] = [str(item) for item in (held if isinstance(held, list) else [held])]
        return values


class Plan(BaseModel):
    model_config = ConfigDict(extra="forbid")

    version: Literal[1] = 1
    rows: list[Entry] = []

    def counts(self) -> Counter[str]:
        """How many rows have each action."""
        return Counter(entry.action for entry in self.rows)

    def write(self, path: str | Path) -> None:
        """YAML with a word on how to use it."""
        import yaml

        path = Path(path)
        dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
        values = self.model_dump(mode="json", exclude_defaults=True) | {"version": self.version}
        text = yaml.dump(values, Dumper=dumper, allow_unicode=True, sort_keys=False, width=10_000)
        write_atomic(path, HEADER.format(name=path.name) + text)


def make_plan(corpus: Corpus, copies: Copies, doubts: Sequence[Doubt]) -> Plan:
    """Proposals for training rows: repeated rows and rows that other splits hold are dropped; doubted labels are
    changed where the evidence is strong; what is left to judgement is listed with `keep`."""
    actions: dict[int, tuple[str, tuple[str, ...], str]] = {}
    train = corpus.names.index("train")
    for group in copies.same:
        inside = [row for row in group if corpus.split[row] == train]
        held = [row for row in group if corpus.split[row] != train]
        labels = {corpus.said(row) for row in group}
        for place, row in enumerate(inside):
            if held:
                actions[row] = ("drop", (), f"leak: also {_named(corpus, held[0])}")
            elif len(labels) > 1:
                actions[row] = _contradiction(corpus, inside, row)
            elif place:
                actions[row] = ("drop", (), f"duplicate of {_named(corpus, inside[0])}")
    for group in copies.near:
        held = [row for row in group if corpus.split[row] != train]
        for row in group if held else ():
            if corpus.split[row] == train and row not in actions:
                actions[row] = ("keep", (), f"near_leak: nearly {_named(corpus, held[0])}")
    for doubt in doubts:
        if doubt.row not in actions:
            evidence = (f"label_error: probability {doubt.given:.2f}, of what is suggested {doubt.better:.2f}; "
                        f"{100 * doubt.neighbours:.0f} % of the nearest rows have that")  # fmt: skip
            actions[doubt.row] = ("relabel" if doubt.sure else "keep", doubt.suggested, evidence)
    return Plan(rows=[_entry(corpus, row, *actions[row]) for row in sorted(actions)])


def _contradiction(corpus: Corpus, rows: list[int], row: int) -> tuple[str, tuple[str, ...], str]:
    """Of copies with different labels those of the minority are dropped; without a majority a person has to decide."""
    counts = Counter(corpus.said(other) for other in rows)
    (common, times), *_ = counts.most_common()
    others = listed(sorted({" + ".join(label) or "no label" for label in counts if label != corpus.said(row)}), 4)
    why = f"contradiction: the same text is also labelled {others}"
    if 2 * times <= len(rows):
        return ("keep", (), why)
    return ("keep" if corpus.said(row) == common else "drop", (), why)


def _entry(corpus: Corpus, row: int, action: str, label: tuple[str, ...], why: str) -> Entry:
    texts = [side[row] for side in corpus.sides]
    place = corpus.place(row)
    shown = " | ".join(texts)
    return Entry(
        file=place["file"], row=place["row"], action=action, label=list(label), was=list(corpus.said(row)), why=why,
        text=shown if len(shown) <= EXCERPT else shown[: EXCERPT - 3] + "...", sha256=digest(texts),
    )


def _named(corpus: Corpus, row: int) -> str:
    place = corpus.place(row)
    return f"{place['split']} row {place['row']} of {place['file']}"


def digest(texts: Sequence[str]) -> str:
    """Twelve hexadecimal digits of the SHA-256 over the sides of a row."""
    content = "\0".join(texts).encode("utf-8", "surrogatepass")
    return hashlib.sha256(content).hexdigest()[:12]


def read_plan(path: str) -> Plan:
    """The plan in a file; ConfigError where it is none."""
    values = read_yaml(path, what="plan", holds="`version` and `rows`, as bertune check --fix writes them")
    try:
        return Plan.model_validate(values)
    except ValidationError as error:
        raise ConfigError(sentence(error, f"--plan {path}")) from None


def apply_plan(
    plan: Plan, task: Task, table: Table, targets: np.ndarray, others: Iterable[Table], say: Callable[[str], None]
) -> tuple[np.ndarray, np.ndarray]:
    """Training rows as planned: their targets, and the numbers of those that stay, int64.

    table, targets: the training rows; others: the tables of the other splits, whose rows are left alone, with a word.
    DataError where a row is not there, stands there twice or has another text, or a label is unknown.
    """
    places = _places(table)
    held = {place for other in others for place in _places(other)}
    sides = rows_of(task, table, allow_empty=True).sides()
    targets, stays = targets.copy(), np.ones(len(table), bool)
    done: Counter[str] = Counter()
    seen = set()
    for entry in plan.rows:
        place, where = (entry.file, entry.row), f"the plan, {entry.file} row {entry.row}"
        if place in seen:
            raise DataError(f"{where}: stands in it twice; remove one of the entries.")
        seen.add(place)
        row = places.get(place)
        if row is None and place not in held:
            raise DataError(f"{where}: there is no such row in the data. Make a new plan with bertune check --fix.")
        if row is None:
            done["elsewhere"] += entry.action != "keep"
            continue
        if digest([side[row] for side in sides]) != entry.sha256:
            raise DataError(
                f"{where}: the text is not the one that the plan was made for. "
                "Make a new plan with bertune check --fix."
            )
        done[entry.action] += 1
        if entry.action == "drop":
            stays[row] = False
        elif entry.action == "relabel":
            targets[row] = _target(task, entry.label, where)
    say(f"Plan: {done['drop']:,} training rows dropped, {done['relabel']:,} relabelled, {done['keep']:,} kept.")
    if done["elsewhere"]:
        say(f"Plan: {done['elsewhere']:,} of its rows are not training rows here, and are left as they are.")
    return targets, np.flatnonzero(stays)


def _places(table: Table) -> dict[tuple[str, int], int]:
    """File, by its short name, and row number of each row -> its index."""
    names = table.short_names
    numbered = zip(table.file_index.tolist(), table.row_numbers.tolist(), strict=True)
    return {(names[file], number): row for row, (file, number) in enumerate(numbered)}


def _target(task: Task, labels: list[str], where: str) -> Any:
    """What `relabel` makes of a row."""
    for label in labels:
        if label not in task.labels:
            near = nearest(label, task.labels) or f"; expected one of {listed(task.labels)}."
            raise DataError(f"{where}: '{label}' is not a label of this task{near}")
    numbers = [task.labels.index(label) for label in labels]
    if task.kind == "multi":
        target = np.zeros(task.num_labels, np.float32)
        target[numbers] = 1
        return target
    if len(numbers) != 1:
        raise DataError(f"{where}: relabel needs the one label that the row shall have, found {len(numbers)}.")
    return numbers[0]
