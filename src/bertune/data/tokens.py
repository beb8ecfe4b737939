"""Text -> token ids: one tokenizer over every kind of vocabulary, batched, cut by a stated rule, cached on disk.

    tokenizer = Tokenizer.load(folder)
    encoded = encode_cached(tokenizer, rows, max_length=128, truncation="longest-first", cache=cache_root())
    print(encoded.truncation().sentence())
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import astuple
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bertune.data.cache import read_entry, write_entry
from bertune.data.ragged import Column, Encoded, Template, assemble, concatenate
from bertune.data.vocab import Subwords
from bertune.data.words import WordList
from bertune.errors import ModelError
from bertune.longtext import LongText

if TYPE_CHECKING:
    from bertune.data.tasks import Rows

__all__ = ["Encoded", "Tokenizer", "encode_cached"]

_FORMAT = 3  # of cached entries; raised whenever the same input would give other arrays or values
_LOOKED_FOR = "tokenizer.json, vocab.txt, vocab.json with merges.txt, or the word list vocab.json"


class Tokenizer:
    """Token ids of texts and pairs.

    vocab_size   ids lie in [0, vocab_size)
    pad_id       id of the padding token
    unk_id       id of the unknown token, None where the vocabulary has none
    takes_parses the book's word list: SNLI's binary parses are read where a table has them
    fingerprint  hexadecimal SHA-256 over everything that the ids of a text depend on
    """

    def __init__(self, vocabulary: Subwords | WordList) -> None:
        self._vocabulary = vocabulary
        self.vocab_size = vocabulary.vocab_size
        self.pad_id = vocabulary.pad_id
        self.unk_id = vocabulary.unk_id if vocabulary.unk_id >= 0 else None
        self.takes_parses = vocabulary.takes_parses
        templates = json.dumps([astuple(vocabulary.single), astuple(vocabulary.pair)])
        self.fingerprint = hashlib.sha256(vocabulary.content() + templates.encode("utf-8")).hexdigest()

    @classmethod
    def load(cls, folder: str | Path) -> Tokenizer:
        """The tokenizer whose files lie in `folder`; ModelError where there is none or it is damaged."""
        folder = Path(folder)
        word_list = folder / "vocab.json"
        if (folder / "tokenizer.json").is_file() or (folder / "vocab.txt").is_file():
            return cls(Subwords.read(folder))
        if word_list.is_file() and (folder / "merges.txt").is_file():
            return cls(Subwords.read(folder))
        if word_list.is_file():
            return cls(WordList.read(word_list))
        pieces = sorted(folder.glob("*.model"))
        if pieces:
            convert = f"AutoTokenizer.from_pretrained({str(folder)!r}).save_pretrained({str(folder)!r})"
            raise ModelError(
                f"{pieces[0]}: a SentencePiece file needs to be converted to tokenizer.json once: "
                "pip install transformers sentencepiece protobuf, then "
                f'python -c "from transformers import AutoTokenizer; {convert}"'
            )
        raise ModelError(f"{folder}: no tokenizer found; looked for {_LOOKED_FOR}.")

    def save(self, folder: str | Path) -> None:
        """Writes the files that `load` and transformers' AutoTokenizer open (a word list: vocab.json, for `load`)."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self._vocabulary.save(folder)

    def num_special(self, pair: bool) -> int:
        """Special tokens of a row."""
        return (self._vocabulary.pair if pair else self._vocabulary.single).num_special

    def column(self, texts: list[str]) -> Column:
        """Ids of texts without special tokens, on all cores."""
        return self._vocabulary.column(texts)

    def template(self, pair: bool) -> Template:
        """The special tokens around a text, or around and between two."""
        return self._vocabulary.pair if pair else self._vocabulary.single

    @property
    def mask_id(self) -> int | None:
        """Id of the mask token, None where the vocabulary has none."""
        return self._vocabulary.mask_id if isinstance(self._vocabulary, Subwords) else None

    def special_ids(self) -> list[int]:
        """Ids that stand for no text, the unknown token among them."""
        return self._vocabulary.special_ids() if isinstance(self._vocabulary, Subwords) else []

    def continuations(self) -> np.ndarray:
        """bool [vocab_size]: pieces that go on with a word which an earlier token began."""
        if not isinstance(self._vocabulary, Subwords):
            return np.zeros(self.vocab_size, dtype=bool)
        return self._vocabulary.continuations()

    def tokens(self, ids: Iterable[int]) -> list[str]:
        """The written form of each id."""
        return self._vocabulary.tokens(ids)

    def encode(
        self, rows: Rows, *, max_length: int | None, truncation: str, long_text: LongText = LongText()
    ) -> Encoded:
        """Ids of all rows; columns of a side are joined by the separator token, empty ones after the first skipped.

        `max_length` counts special tokens, which are always kept (None: nothing is cut); `truncation` is one of
        longest-first, only-second, head (see `ragged.kept_lengths`), and `long_text` says what remains of a side that
        is cut. Never fails on a text: lone surrogates are read as U+FFFD.
        """
        vocabulary = self._vocabulary
        template = vocabulary.single if rows.second is None else vocabulary.pair
        parts = []
        for begin in range(0, max(len(rows), 1), vocabulary.chunk_rows):
            part = slice(begin, begin + vocabulary.chunk_rows)
            first = [vocabulary.column(list(texts[part])) for texts in rows.first]
            second = [vocabulary.column(list(texts[part])) for texts in rows.second or ()]
            parts.append(
                assemble(
                    template,
                    first,
                    second,
                    separator=vocabulary.single.suffix[0].id,
                    max_length=max_length,
                    truncation=truncation,
                    unk_id=vocabulary.unk_id,
                    long_text=long_text,
                )
            )
        return concatenate(parts)

    def places(
        self, rows: Rows, *, max_length: int | None, truncation: str, long_text: LongText = LongText()
    ) -> np.ndarray:
        """What each token of `encode(rows, ...)` was made of: int32 [tokens, 4] of side (0 or 1), column of the side,
        and begin and end in characters; of special tokens and separators -1, -1, 0, 0."""
        vocabulary = self._vocabulary
        found: list[tuple[int, int, int, int]] = []
        sides: list[list[Column]] = [[], []]
        for side, columns in enumerate((rows.first, rows.second or ())):
            for number, texts in enumerate(columns):
                spans = vocabulary.spans(list(texts))
                begin = len(found)
                found += [(side, number, *span) for row in spans for span in row]
                # Numbers of tokens in place of their ids, so that they are joined and cut as the ids are.
                numbers = np.arange(begin, len(found), dtype=np.int32)
                sides[side].append(Column(numbers, np.array([len(row) for row in spans], dtype=np.int64)))
        template = vocabulary.single if rows.second is None else vocabulary.pair
        cut = assemble(
            template.nameless(), *sides, separator=-1, max_length=max_length, truncation=truncation, unk_id=-1,
            long_text=long_text,
        )  # fmt: skip
        return np.array([*found, (-1, -1, 0, 0)], dtype=np.int32)[cut.ids]


