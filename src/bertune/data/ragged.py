"""Rows of different lengths stored one after another: special tokens put in, too long rows cut, all of it in numpy.

A *column* is the text of one table column as ids. A *side* is one or several columns, joined by the separator token.
A row is `prefix, first side, suffix` or `prefix, first side, between, second side, suffix`, by the model's template.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bertune.data.longtext import chunks_of, head_of
from bertune.errors import ConfigError
from bertune.longtext import LongText

TRUNCATIONS = ("longest-first", "only-second", "head")


@dataclass(frozen=True)
class Special:
    """A special token and the segment it stands in."""

    id: int
    type: int


@dataclass(frozen=True)
class Template:
    """Special tokens around one side, or around and between two."""

    prefix: tuple[Special, ...]
    first_type: int
    between: tuple[Special, ...]
    second_type: int
    suffix: tuple[Special, ...]

    @property
    def num_special(self) -> int:
        return len(self.prefix) + len(self.between) + len(self.suffix)

    def without_types(self) -> Template:
        """The same tokens, all in segment 0 (models that know no segments)."""

        def zero(specials: tuple[Special, ...]) -> tuple[Special, ...]:
            return tuple(Special(special.id, 0) for special in specials)

        return Template(zero(self.prefix), 0, zero(self.between), 0, zero(self.suffix))

    def nameless(self) -> Template:
        """The same places, with the id -1 for every special token."""

        def hide(specials: tuple[Special, ...]) -> tuple[Special, ...]:
            return tuple(Special(-1, special.type) for special in specials)

        return Template(
            hide(self.prefix), self.first_type, hide(self.between), self.second_type, hide(self.suffix)
        )


@dataclass(frozen=True)
class Column:
    """Ids of n texts: `values` int32 [total], `lengths` int64 [n]."""

    values: np.ndarray
    lengths: np.ndarray


@dataclass(frozen=True)
class Truncation:
    """What cutting took from `rows` rows; shares lie between 0 and 1 and count text tokens, not special ones."""

    rows: int
    rows_cut: int
    tokens_cut_share: float
    unknown_share: float
    max_length: int | None = None

    def sentence(self) -> str:
        """One line for the user."""
        if self.rows_cut:
            text = (
                f"Truncation: {self.rows_cut:,} of {self.rows:,} rows ({_percent(self.rows_cut / self.rows)}) lost "
                f"{_percent(self.tokens_cut_share)} of all tokens at max length {self.max_length}."
            )
        elif self.max_length is None:
            text = f"Truncation: none; all {self.rows:,} rows are read whole."
        else:
            text = f"Truncation: none; all {self.rows:,} rows fit into {self.max_length} tokens."
        if self.unknown_share > 0:
            text += f" Unknown to the vocabulary: {_percent(self.unknown_share)} of the tokens."
        return text


@dataclass(eq=False)
class Encoded:
    """n rows of token ids, one after another without padding; row i is `ids[offsets[i]:offsets[i + 1]]`.

    A row is one sequence, or several where a long text is read in chunks.

    ids           int32 [total]    token ids, special tokens included
    types         uint8 [total]    segments
    offsets       int64 [n + 1]
    full_lengths  int32 [n]        tokens before cutting, special tokens included
    unknown       how many of `ids` are the unknown token
    special       special tokens of each sequence (separators that join columns count as text)
    parts         int64 [n]        sequences of each row; None: one each
    part_lengths  int64 [sequences]
    """

    ids: np.ndarray
    types: np.ndarray
    offsets: np.ndarray
    full_lengths: np.ndarray
    unknown: int = 0
    special: int = 0
    max_length: int | None = None
    parts: np.ndarray | None = None
    part_lengths: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each row after cutting, int64 [n]."""
        return np.diff(self.offsets)

    def sequence_lengths(self, rows: np.ndarray) -> np.ndarray:
        """Tokens of each sequence of `rows`, in their order; int64."""
        if self.parts is None or self.part_lengths is None:
            return self.offsets[rows + 1] - self.offsets[rows]
        starts = offsets_of(self.parts)[:-1]
        return np.asarray(self.part_lengths[spans(starts[rows], self.parts[rows])])

    def fingerprint(self) -> str:
        """Hexadecimal SHA-256 over ids, segments and lengths."""
        digest = hashlib.sha256()
        for array in (self.ids, self.types, self.offsets, self.part_lengths):
            if array is not None:
                digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    def truncation(self) -> Truncation:
        """How many rows and what share of the text tokens were cut; unknown tokens as a share of those kept."""
        lost = np.asarray(self.full_lengths, dtype=np.int64) - self.lengths
        sequences = len(self) if self.part_lengths is None else len(self.part_lengths)
        kept = int(self.offsets[-1]) - sequences * self.special
        cut = int(lost.sum())
        return Truncation(
            rows=len(self),
            rows_cut=int(np.count_nonzero(lost)),
            tokens_cut_share=cut / max(kept + cut, 1),
            unknown_share=self.unknown / max(kept, 1),
            max_length=self.max_length,
        )


