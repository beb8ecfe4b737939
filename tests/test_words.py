"""The book's word list: parses as the book reads them, plain text by Penn conventions, equal results from processes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bertune.data.tasks import Rows
from bertune.data.tokens import Encoded, Tokenizer
from bertune.data.words import WordList, is_parse, look_up, spans_of, split_words, words_from_parse, words_of
from bertune.errors import ModelError

LIST = ["<unk>", "<pad>", "<mask>", "<cls>", "<sep>", "a", "dog", "runs", "on", "the", "bench", ".", "do", "n't"]
AWKWARD = ["cannot", "don't", '"', "'", "…", "—", "(", "İ", "Σ", " ", "u.s.", "...", "'tis", "1,000", "-lrb-", "{"]
PARSE = "( ( A dog ) ( ( runs ( on ( the bench ) ) ) . ) )"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "vocab.json").write_text(json.dumps(LIST), encoding="utf-8")
    (tmp_path / "config.json").write_text('{"model_type": "d2l-bert"}', encoding="utf-8")
    return tmp_path


def pairs(tokenizer: Tokenizer, first: list[str], second: list[str], max_length: int | None = None) -> Encoded:
    return tokenizer.encode(Rows((first,), (second,)), max_length=max_length, truncation="longest-first")


def test_parses_lose_parentheses_and_are_lower_cased() -> None:
    assert words_from_parse(PARSE) == ["a", "dog", "runs", "on", "the", "bench", "."]
    assert words_of(PARSE) == words_of("A dog runs on the bench.")


@pytest.mark.parametrize(
    ("text", "parse"),
    [(PARSE, True), ("( Nice . )", True), ("(not a parse)", False), ("( a ) and ( b )", False), ("( open", False),
     ("A dog.", False), ("( a) b )", False), ("", False), ("( ( a )", False)],
)  # fmt: skip
def test_a_parse_is_one_tree_of_parentheses_that_stand_alone(text: str, parse: bool) -> None:
    assert is_parse(text) is parse


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A man sits on a bench.", "a man sits on a bench ."),
        ("Don't! It's Mr. Smith's.", "do n't ! it 's mr. smith 's ."),
        ("can't won't shouldn't've I'm we'll", "ca n't wo n't should n't 've i 'm we 'll"),
        ('He said "hello" (twice)...', "he said `` hello '' -lrb- twice -rrb- ..."),
        ("the dogs' toys, 'quoted'", "the dogs ' toys , ` quoted '"),
        ("\u201cCurly\u201d it\u2019s \u2014 odd\u2026", "`` curly '' it 's -- odd ..."),
        ("$1,000.50 at 10:30 p.m. in the U.S.", "$ 1,000.50 at 10:30 p.m. in the u.s."),
        ("T-shirt end.Next one; really?!", "t-shirt end . next one ; really ?!"),
        ("I cannot go, gonna stay", "i can not go , gon na stay"),
        ("do n't touch `` this '' -LRB- please -RRB-", "do n't touch `` this '' -lrb- please -rrb-"),
        ("", ""),
    ],
)
def test_plain_text_is_split_by_penn_conventions(text: str, words: str) -> None:
    assert split_words(text) == words.split()


@given(st.text(max_size=60))
def test_every_text_is_split_without_losing_letters(text: str) -> None:
    letters = [c for c in text.lower() if c.isalpha() and c.isascii()]
    penn = {"-lrb-", "-rrb-", "-lsb-", "-rsb-", "-lcb-", "-rcb-"}
    found = [c for word in words_of(text) if word not in penn for c in word if c.isalpha() and c.isascii()]
    assert found == letters or any(mark in text.lower() for mark in penn)
    assert all(word and not any(c.isspace() for c in word) for word in words_of(text))


def test_pairs_stand_between_cls_and_sep_in_segments_0_and_1(folder: Path) -> None:
    tokenizer = Tokenizer.load(folder)
    encoded = pairs(tokenizer, [PARSE], ["Dogs don't run."])
    words = "<cls> a dog runs on the bench . <sep> <unk> do n't <unk> . <sep>"
    assert " ".join(tokenizer.tokens(encoded.ids)) == words
    assert encoded.types.tolist() == [0] * 9 + [1] * 6
    assert encoded.truncation().unknown_share == pytest.approx(2 / 12)
    assert (tokenizer.pad_id, tokenizer.unk_id, tokenizer.vocab_size, tokenizer.takes_parses) == (1, 0, len(LIST), True)


def test_ties_in_truncation_shorten_the_hypothesis(folder: Path) -> None:
    tokenizer = Tokenizer.load(folder)
    encoded = pairs(tokenizer, ["a dog runs on"], ["the bench . dog"], max_length=8)
    assert " ".join(tokenizer.tokens(encoded.ids)) == "<cls> a dog runs <sep> the bench <sep>"


def test_processes_give_the_same_ids_as_one(folder: Path) -> None:
    words = WordList.read(folder / "vocab.json")
    texts = ["A dog runs.", PARSE, "", "lone \ud800 half", "Don't — “quote”"] * 7
    ids, lengths = look_up(texts, words.vocabulary, words.unk_id)
    column = words.column(texts, processes=2)
    assert column.values.tolist() == list(ids) and column.lengths.tolist() == list(lengths)
    assert column.values.dtype == np.int32 and column.lengths.dtype == np.int64


def test_without_processes_the_work_is_done_here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = WordList.read(folder / "vocab.json")
    monkeypatch.setattr("sys.executable", str(folder / "no-such-python"))
    assert words.column(["a dog", "runs"], processes=2).values.tolist() == [5, 6, 7]


def test_the_word_list_is_saved_and_read_again(folder: Path) -> None:
    tokenizer = Tokenizer.load(folder)
    tokenizer.save(folder / "saved")
    again = Tokenizer.load(folder / "saved")
    assert json.loads((folder / "saved" / "vocab.json").read_text(encoding="utf-8")) == LIST
    assert again.fingerprint == tokenizer.fingerprint


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('["a"]', "has no <unk>, <pad>, <cls>, <sep>"),
        ('{"a": 0}', "expected a JSON list of words"),
        ("[", "not readable"),
    ],
)
def test_a_wrong_word_list_is_a_clear_error(folder: Path, content: str, message: str) -> None:
    (folder / "vocab.json").write_text(content, encoding="utf-8")
    with pytest.raises(ModelError, match=message):
        Tokenizer.load(folder)


@pytest.mark.parametrize(
    "text, parts",
    [
        ("It’s “fine” (really)… can't", ["It", "’s", "“", "fine", "”", "(", "really", ")", "…", "ca", "n't"]),
        ("( ( A dog ) ( runs . ) )", ["A", "dog", "runs", "."]),
        ("Gimme İstanbul — now...", ["Gim", "me", "İ", "İ", "stanbul", "—", "now", "..."]),
    ],
)
def test_every_word_is_found_again_in_the_text(text: str, parts: list[str]) -> None:
    assert [text[begin:end] for begin, end in spans_of(text)] == parts
    assert len(words_of(text)) == len(parts)


@given(st.lists(st.one_of(st.text(max_size=4), st.sampled_from(AWKWARD)), max_size=15).map("".join))
def test_every_word_of_any_text_has_its_place(text: str) -> None:
    spans = spans_of(text)
    assert len(spans) == len(words_of(text))
    assert all(0 <= begin < end <= len(text) for begin, end in spans)
    assert spans == sorted(spans)
