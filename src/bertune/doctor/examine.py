"""The doctor's round: everything that is looked at before training, in order."""

from __future__ import annotations

from bertune.doctor.copies import Copies, examine_copies, find_copies
from bertune.doctor.corpus import Corpus
from bertune.doctor.findings import Finding, by_severity
from bertune.doctor.labels import examine_labels
from bertune.doctor.lengths import examine_lengths
from bertune.doctor.pairs import examine_pairs
from bertune.doctor.shift import examine_shift
from bertune.doctor.texts import examine_texts


def examine(corpus: Corpus, *, unk_id: int | None) -> tuple[list[Finding], Copies]:
    """All findings but those that need a model, the gravest first; and the groups of rows that say the same.

    unk_id: the unknown token of the vocabulary, None where it has none.
    """
    copies = find_copies(corpus)
    findings = [
        *examine_texts(corpus),
        *examine_labels(corpus),
        *examine_copies(corpus, copies),
        *examine_pairs(corpus),
        *examine_lengths(corpus, unk_id),
        *examine_shift(corpus),
    ]
    return by_severity(findings), copies