def concatenate(parts: Sequence[Encoded]) -> Encoded:
    """Rows of one or more `Encoded` of the same tokenizer and options, in order."""
    if len(parts) == 1:
        return parts[0]
    chunked = [(part.parts, part.part_lengths) for part in parts if part.parts is not None]
    return Encoded(
        ids=np.concatenate([part.ids for part in parts]),
        types=np.concatenate([part.types for part in parts]),
        offsets=offsets_of(np.concatenate([part.lengths for part in parts])),
        full_lengths=np.concatenate([part.full_lengths for part in parts]),
        unknown=sum(part.unknown for part in parts),
        special=parts[0].special,
        max_length=parts[0].max_length,
        parts=np.concatenate([counts for counts, _ in chunked]) if chunked else None,
        part_lengths=np.concatenate([lengths for _, lengths in chunked]) if chunked else None,
    )


def kept_lengths(
    first: np.ndarray, second: np.ndarray, *, budget: int | None, truncation: str
) -> tuple[np.ndarray, np.ndarray]:
    """How many tokens each side keeps so that both fit into `budget`; int64 [n] in, int64 [n] out.

    longest-first   the longer side loses its last token until both fit; of equal sides the second loses it. In closed
                    form: a side of at most half the budget is kept whole, otherwise each keeps half and the first side
                    the odd one. (The book's rule. The Rust library gives the odd token to the side that was longer.)
    only-second     the second side is cut, and the first only where it is too long by itself.
    head            the end of the whole is cut: the second side, then the first. The same lengths as only-second.
    """
    if truncation not in TRUNCATIONS:
        raise ConfigError(f"truncation {truncation!r} is unknown; expected one of {', '.join(TRUNCATIONS)}.")
    if budget is None:
        return first, second
    if truncation == "longest-first":
        half = budget // 2
        keep_first = np.minimum(first, np.maximum(budget - half, budget - second))
        keep_second = np.minimum(second, np.maximum(half, budget - first))
    else:
        keep_first = np.minimum(first, budget)
        keep_second = np.minimum(second, budget - keep_first)
    return keep_first, keep_second


def assemble(
    template: Template,
    first: Sequence[Column],
    second: Sequence[Column],
    *,
    separator: int,
    max_length: int | None,
    truncation: str,
    unk_id: int,
    long_text: LongText = LongText(),
) -> Encoded:
    """Rows from the columns of one side, or of two (`second` empty: one side), in sequences of `max_length` tokens.

    truncation: which side a too long row loses (`kept_lengths`); long_text: what of a side remains. unk_id: the unknown
    token, whose share is told; -1 where the vocabulary has none.
    """
    special = template.num_special
    if max_length is not None and max_length <= special:
        raise ConfigError(
            f"max length {max_length} has no room for text beside the {special} special tokens of a row; "
            f"set at least {special + 1}."
        )
    sides = [_joined(first, template.first_type, separator), _joined(second, template.second_type, separator)]
    count = len(first[0].lengths)
    full = [_total(side, count) for side in sides]
    budget = None if max_length is None else max_length - special
    parts, lost = None, np.zeros(count, dtype=np.int64)
    if long_text.chunked is None or budget is None:
        kept = kept_lengths(*full, budget=budget, truncation=truncation)
        ways = ("head", "head") if budget is None else (long_text.first, long_text.second)
        texts = [_shortened(*each) for each in zip(sides, full, kept, ways, strict=True)]
    else:
        texts, parts, lost = _chunked(sides, full, budget, long_text)
    sequences = count if parts is None else int(parts.sum())
    pieces = [
        *_constants(template.prefix, sequences),
        *texts[0],
        *_constants(template.between, sequences),
        *texts[1],
        *_constants(template.suffix, sequences),
    ]
    ids, types, offsets = _scatter(pieces)
    part_lengths = None
    whole = full[0] + full[1] + special
    if parts is not None:
        part_lengths = np.diff(offsets)
        offsets = offsets[offsets_of(parts)]
        whole = np.diff(offsets) + lost
    return Encoded(
        ids=ids,
        types=types,
        offsets=offsets,
        full_lengths=whole.astype(np.int32),
        unknown=int(np.count_nonzero(ids == unk_id)) if unk_id >= 0 else 0,
        special=special,
        max_length=max_length,
        parts=parts,
        part_lengths=part_lengths,
    )


