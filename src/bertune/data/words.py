"""The book's word list (Dive into Deep Learning): whole words, looked up in `vocab.json`.

The book reads SNLI's binary parses, removes their parentheses, splits on white space and lower-cases. Text that is such
a parse is treated so here too; any other text goes through a splitter with the Penn treebank's conventions, which are
those of the parses, so that "bench." does not become unknown.

Many texts are split by several processes. They run this module (`python -m bertune.data.words`) rather than a copy of
the caller's script, so a script without an `if __name__ == "__main__"` guard is not run again by them.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import subprocess
import sys
from array import array
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from bertune.errors import ModelError, listed

if TYPE_CHECKING:
    from bertune.data.ragged import Column, Template

log = logging.getLogger("bertune")

PARALLEL_TEXTS = 20_000  # below this, starting processes takes longer than the work
_SPLITTER = 1  # raised whenever the splitter changes, so that caches of an older one are not used
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_CURLY = str.maketrans({"\u2018": "`", "\u2019": "'", "\u201c": "``", "\u201d": "''", "\u2026": "...", "\u2014": "--"})
_FUSED = {
    "cannot": ("can", "not"), "gonna": ("gon", "na"), "gotta": ("got", "ta"), "wanna": ("wan", "na"),
    "gimme": ("gim", "me"), "lemme": ("lem", "me"), "'tis": ("'t", "is"), "'twas": ("'t", "was"),
}  # fmt: skip
_ENDINGS = ("n't", "'s", "'m", "'d", "'ll", "'re", "'ve")
_TOKEN = re.compile(
    r"""
      [a-z]+(?=[\s,;]|\Z)                                               # most words; the rest is slower to find
    | https?://\S*[\w/] | www\.\S*[\w/] | [\w.+-]{1,64}@[\w-]+(?:\.[\w-]+)+ # addresses
    | -[lr][rsc]b-                                                      # brackets already in Penn's writing
    | ``+ | ''+ | \.\.+ | --+ | [?!]+                                   # runs that stay together
    | (?:[^\W\d_]\.){2,}                                                # u.s. p.m.
    | (?:mr|mrs|ms|dr|st|jr|sr|vs|etc|prof|mt|no|inc|co|ltd|corp)\.(?=\s+\S)   # abbreviations inside a sentence
    | \d+(?:[.,:]\d+)+                                                  # 1,000 10:30 2.5
    | '(?:s|m|d|ll|re|ve|tis|twas|em|\d\ds?)(?!\w) | n't(?!\w)
    | \w+(?:[-&']+\w+)*                                                 # t-shirt, at&t, o'clock, don't
    | \S
    """,
    re.VERBOSE,
)


def words_from_parse(text: str) -> list[str]:
    """Words of a binary parse, as the book takes them: no parentheses, split on white space, lower-cased."""
    return text.replace("(", "").replace(")", "").lower().split()


def is_parse(text: str) -> bool:
    """Whether `text` is one tree of parentheses that stand alone, such as "( ( A dog ) ( runs . ) )"."""
    text = text.strip()
    if not (text.startswith("( ") and text.endswith(" )")):
        return False
    depth, parts = 0, text.split()
    for place, part in enumerate(parts, start=1):
        if part == "(":
            depth += 1
        elif part == ")":
            depth -= 1
            if depth == 0:
                return place == len(parts)
        elif "(" in part or ")" in part:
            return False
    return False


def split_words(text: str) -> list[str]:
    """Lower-cased words by the Penn treebank's conventions.

    Punctuation stands alone, "don't" is "do", "n't", "it's" is "it", "'s", double quotes are `` and '', brackets are
    -lrb- and -rrb-. A full stop ends a word unless it belongs to an abbreviation or a number.
    """
    text = text.translate(_CURLY).lower()
    words: list[str] = []
    for match in _TOKEN.finditer(text):
        token = match.group()
        if token in ('"', "'"):
            words.append(_quote(token, text, match.start()))
        elif token in _BRACKETS:
            words.append(_BRACKETS[token])
        elif token in _FUSED:
            words.extend(_FUSED[token])
        elif "'" in token:
            words.extend(_without_endings(token))
        else:
            words.append(token)
    return words


def _quote(mark: str, text: str, place: int) -> str:
    """Opening or closing, by what stands before it; a single quote opens only what follows at once."""
    opens = place == 0 or text[place - 1].isspace() or text[place - 1] in "([{<`"
    if mark == '"':
        return "``" if opens else "''"
    follows = text[place + 1 : place + 2]
    return "`" if opens and follows and not follows.isspace() else "'"


def _without_endings(token: str) -> list[str]:
    """"shouldn't've" as "should", "n't", "'ve"."""
    endings: list[str] = []
    for _ in range(3):  # no English word has more
        ending = next((ending for ending in _ENDINGS if token.endswith(ending) and token != ending), None)
        if ending is None:
            break
        token = token.removesuffix(ending)
        endings.append(ending)
    return [token, *reversed(endings)]


def words_of(text: str) -> list[str]:
    """Words of a parse or of plain text."""
    return words_from_parse(text) if is_parse(text) else split_words(text)


def spans_of(text: str) -> list[tuple[int, int]]:
    """Begin and end, in characters of `text`, of each of `words_of(text)`."""
    if is_parse(text):
        return [match.span() for match in re.finditer(r"\S+", text) if match.group() not in ("(", ")")]
    # Of some characters the splitter makes several (an ellipsis, a long dash): whose is each of what it reads?
    made = [char.translate(_CURLY).lower() for char in text]
    owner = [place for place, chars in enumerate(made) for _ in chars]
    words, spans = iter(split_words(text)), []
    for match in _TOKEN.finditer("".join(made)):
        begin = match.start()
        while begin < match.end():
            # A lone character may be written longer (a quote is ``); the words of a longer match add up to it.
            width = len(next(words)) if len(match.group()) > 1 else len(next(words)[:1])
            spans.append((owner[begin], owner[begin + width - 1] + 1))
            begin += width
    return spans


def look_up(texts: Iterable[str], vocabulary: dict[str, int], unknown: int) -> tuple[array[int], array[int]]:
    """Ids of all words, one text after another, and the number of words of each text."""
    ids, lengths = array("i"), array("i")
    find = vocabulary.get
    for text in texts:
        words = words_of(text)
        lengths.append(len(words))
        ids.extend([find(word, unknown) for word in words])
    return ids, lengths


class WordList:
    """A vocabulary of whole words: `<cls> a <sep>` and `<cls> a <sep> b <sep>` with segments 0 and 1."""

    takes_parses = True
    chunk_rows = 200_000  # rows handed over at once: enough for the processes to be worth their start

    def __init__(self, tokens: Sequence[str], *, place: str = "vocab.json") -> None:
        from bertune.data.ragged import Special, Template

        self.words = list(tokens)
        # Of a word listed twice the last place counts, as in the book's program.
        self.vocabulary = {token: number for number, token in enumerate(self.words)}
        missing = [token for token in ("<unk>", "<pad>", "<cls>", "<sep>") if token not in self.vocabulary]
        if missing:
            raise ModelError(f"{place}: the word list has no {listed(missing)}, which the book's word list has.")
        self.vocab_size = len(self.words)
        self.pad_id, self.unk_id = self.vocabulary["<pad>"], self.vocabulary["<unk>"]
        start, end = self.vocabulary["<cls>"], self.vocabulary["<sep>"]
        self.single: Template = Template((Special(start, 0),), 0, (), 1, (Special(end, 0),))
        self.pair: Template = Template((Special(start, 0),), 0, (Special(end, 0),), 1, (Special(end, 1),))

    @classmethod
    def read(cls, path: Path) -> WordList:
        """From a JSON list of tokens; the place in the list is the id."""
        try:
            tokens = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ModelError(f"{path}: not readable as a JSON list of words: {error}") from None
        if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
            raise ModelError(f"{path}: expected a JSON list of words (a vocabulary of subwords also needs merges.txt).")
        return cls(tokens, place=str(path))

    def save(self, folder: Path) -> None:
        (folder / "vocab.json").write_text(json.dumps(self.words, ensure_ascii=False), encoding="utf-8")

    def content(self) -> bytes:
        """What the ids of a text depend on."""
        return hashlib.sha256(json.dumps([_SPLITTER, self.words]).encode("utf-8")).digest()

    def spans(self, texts: list[str]) -> list[list[tuple[int, int]]]:
        """Begin and end, in characters, of each word of each text."""
        return [spans_of(text) for text in texts]

    def tokens(self, ids: Iterable[int]) -> list[str]:
        return [self.words[number] for number in ids]

    def column(self, texts: list[str], *, processes: int | None = None) -> Column:
        """Ids of `texts`; with many of them from `processes` processes (by default one a core), with equal result."""
        import numpy as np

        from bertune.data.ragged import Column

        workers = processes or (min(_cores(), len(texts) // 5_000) if len(texts) > PARALLEL_TEXTS else 1)
        share = max(1, -(-len(texts) // workers))
        shares = [texts[begin : begin + share] for begin in range(0, len(texts), share)]
        if len(shares) < 2:
            done = [look_up(texts, self.vocabulary, self.unk_id)]
        else:
            with ThreadPoolExecutor(len(shares)) as pool:  # each thread only waits for its process
                done = list(pool.map(self._in_process, shares))
        return Column(
            values=np.concatenate([np.frombuffer(ids, dtype=np.int32) for ids, _ in done]),
            lengths=np.concatenate([np.frombuffer(lengths, dtype=np.int32) for _, lengths in done]).astype(np.int64),
        )

    def _in_process(self, texts: list[str]) -> tuple[array[int], array[int]]:
        """`look_up` in a process of its own; here, where none can be had."""
        package = str(Path(__file__).resolve().parents[2])
        paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
        request = json.dumps({"words": self.words, "unknown": self.unk_id, "texts": texts}).encode("ascii")
        try:
            answer = subprocess.run(
                [sys.executable, "-m", "bertune.data.words"],
                input=request,
                capture_output=True,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
                check=True,
            ).stdout
            numbers = array("i")
            numbers.frombytes(answer)
        except (OSError, ValueError, subprocess.CalledProcessError) as error:
            log.info("Words are split in this process, because another could not be used: %s", error)
            return look_up(texts, self.vocabulary, self.unk_id)
        return numbers[len(texts) :], numbers[: len(texts)]


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return os.cpu_count() or 1


def _serve() -> None:
    """A process of `WordList.column`: JSON on standard input; lengths, then ids, as integers on standard output."""
    request = json.load(sys.stdin.buffer)
    vocabulary = {token: number for number, token in enumerate(request["words"])}
    ids, lengths = look_up(request["texts"], vocabulary, request["unknown"])
    lengths.extend(ids)
    sys.stdout.buffer.write(lengths.tobytes())


if __name__ == "__main__":
    _serve()
