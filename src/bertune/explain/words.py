"""Which word of the text each token belongs to, whatever the tokenizer cuts words into.

A unit is a run of letters, digits and marks ("don't", "naïve", "2.5"), or any other character that is no space; in
scripts that put no spaces between words every letter is a unit. Units that share a token are one word, and so are all
the tokens within a unit. Hence words never overlap, and no piece stands alone where it is part of something longer.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

import numpy as np

from bertune.data.rows import Rows
from bertune.data.scripts import is_unspaced

APOSTROPHES = "'’"
JOINERS = "\u200c\u200d"

Span = tuple[int, int]


def side_text(columns: Sequence[str]) -> tuple[str, list[int]]:
    """The columns of one side as one text, and where each begins in it; empty ones after the first are skipped."""
    text, begins = columns[0], [0]
    for column in columns[1:]:
        begins.append(len(text) + 1 if column else len(text))
        text += f" {column}" if column else ""
    return text, begins


def side_texts(rows: Rows, row: int) -> list[tuple[str, list[int]]]:
    """`side_text` of each side of a row."""
    sides = [rows.first] if rows.second is None else [rows.first, rows.second]
    return [side_text([column[row] for column in columns]) for columns in sides]


def units(text: str) -> list[Span]:
    """Begin and end of each unit, in order; what lies between them is white space."""
    found: list[Span] = []
    is_open = False  # whether a letter would go on with the last unit
    for place, char in enumerate(text):
        if char.isspace():
            is_open = False
            continue
        letter = (char.isalnum() or char == "_") and not is_unspaced(char)
        mark = unicodedata.category(char)[0] == "M" or char in JOINERS
        adjacent = bool(found) and found[-1][1] == place
        if adjacent and (mark or (is_open and (letter or _is_inside(text, place)))):
            found[-1] = (found[-1][0], place + 1)
        else:
            found.append((place, place + 1))
            is_open = letter
    return found


def _is_inside(text: str, place: int) -> bool:
    """Whether an apostrophe stands between letters, or a point or comma between digits."""
    before, after = text[place - 1], text[place + 1 : place + 2]
    if text[place] in APOSTROPHES:
        return after.isalpha()
    return text[place] in ".," and before.isdigit() and after.isdigit()


def words_of_tokens(text: str, spans: Sequence[Span]) -> tuple[list[Span], np.ndarray]:
    """The words of one side that its tokens make up, and the word of each token, int64 [tokens].

    spans: begin and end of each token, in reading order. A token that is of white space alone goes with the next one.
    """
    parts = units(text)
    unit_of = np.full(len(text) + 1, -1)
    for number, (begin, end) in enumerate(parts):
        unit_of[begin:end] = number
    reach = [_reach(unit_of[begin:end]) for begin, end in spans]
    joined = np.zeros(len(parts) + 1, dtype=bool)  # whether a unit belongs to the same word as the one before
    for first, last in filter(None, reach):
        joined[first + 1 : last + 1] = True
    word_of = np.cumsum(~joined[: len(parts)]) - 1
    known = [int(word_of[found[0]]) if found else -1 for found in reach]
    following = -1
    for token in range(len(known) - 1, -1, -1):
        following = known[token] = following if known[token] < 0 else known[token]
    for token in range(1, len(known)):
        known[token] = known[token - 1] if known[token] < 0 else known[token]
    if known and known[0] < 0:  # white space is all there is
        return [(spans[0][0], max(end for _, end in spans))], np.zeros(len(spans), dtype=np.int64)
    read, numbers = np.unique(np.array(known, dtype=np.int64), return_inverse=True)
    members = [np.flatnonzero(word_of == word) for word in read]
    return [(parts[units[0]][0], parts[units[-1]][1]) for units in members], numbers.reshape(-1)


def _reach(numbers: np.ndarray) -> tuple[int, int] | None:
    """The first and the last unit among some characters; None where there is none."""
    there = numbers[numbers >= 0]
    return (int(there[0]), int(there[-1])) if len(there) else None