def encode_cached(
    tokenizer: Tokenizer, rows: Rows, *, max_length: int | None, truncation: str, cache: Path | None,
    long_text: LongText = LongText(),
) -> Encoded:
    """`tokenizer.encode`, kept under `cache` (usually `cache_root()`; None: not kept) by content and options.

    Arrays that come from the cache are memory-mapped and read-only. A damaged entry is made again; where nothing can be
    written the result stays in memory. Both are said through the logger "bertune".
    """
    how: dict[str, Any] = {"max_length": max_length, "truncation": truncation, "long_text": long_text}
    if cache is None or len(rows) == 0:
        return tokenizer.encode(rows, **how)
    key = _key(tokenizer, rows, [max_length, truncation, *astuple(long_text)])
    found = _open(cache, key)
    if found is not None:
        return found
    encoded = tokenizer.encode(rows, **how)
    arrays = {
        "ids": encoded.ids,
        "types": encoded.types,
        "offsets": encoded.offsets,
        "full_lengths": encoded.full_lengths,
    }
    if encoded.parts is not None and encoded.part_lengths is not None:
        arrays |= {"parts": encoded.parts, "part_lengths": encoded.part_lengths}
    values = {
        "unknown": encoded.unknown,
        "special": encoded.special,
        "max_length": encoded.max_length,
    }
    stored = write_entry(cache, "tokens", key, arrays, values)
    return (_open(cache, key) if stored else None) or encoded


def _open(cache: Path, key: str) -> Encoded | None:
    found = read_entry(cache, "tokens", key)
    if found is None:
        return None
    arrays, values = found
    return Encoded(
        ids=arrays["ids"],
        types=arrays["types"],
        offsets=arrays["offsets"],
        full_lengths=arrays["full_lengths"],
        unknown=values["unknown"],
        special=values["special"],
        max_length=values["max_length"],
        parts=arrays.get("parts"),
        part_lengths=arrays.get("part_lengths"),
    )


def _key(tokenizer: Tokenizer, rows: Rows, how: list[object]) -> str:
    """SHA-256 over the texts, column by column with their lengths, and all that decides how they become ids."""
    columns = [*rows.first, *(rows.second or ())]
    shape = [_FORMAT, tokenizer.fingerprint, len(rows), len(rows.first), len(columns), *how]
    digest = hashlib.sha256(json.dumps(shape).encode("utf-8"))
    for texts in columns:
        for begin in range(0, len(texts), 4096):
            content = [text.encode("utf-8", "surrogatepass") for text in texts[begin : begin + 4096]]
            digest.update(np.array([len(text) for text in content], dtype="<i8").tobytes())
            digest.update(b"".join(content))
    return digest.hexdigest()
