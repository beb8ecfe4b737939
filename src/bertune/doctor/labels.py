"""Labels that are misspelt, rare, absent from a split, empty of meaning, or far from balanced."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import combinations

import numpy as np

from bertune.doctor.corpus import Corpus
from bertune.doctor.findings import Finding, plural, share
from bertune.errors import listed

FEWEST = 10  # training rows of a label; below, what it looks like can hardly be learned or measured
UNEVEN = 5.0  # times as frequent as another label


def examine_labels(corpus: Corpus) -> list[Finding]:
    """All findings about the labels themselves, not about the rows they were given to."""
    hot = corpus.hot
    counts = {name: hot[corpus.where(name)].sum(axis=0) for name in corpus.names}
    findings = _names(corpus, hot)
    if corpus.task.kind == "multi":
        findings += _columns(corpus, hot)
    return findings + _missing(corpus, counts) + _rare(corpus, hot, counts["train"]) + _balance(corpus, hot)


def _names(corpus: Corpus, hot: np.ndarray) -> list[Finding]:
    """Names that may be one label written in two ways; the rows are those of the rarer one."""
    labels, counts = corpus.task.labels, hot.sum(axis=0)
    findings = []
    for one, other in combinations(range(len(labels)), 2):
        rare, common = (one, other) if counts[one] <= counts[other] else (other, one)
        spelling = _spelling(labels[one], labels[other])
        if spelling is None or not _suspicious(spelling, counts[rare], counts[common]):
            continue
        rows = np.flatnonzero(hot[:, rare])
        findings.append(Finding(
            "label_names", "warning", len(rows),
            f"'{labels[rare]}' and '{labels[common]}' differ by {spelling} only ({plural(counts[rare], 'row')} against "
            f"{counts[common]:,})",
            "Where they mean the same, write them alike at the source.", corpus.places(rows),
        ))  # fmt: skip
    return findings


def _spelling(one: str, other: str) -> str | None:
    """What alone two names differ by: case, spaces and marks between words, or a letter; None where it is more."""
    if one.casefold() == other.casefold():
        return "case"
    plain = [re.sub(r"[\s_\-./]+", "", name.casefold()) for name in (one, other)]
    if plain[0] == plain[1]:
        return "spaces or marks"
    return "one letter" if min(map(len, plain)) >= 4 and _one_edit(*plain) else None


def _one_edit(one: str, other: str) -> bool:
    """Whether a letter added, removed or changed, or two neighbours swapped, makes one word the other."""
    short, long = sorted((one, other), key=len)
    if len(long) - len(short) > 1 or any(char.isdigit() for char in one + other):
        return False
    at = next((place for place, (a, b) in enumerate(zip(short, long, strict=False)) if a != b), len(short))
    if len(short) < len(long):
        return short[at:] == long[at + 1 :]
    swapped = short[:at] + short[at + 1 : at + 2] + short[at : at + 1] + short[at + 2 :]
    return short[at + 1 :] == long[at + 1 :] or swapped == long


def _suspicious(spelling: str, rare: int, common: int) -> bool:
    """Names a letter apart may well be two things, such as mice and rice; a slip is rare beside the other."""
    return spelling != "one letter" or rare <= 0.2 * common


def _columns(corpus: Corpus, hot: np.ndarray) -> list[Finding]:
    """0/1 labels that tell nothing: the same in all rows, or the same as another label in all rows."""
    labels, findings = corpus.task.labels, []
    counts = hot.sum(axis=0)
    constant = [number for number, count in enumerate(counts) if count in (0, len(hot))]
    if constant:
        findings.append(Finding(
            "constant_label", "error" if len(constant) == len(labels) else "warning", len(constant),
            f"the same in every row: {_quoted(labels[number] for number in constant)}",
            "There is nothing to learn about them; leave these labels out.",
        ))  # fmt: skip
    for one, other in combinations(sorted(set(range(len(labels))) - set(constant)), 2):
        if (hot[:, one] == hot[:, other]).all():
            findings.append(Finding(
                "duplicate_label", "warning", int(counts[one]),
                f"'{labels[one]}' and '{labels[other]}' are the same in every row", "Leave one of them out.",
            ))  # fmt: skip
    return findings


def _missing(corpus: Corpus, counts: dict[str, np.ndarray]) -> list[Finding]:
    labels, findings = corpus.task.labels, []
    present = sum(counts.values()) > 0
    for name, found in counts.items():
        gone = [labels[number] for number in np.flatnonzero((found == 0) & present)]
        if gone:
            what = "cannot be learned" if name == "train" else "are not measured there"
            findings.append(Finding(
                "label_missing", "warning", len(gone), f"no row of {name} has {_quoted(gone)}",
                f"They {what}: add such rows, or leave the labels out.",
            ))  # fmt: skip
    return findings


def _rare(corpus: Corpus, hot: np.ndarray, counts: np.ndarray) -> list[Finding]:
    few = [number for number, count in enumerate(counts) if 0 < count < FEWEST]
    if not few:
        return []
    train = corpus.where("train")
    rows = train[hot[train][:, few].any(axis=1)]
    told = listed(f"'{corpus.task.labels[number]}' {counts[number]}" for number in few)
    return [Finding(
        "rare_label", "warning", len(rows), f"fewer than {FEWEST} training rows: {told}",
        "Collect more, join them with another label, or leave them out.", corpus.places(rows),
    )]  # fmt: skip


def _quoted(names: Iterable[str]) -> str:
    return listed(f"'{name}'" for name in names)


def _balance(corpus: Corpus, hot: np.ndarray) -> list[Finding]:
    """How uneven the labels are, and what that does to the measures."""
    train = corpus.where("train")
    counts = hot[train].sum(axis=0)
    if corpus.task.num_labels < 2 or not counts.any():
        return []
    most, least = int(counts.argmax()), int(np.where(counts > 0, counts, counts.max()).argmin())
    if counts[most] < UNEVEN * counts[least]:
        return []
    labels = corpus.task.labels
    told = f"'{labels[most]}' has {share(int(counts[most]), len(train), 'training rows')}, '{labels[least]}' "
    if corpus.task.kind == "single":
        right = 100 * counts[most] / len(train)
        implied = f"always answering '{labels[most]}' has an accuracy of {right:.0f} %: look at macro_f1, too"
    else:
        implied = "micro_f1 hardly tells how the rare ones fare: look at macro_f1, too"
    return [Finding(
        "imbalance", "note", int(counts[least]), f"{told}{counts[least]:,}; {implied}",
        "--class-weights balanced helps rare labels at the cost of frequent ones.",
    )]  # fmt: skip
