"""Texts become documents, documents tokens on the disk, and tokens pieces and pairs that stay where they belong."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from bertune.config import ReadConfig
from bertune.data import corpus as module
from bertune.data.corpus import Corpus, cut, hold_out, open_corpus, pieces_of, segments_of
from bertune.data.documents import TextSource, file_sources, survey, units
from bertune.data.ragged import offsets_of
from bertune.data.sequences import Sequences
from bertune.data.tokens import Tokenizer
from bertune.errors import ConfigError, DataError
from tiny_runs import PLAIN


def sources_of(path: Path, *, rule: str = "auto", columns: tuple[str, ...] = (), wanted: tuple[str, ...] = ()) -> Any:
    return file_sources([str(path)], ReadConfig(), columns=columns, wanted=wanted, rule=rule)


def documents_of(sources: list[TextSource], *, sentences: bool = False) -> list[list[str]]:
    found: list[list[str]] = []
    for text, begins in units(sources, sentences=sentences):
        if begins:
            found.append([])
        found[-1].append(text)
    return found


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


class TestDocuments:
    def test_each_line_is_one_where_no_blank_line_is_among_them(self, tmp_path: Path) -> None:
        assert documents_of(sources_of(write(tmp_path / "a.txt", "a cat\na dog\n"))) == [["a cat"], ["a dog"]]

    def test_a_blank_line_ends_one_where_there_are_single_ones(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.txt", "a cat\na dog\n\na bird\n")
        assert documents_of(sources_of(path)) == [["a cat\na dog"], ["a bird"]]

    def test_two_blank_lines_end_one_where_there_are_any(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.txt", "a cat\n\na dog\n\n\na bird\n")
        assert documents_of(sources_of(path)) == [["a cat\na dog"], ["a bird"]]
        assert documents_of(sources_of(path, rule="blank")) == [["a cat"], ["a dog"], ["a bird"]]
        assert documents_of(sources_of(path, rule="row")) == [["a cat"], ["a dog"], ["a bird"]]

    def test_rows_of_every_format_are_read_and_each_is_one(self, tmp_path: Path) -> None:
        rows = {"id": [1, 2], "title": ["cats", "dogs"], "abstract": ["a cat.", ""]}
        frame = pl.DataFrame(rows)
        frame.write_csv(tmp_path / "a.csv")
        frame.write_csv(tmp_path / "a.tsv", separator="\t")
        frame.write_parquet(tmp_path / "a.parquet")
        frame.write_ipc(tmp_path / "a.arrow")
        lines = "".join(json.dumps(row) + "\n" for row in frame.to_dicts())
        write(tmp_path / "a.jsonl", lines)
        (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
        for path in sorted(tmp_path.iterdir()):
            assert documents_of(sources_of(path)) == [["cats\na cat."], ["dogs"]], path.name

    def test_files_with_other_columns_are_read_together(self, tmp_path: Path) -> None:
        write(tmp_path / "a.csv", "text,label\na cat,x\n")
        write(tmp_path / "b.txt", "a dog\n")
        found = file_sources([str(tmp_path / name) for name in ("a.csv", "b.txt")], ReadConfig(), rule="auto")
        assert documents_of(found) == [["a cat"], ["a dog"]]

    def test_the_columns_of_a_task_are_preferred_whatever_their_case(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.csv", "text,TITLE,BODY\nno,a cat,a dog\n")
        assert documents_of(sources_of(path, wanted=("title", "body"))) == [["a cat\na dog"]]

    def test_a_column_that_is_not_there_is_an_error(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.csv", "text,label\na cat,x\n")
        with pytest.raises(DataError, match=r"no column 'txt'; did you mean 'text'\?"):
            sources_of(path, columns=("txt",))

    def test_columns_that_are_not_known_have_to_be_named(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.csv", "x,y\na cat,a dog\n")
        with pytest.raises(ConfigError, match=r"which column is the text\? Pass --text COLUMN; the columns are x, y\."):
            sources_of(path)

    def test_sentences_end_at_marks_and_lines(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.txt", 'He said "no." Then? Yes!\nA cat\n\n猫。狗！\n')
        assert documents_of(sources_of(path), sentences=True) == [
            ['He said "no." ', "Then? ", "Yes!", "A cat"], ["猫。", "狗！"],
        ]  # fmt: skip

    def test_a_long_document_comes_in_several_units(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.txt", "\n".join(["x" * 4000] * 5) + "\n\n\nthe end\n")
        assert [len(document) for document in documents_of(sources_of(path))] == [2, 1]

    def test_a_survey_tells_texts_and_borders_apart(self, tmp_path: Path) -> None:
        found = {
            survey(sources_of(write(tmp_path / "a.txt", text)), sentences=False).digest
            for text in ("a\nb\n\nc\n", "a\n\nb\nc\n", "b\na\n\nc\n", "ab\n\nc\n")
        }
        assert len(found) == 4

    def test_a_corpus_without_text_is_an_error(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.csv", "text,label\n,x\n  ,y\n")
        with pytest.raises(DataError, match=r"a\.csv: no text to pre-train on; every row is blank in text\."):
            survey(sources_of(path), sentences=False)


@pytest.fixture
def tokenizer(tiny_bert: Path) -> Tokenizer:
    return Tokenizer.load(tiny_bert)


@pytest.fixture
def books(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    documents = [
        "\n".join(" ".join(random.choice(PLAIN, random.integers(3, 9))) + "." for _ in range(random.integers(1, 30)))
        for _ in range(40)
    ]
    return write(tmp_path / "books.txt", "\n\n\n".join(documents) + "\n")


def opened(path: Path, tokenizer: Tokenizer, tmp_path: Path, *, sentences: bool = False) -> Corpus:
    sources = sources_of(path)
    found = survey(sources, sentences=sentences)
    return open_corpus(
        sources, found, tokenizer, sentences=sentences, cache=tmp_path / "cache", fallback=tmp_path / "other"
    )


class TestShards:
    def test_hold_the_tokens_of_the_texts_in_order(self, books: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
        corpus = opened(books, tokenizer, tmp_path)
        texts = ["\n".join(document) for document in documents_of(sources_of(books))]
        wanted = tokenizer.column(texts)
        assert (corpus.bounds == offsets_of(wanted.lengths)).all()
        assert (corpus.take(np.array([0]), np.array([corpus.tokens])) == wanted.values).all()

    def test_are_made_once_and_memory_mapped(
        self, books: Path, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first = opened(books, tokenizer, tmp_path)
        monkeypatch.setattr(Tokenizer, "column", None)  # would fail if it were asked
        second = opened(books, tokenizer, tmp_path)
        assert isinstance(second.shards[0], np.memmap) and second.key == first.key
        assert (second.units == first.units).all()

    def test_may_be_many_and_pieces_reach_over_their_borders(
        self, books: Path, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        whole = opened(books, tokenizer, tmp_path / "one")
        monkeypatch.setattr(module, "SHARD", 100)
        monkeypatch.setattr(module, "_BATCH_UNITS", 3)
        many = opened(books, tokenizer, tmp_path / "many")
        assert len(many.shards) > 10 and all(len(shard) == 100 for shard in many.shards[:-1])
        assert many.shard == 100
        starts, lengths = np.array([95, 390, 0]), np.array([30, 250, 7])
        assert (many.take(starts, lengths) == whole.take(starts, lengths)).all()

    @pytest.mark.parametrize("limit", ["0", "1000"])
    def test_lie_elsewhere_where_the_cache_does_not_take_them(
        self, books: Path, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str
    ) -> None:
        monkeypatch.setenv("BERTUNE_CACHE_LIMIT", limit)
        corpus = opened(books, tokenizer, tmp_path)
        assert corpus.tokens > 1000
        assert not list(tmp_path.glob("cache/corpora/*")) and list(tmp_path.glob("other/corpora/*"))


class TestPieces:
    def test_runs_are_cut_at_a_width(self) -> None:
        starts, lengths, owner = cut(np.array([0, 10, 15]), np.array([10, 4, 0]), 4)
        assert (starts.tolist(), lengths.tolist(), owner.tolist()) == ([0, 4, 8, 10], [4, 4, 2, 4], [0, 0, 0, 1])

    def test_cover_every_token_of_their_documents_once(
        self, books: Path, tokenizer: Tokenizer, tmp_path: Path
    ) -> None:
        corpus = opened(books, tokenizer, tmp_path)
        pieces = pieces_of(corpus, np.arange(len(corpus)), width=20)
        assert (pieces.starts == offsets_of(pieces.lengths)[:-1]).all() and pieces.lengths.sum() == corpus.tokens
        assert pieces.lengths.max() == 20
        ends = pieces.starts + pieces.lengths
        assert (pieces.starts >= corpus.bounds[pieces.documents]).all()
        assert (ends <= corpus.bounds[pieces.documents + 1]).all()

    def test_segments_are_whole_sentences_and_short_documents_have_two(
        self, books: Path, tokenizer: Tokenizer, tmp_path: Path
    ) -> None:
        corpus = opened(books, tokenizer, tmp_path, sentences=True)
        segments = segments_of(corpus, np.arange(len(corpus)), width=20)
        assert segments.lengths.max() <= 20 and segments.lengths.sum() == corpus.tokens
        assert np.isin(segments.starts, corpus.units).all()
        sentences = np.diff(corpus.documents)
        count = np.bincount(segments.documents, minlength=len(corpus))
        assert (count[sentences > 1] > 1).all() and (count[sentences == 1] == 1).all()

    def test_a_sentence_longer_than_a_segment_is_cut(self) -> None:
        corpus = Corpus([np.arange(50)], np.array([0, 45, 50]), np.array([0, 2]), "")
        assert segments_of(corpus, np.array([0]), width=20).lengths.tolist() == [20, 20, 10]

    def test_a_share_of_the_documents_is_held_out(self, books: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
        corpus = opened(books, tokenizer, tmp_path)
        train, held = hold_out(corpus, share=0.1, most=10**6, seed=0, least=1)
        assert sorted([*train, *held]) == list(range(40))
        sizes = np.diff(corpus.bounds)
        assert 0.1 <= sizes[held].sum() / corpus.tokens < 0.2
        again, other = (hold_out(corpus, share=0.1, most=10**6, seed=seed, least=1)[1] for seed in (0, 1))
        assert again.tolist() == held.tolist() != other.tolist()
        assert len(hold_out(corpus, share=0.1, most=5, seed=0, least=1)[1]) == 1
        assert not len(hold_out(corpus, share=0.0, most=10**6, seed=0, least=1)[1])

    def test_nothing_is_held_out_of_a_single_document(self) -> None:
        corpus = Corpus([np.arange(50)], np.array([0, 50]), np.array([0, 1]), "")
        train, held = hold_out(corpus, share=0.1, most=100, seed=0, least=1)
        assert (train.tolist(), held.tolist()) == ([0], [])


@pytest.fixture
def pairs(books: Path, tokenizer: Tokenizer, tmp_path: Path) -> Sequences:
    corpus = opened(books, tokenizer, tmp_path, sentences=True)
    segments = segments_of(corpus, np.arange(len(corpus)), width=20)
    return Sequences(corpus, segments, tokenizer.template(True), pairs=True, masking=None, seed=0)


class TestPairs:
    def test_half_are_neighbours_and_the_others_come_from_other_documents(self, pairs: Sequences) -> None:
        owner, follows = pairs.pieces.documents, []
        for number in range(20):
            turn = pairs.turn(number)
            assert turn.second is not None and turn.follows is not None
            same = owner[turn.second] == owner[pairs.first]
            assert (same == (turn.follows == 1)).all()
            assert (turn.second == pairs.first + 1)[same].all()
            follows.append(turn.follows)
        share = np.concatenate(follows)
        assert abs(share.mean() - 0.5) < 4 * 0.5 / np.sqrt(len(share))

    def test_every_other_segment_of_other_documents_is_drawn_now_and_then(self, pairs: Sequences) -> None:
        drawn = set()
        for number in range(200):
            turn = pairs.turn(number)
            assert turn.second is not None and turn.follows is not None
            drawn |= set(turn.second[turn.follows == 0].tolist())
        assert drawn == set(range(len(pairs.pieces)))

    def test_look_as_the_tokenizer_writes_a_pair(self, pairs: Sequences, tokenizer: Tokenizer) -> None:
        turn, rows = pairs.turn(0), np.array([5, 0])
        sample = pairs.sample(rows, 0)
        assert turn.second is not None and turn.follows is not None
        assert (sample.lengths == turn.lengths[rows]).all()
        for place, row in enumerate(rows):
            span = slice(sample.cu[place], sample.cu[place + 1])
            ids, types = sample.ids[span], sample.types[span]
            one, two = ([pairs.pieces.starts[number], pairs.pieces.lengths[number]]
                        for number in (pairs.first[row], turn.second[row]))  # fmt: skip
            first, second = (pairs.corpus.take(np.array([start]), np.array([length])) for start, length in (one, two))
            cls, sep = (tokenizer.template(False).prefix[0].id, tokenizer.template(False).suffix[0].id)
            assert ids.tolist() == [cls, *first, sep, *second, sep]
            assert types.tolist() == [0] * (len(first) + 2) + [1] * (len(second) + 1)
        assert (sample.follows == turn.follows[rows]).all()

    def test_a_single_document_has_none(self) -> None:
        corpus = Corpus([np.arange(50)], np.array([0, 25, 50]), np.array([0, 2]), "")
        with pytest.raises(DataError, match="Next sentences take two documents"):
            Sequences(corpus, segments_of(corpus, np.array([0]), width=25), None, pairs=True, masking=None, seed=0)  # type: ignore[arg-type]
