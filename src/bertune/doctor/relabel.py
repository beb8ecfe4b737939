"""The relabel queue: rows whose label is doubted, the likeliest error first, each with the evidence against it."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bertune.doctor.corpus import Corpus
from bertune.doctor.findings import Finding, Place, share
from bertune.doctor.mislabeled import Suspects, nearest_rows
from bertune.files import write_atomic

# From here on a suggestion is taken over by the plan without being asked for; docs/results.md has what that is worth.
SURE_SCORE, SURE_NEIGHBOURS = 0.05, 0.7


@dataclass(frozen=True)
class Doubt:
    """A row of the corpus whose label is doubted.

    score: 0 is as wrong as can be, 1 as right; given, better: probability of what was given and of what is suggested;
    neighbours: share of the nearest rows that have what is suggested.
    """

    row: int
    place: Place
    label: tuple[str, ...]
    suggested: tuple[str, ...]
    score: float
    given: float
    better: float
    neighbours: float
    text: str

    @property
    def sure(self) -> bool:
        return self.score <= SURE_SCORE and self.neighbours >= SURE_NEIGHBOURS


def doubts_of(corpus: Corpus, suspects: Suspects, states: np.ndarray) -> list[Doubt]:
    """The suspects among the training rows in words. states: float [training rows, hidden], of the encoder as it is."""
    train = corpus.where("train")
    copies = np.unique([" | ".join(corpus.keys[row]) for row in train], return_inverse=True)[1]
    near = nearest_rows(states, suspects.rows, copies)
    hot = corpus.hot[train]
    names, single = np.array(corpus.task.labels, object), corpus.task.kind == "single"
    found = []
    for number, row in enumerate(train[suspects.rows].tolist()):
        label, suggested = suspects.label[number], suspects.suggested[number]
        wanted = True if single else suggested[label]
        found.append(Doubt(
            row, corpus.place(row), corpus.said(row),
            (str(names[suggested]),) if single else tuple(names[suggested]),
            float(suspects.score[number]), float(suspects.given[number]), float(suspects.better[number]),
            float((hot[near[number], label] == wanted).mean()) if near.shape[1] else 0.0,
            " | ".join(side[row] for side in corpus.sides),
        ))  # fmt: skip
    return found


def doubts_finding(corpus: Corpus, doubts: Sequence[Doubt]) -> list[Finding]:
    """One finding about all of them."""
    if not doubts:
        return []
    sure = sum(doubt.sure for doubt in doubts)
    return [Finding(
        "label_error", "note", len(doubts),
        f"{share(len(doubts), len(corpus.where('train')), 'training rows')} have a label that models which have not "
        f"seen the row doubt; of {sure:,} the nearest rows disagree with it, too",
        "Look at the queue (--queue FILE.csv) from its top, or at the plan of --fix.",
        tuple(doubt.place for doubt in doubts),
    )]  # fmt: skip


def write_queue(path: Path, doubts: Sequence[Doubt]) -> None:
    """A CSV, one row a doubt."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["file", "row", "label", "suggested", "score", "p_label", "p_suggested", "neighbours", "text"])
    for doubt in doubts:
        figures = (f"{value:.4f}" for value in (doubt.score, doubt.given, doubt.better, doubt.neighbours))
        label, suggested = "|".join(doubt.label), "|".join(doubt.suggested)
        writer.writerow([doubt.place["file"], doubt.place["row"], label, suggested, *figures, doubt.text])
    write_atomic(path, text.getvalue())