def spans(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Positions `starts[i] ... starts[i] + lengths[i] - 1` of all i, one after another; int64 [sum of lengths]."""
    ends = np.cumsum(lengths)
    return np.repeat(starts - (ends - lengths), lengths) + np.arange(ends[-1] if len(ends) else 0)


def offsets_of(lengths: np.ndarray) -> np.ndarray:
    """Where rows of these lengths begin, and where the last one ends; int64 [n + 1]."""
    offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


@dataclass(frozen=True)
class _Piece:
    """One part of every row: row i takes `values[starts[i] : starts[i] + lengths[i]]`, in segment `type`."""

    values: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray
    type: int


def _constants(specials: tuple[Special, ...], count: int) -> list[_Piece]:
    return [_constant(special.id, special.type, np.ones(count, dtype=np.int64)) for special in specials]


def _constant(token: int, kind: int, lengths: np.ndarray) -> _Piece:
    return _Piece(np.array([token], dtype=np.int32), np.zeros(len(lengths), dtype=np.int64), lengths, kind)


def _joined(columns: Sequence[Column], kind: int, separator: int) -> list[_Piece]:
    """The pieces of one side; a later column without tokens brings no separator."""
    pieces = []
    for number, column in enumerate(columns):
        if number:
            pieces.append(_constant(separator, kind, (column.lengths > 0).astype(np.int64)))
        pieces.append(_Piece(column.values, offsets_of(column.lengths)[:-1], column.lengths, kind))
    return pieces


def _total(pieces: list[_Piece], count: int) -> np.ndarray:
    return np.sum([piece.lengths for piece in pieces], axis=0) if pieces else np.zeros(count, dtype=np.int64)


def _shortened(pieces: list[_Piece], full: np.ndarray, kept: np.ndarray, way: str) -> list[_Piece]:
    """The pieces of a side of `full` tokens with `kept` of them: of its beginning, its end or both."""
    if way == "head":
        return _window(pieces, np.zeros_like(kept), kept)
    begin = head_of(way, kept)
    return [*_window(pieces, np.zeros_like(kept), begin), *_window(pieces, full - (kept - begin), full)]


def _window(pieces: list[_Piece], begin: np.ndarray, end: np.ndarray) -> list[_Piece]:
    """The pieces of a side with only its tokens begin ... end - 1."""
    found = []
    for piece in pieces:
        first = np.clip(begin, 0, piece.lengths)
        last = np.clip(end, 0, piece.lengths)
        found.append(_Piece(piece.values, piece.starts + first, np.maximum(last - first, 0), piece.type))
        begin, end = begin - piece.lengths, end - piece.lengths
    return found


def _chunked(
    sides: list[list[_Piece]], full: list[np.ndarray], budget: int, long_text: LongText
) -> tuple[list[list[_Piece]], np.ndarray, np.ndarray]:
    """Pieces of both sides, a sequence for each chunk; sequences of each row; tokens that each row loses.

    Beside chunks the other side of a pair keeps at most half of the room.
    """
    side = long_text.chunked
    assert side is not None
    other = 1 - side
    kept = np.minimum(full[other], budget // 2)
    room = budget - kept
    if long_text.overlap > 0 and long_text.overlap >= int(room.min(initial=budget)):
        raise ConfigError(
            f"chunks that overlap by {long_text.overlap} tokens: beside special tokens, and the other side of a pair, "
            f"a sequence has room for {int(room.min())}. Overlap less, or raise the max length."
        )
    chunks = chunks_of(full[side], room, overlap=long_text.overlap, most=long_text.most)
    texts: list[list[_Piece]] = [[], []]
    texts[side] = _window(_repeated(sides[side], chunks.owner), chunks.begin, chunks.end)
    way = (long_text.first, long_text.second)[other]
    texts[other] = _repeated(_shortened(sides[other], full[other], kept, way), chunks.owner)
    return texts, chunks.counts, full[side] - chunks.covered + full[other] - kept


def _repeated(pieces: list[_Piece], owner: np.ndarray) -> list[_Piece]:
    """The pieces of a side, of row `owner[i]` in sequence i."""
    return [_Piece(piece.values, piece.starts[owner], piece.lengths[owner], piece.type) for piece in pieces]


def _scatter(pieces: list[_Piece]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ids, types and offsets of the rows that the pieces form side by side."""
    offsets = offsets_of(np.sum([piece.lengths for piece in pieces], axis=0))
    ids = np.empty(offsets[-1], dtype=np.int32)
    types = np.empty(offsets[-1], dtype=np.uint8)
    begin = offsets[:-1].copy()
    for piece in pieces:
        target = spans(begin, piece.lengths)
        ids[target] = piece.values[spans(piece.starts, piece.lengths)]
        types[target] = piece.type
        begin += piece.lengths
    return ids, types, offsets


def _percent(share: float) -> str:
    return "under 0.1 %" if 0 < share < 0.001 else f"{100 * share:.1f} %"
