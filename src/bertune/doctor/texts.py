"""Texts that are damaged, empty, or not of the kind that the others are."""

from __future__ import annotations

import re
from collections import Counter
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from bertune.doctor.corpus import Corpus
from bertune.doctor.findings import Finding, Severity, plural, share

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier

_WORD = re.compile(r"\w+")
_MARKUP = re.compile(r"</?[a-zA-Z][a-zA-Z0-9]*(\s[^<>]*)?/?>|<!--|&(?:[a-zA-Z]{2,8}|#\d{2,6}|#x[0-9a-fA-F]{2,6});")
# C0 and C1 controls but tab and line ends; zero-width spaces; marks that turn the direction of text. Joiners are
# letters' business in several scripts, and emoji's.
_CONTROL = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\u200b\u2060\ufeff\u202a-\u202e\u2066-\u2069]")
_REPLACED = "\ufffd"

# A language is told from the first characters of a text, and believed where the text is long and the answer sure.
LANGUAGE_CHARS, LANGUAGE_WORDS, SURE = 200, 5, 0.95
DOMINANT = 0.8  # share of the rows that have to be in one language before others stand out

_CHECKS: tuple[tuple[str, Severity, str, str], ...] = (
    ("empty_text", "error", "have no text", "Fill the cells in, or remove the rows; train refuses them."),
    ("one_word", "note", "are one word long", "Look whether they say enough to be labelled."),
    ("markup", "warning", "hold HTML tags or entities",
     "Turn them into plain text unless texts to come have them, too."),
    ("mojibake", "warning", "were read in the wrong encoding at some time",
     "Read the source anew with its --encoding."),
    ("control_characters", "warning", "hold characters that cannot be seen", "Remove them at the source."),
)  # fmt: skip


def examine_texts(corpus: Corpus) -> list[Finding]:
    """A finding for each kind of fault that at least one row has, on either side of a pair."""
    found: dict[str, list[int]] = {kind: [] for kind, *_ in _CHECKS}
    for row, texts in enumerate(zip(*corpus.sides, strict=True)):
        for kind in {kind for text in texts for kind in faults(text)}:
            found[kind].append(row)
    findings = [
        Finding(kind, severity, len(found[kind]), f"{share(len(found[kind]), len(corpus))} {what}", advice,
                corpus.places(found[kind]))
        for kind, severity, what, advice in _CHECKS if found[kind]
    ]  # fmt: skip
    return findings + examine_language(corpus)


def faults(text: str) -> list[str]:
    """The kinds of fault that one text has."""
    if not text or text.isspace():
        return ["empty_text"]
    found = []
    if " " not in text.strip() and len(words := _WORD.findall(text)) <= 1 and not _is_han(words):
        found.append("one_word")
    if ("<" in text or "&" in text) and _MARKUP.search(text):
        found.append("markup")
    if not text.isascii() and (_REPLACED in text or _badly_decoded(text)):
        found.append("mojibake")
    if not text.isprintable() and _CONTROL.search(text):
        found.append("control_characters")
    return found


def _is_han(words: list[str]) -> bool:
    """Chinese sets no spaces between words, so that a sentence looks like one."""
    return any(len(word) > 2 and any("\u3400" <= char <= "\u9fff" for char in word) for word in words)


def _badly_decoded(text: str) -> bool:
    from ftfy.badness import is_bad

    return bool(is_bad(text))


def examine_language(corpus: Corpus) -> list[Finding]:
    """Rows in another language than nearly all others; nothing where no language prevails."""
    rows: list[int] = []
    told: list[str] = []
    for row, texts in enumerate(zip(*corpus.sides, strict=True)):
        answer = language(" ".join(text[:LANGUAGE_CHARS] for text in texts))
        if answer is not None:
            rows.append(row)
            told.append(answer)
    if not told:
        return []
    (main, times), *others = Counter(told).most_common()
    if times < DOMINANT * len(told) or not others:
        return []
    odd = [row for row, answer in zip(rows, told, strict=True) if answer != main]
    which = ", ".join(f"{name} {count:,}" for name, count in others[:5])
    return [
        Finding(
            "language", "warning", len(odd),
            f"{plural(len(odd), 'row')} {'is' if len(odd) == 1 else 'are'} not in the language of the others, {main} "
            f"(by ISO code: {which})",
            "Remove or translate them, or choose a multilingual --model.", corpus.places(odd),
        )
    ]  # fmt: skip


def language(text: str) -> str | None:
    """ISO 639 code of the language of a text, None where it is too short or the answer is not sure."""
    words = len(_WORD.findall(text))
    if words < LANGUAGE_WORDS and not any("\u3040" <= char <= "\u9fff" for char in text[:20]):
        return None
    name, sure = _languages().classify(text)
    return str(name) if np.isfinite(sure) and sure >= SURE else None


@cache
def _languages() -> LanguageIdentifier:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
