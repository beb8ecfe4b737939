"""Texts that do not fit: exactly the tokens that were asked for are read, in chunks or from either end."""

from __future__ import annotations

import json
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

import bertune
from bertune.bundle import Bundle
from bertune.config import Config
from bertune.data.batch import make_batch
from bertune.data.longtext import chunks_of, head_of
from bertune.data.ragged import Column, Encoded, Special, Template, assemble
from bertune.data.tasks import Rows
from bertune.data.tokens import Tokenizer, encode_cached
from bertune.errors import ConfigError, Interrupted
from bertune.longtext import LongText
from bertune.model.noise import Noise
from bertune.training.longest import with_way
from technique_runs import Stop, Stopper
from tiny_models import loaded
from tiny_runs import QUICK, TOPICS, Told, pair_rows, sentence, topic_rows

pytestmark = pytest.mark.usefixtures("one_thread", "no_pictures")

CLS, SEP = Special(101, 0), Special(102, 0)
SINGLE = Template((CLS,), 0, (), 0, (SEP,))
PAIR = Template((CLS,), 0, (SEP,), 1, (Special(102, 1),))
NUMBERS = list(range(1000, 1030))


def column(*texts: list[int]) -> Column:
    return Column(np.array(sum(texts, []), np.int32), np.array([len(text) for text in texts], np.int64))  # noqa: RUF017


def read(
    *texts: list[int], max_length: int | None, long_text: LongText, second: list[list[int]] | None = None,
    truncation: str = "longest-first",
) -> Encoded:
    return assemble(
        SINGLE if second is None else PAIR, [column(*texts)], [column(*second)] if second else [], separator=102,
        max_length=max_length, truncation=truncation, unk_id=0, long_text=long_text,
    )  # fmt: skip


def rows_of(encoded: Encoded) -> list[list[int]]:
    return [part.tolist() for part in np.split(encoded.ids, encoded.offsets[1:-1])]


def sequences_of(encoded: Encoded) -> list[list[int]]:
    lengths = encoded.sequence_lengths(np.arange(len(encoded)))
    return [part.tolist() for part in np.split(encoded.ids, np.cumsum(lengths)[:-1])]


class TestEnds:
    @pytest.mark.parametrize(
        ("way", "kept"),
        [
            ("head", NUMBERS[:10]),
            ("tail", NUMBERS[-10:]),
            ("head+tail", NUMBERS[:5] + NUMBERS[-5:]),
            ("3+tail", NUMBERS[:3] + NUMBERS[-7:]),
        ],
    )
    def test_a_long_text_keeps_the_tokens_of_the_ends_that_were_asked_for(self, way: str, kept: list[int]) -> None:
        encoded = read(NUMBERS, [7, 8], max_length=12, long_text=LongText(way))

        assert rows_of(encoded) == [[101, *kept, 102], [101, 7, 8, 102]]
        assert encoded.full_lengths.tolist() == [32, 4]

    def test_head_and_tail_are_128_and_the_rest_as_in_the_paper(self) -> None:
        text = list(range(1000, 2000))
        encoded = read(text, max_length=512, long_text=LongText("head+tail"))

        assert rows_of(encoded) == [[101, *text[:128], *text[-382:], 102]]

    def test_where_fewer_than_256_are_kept_head_and_tail_share_them(self) -> None:
        assert head_of("head+tail", np.array([255, 256, 300, 9, 1, 0])).tolist() == [128, 128, 128, 5, 1, 0]

    def test_columns_of_a_side_are_one_text_with_separators(self) -> None:
        encoded = assemble(
            SINGLE, [column([1, 2, 3]), column([4, 5, 6])], [], separator=102, max_length=6,
            truncation="longest-first", unk_id=0, long_text=LongText("1+tail"),
        )  # fmt: skip

        assert rows_of(encoded) == [[101, 1, 4, 5, 6, 102]]

    def test_each_side_of_a_pair_is_cut_in_its_own_way(self) -> None:
        encoded = read(
            NUMBERS, max_length=13, long_text=LongText("tail", "head+tail"), second=[[1, 2, 3, 4, 5, 6, 7, 8, 9]]
        )

        assert rows_of(encoded) == [[101, *NUMBERS[-5:], 102, 1, 2, 3, 8, 9, 102]]
        assert encoded.types.tolist() == [0] * 7 + [1] * 6

    @pytest.mark.parametrize("way", ["middle", "N+tail", "0+tail", "head+", "-3+tail"])
    def test_another_way_is_an_error_that_names_the_ways(self, way: str) -> None:
        with pytest.raises(ConfigError, match=r"head, tail, head\+tail, N\+tail, hierarchical"):
            LongText(way)


class TestChunks:
    @settings(max_examples=200, deadline=None)
    @given(
        st.lists(st.integers(0, 400), min_size=1, max_size=5), st.integers(2, 60), st.integers(0, 30),
        st.integers(1, 20),
    )  # fmt: skip
    def test_chunks_cover_the_text_share_the_overlap_and_are_equally_long(
        self, lengths: list[int], room: int, overlap: int, most: int
    ) -> None:
        overlap = min(overlap, room - 1)
        found = chunks_of(np.array(lengths), np.full(len(lengths), room), overlap=overlap, most=most)

        for number, length in enumerate(lengths):
            mine = found.owner == number
            begin, end = found.begin[mine].tolist(), found.end[mine].tolist()
            assert len(begin) == found.counts[number] <= most
            assert begin[0] == 0 and end[-1] == found.covered[number] <= length
            assert all(right - left == overlap for right, left in zip(end[:-1], begin[1:], strict=True))
            sizes = np.subtract(end, begin)
            assert sizes.max() <= room and sizes.max() - sizes.min() <= 1
            if found.covered[number] < length:
                assert found.counts[number] == most
            needed = 1 if length <= room else 1 + -(-(length - room) // (room - overlap))
            assert found.counts[number] == min(needed, most)

    def test_each_chunk_is_a_sequence_with_its_own_special_tokens_and_positions(self) -> None:
        encoded = read(NUMBERS[:11], [7], max_length=6, long_text=LongText("hierarchical"))
        batch = make_batch(encoded, np.array([1, 0]))

        assert sequences_of(encoded) == [
            [101, *NUMBERS[:3], 102], [101, *NUMBERS[3:7], 102], [101, *NUMBERS[7:11], 102], [101, 7, 102]
        ]
        assert batch.rows.tolist() == [1, 0] and batch.parts is not None and batch.parts.tolist() == [1, 3]
        assert batch.lengths.tolist() == [3, 5, 6, 6]
        assert batch.positions.tolist() == [*range(3), *range(5), *range(6), *range(6)]
        assert batch.ids.tolist() == [101, 7, 102, 101, *NUMBERS[:3], 102, 101, *NUMBERS[3:7], 102,
                                      101, *NUMBERS[7:11], 102]  # fmt: skip
        assert batch.within_row.tolist() == [*range(3), *range(17)]

    def test_the_other_side_of_a_pair_stands_beside_every_chunk(self) -> None:
        encoded = read(
            NUMBERS[:9], max_length=10, long_text=LongText("hierarchical", "tail"), second=[[1, 2, 3, 4, 5]]
        )

        assert sequences_of(encoded) == [
            [101, *NUMBERS[place : place + 3], 102, 3, 4, 5, 102] for place in (0, 3, 6)
        ]  # fmt: skip
        assert encoded.types.tolist() == ([0] * 5 + [1] * 4) * 3

    def test_what_lies_behind_the_last_chunk_is_told_as_cut(self) -> None:
        encoded = read(NUMBERS, [1], max_length=6, long_text=LongText("hierarchical", most=3))
        told = encoded.truncation()

        assert encoded.lengths.tolist() == [18, 3] and encoded.full_lengths.tolist() == [36, 3]
        assert told.rows_cut == 1 and told.tokens_cut_share == pytest.approx(18 / 31)

    def test_only_one_side_can_be_read_in_chunks(self) -> None:
        with pytest.raises(ConfigError, match="only one side"):
            LongText("hierarchical", "hierarchical")

    def test_without_a_longest_length_a_row_is_one_sequence(self) -> None:
        encoded = read(NUMBERS, max_length=None, long_text=LongText("hierarchical"))

        assert rows_of(encoded) == [[101, *NUMBERS, 102]] and encoded.parts is None

    def test_the_cache_keeps_chunks_and_tells_ways_apart(self, tiny_bert: Path, tmp_path: Path) -> None:
        tokenizer = Tokenizer.load(tiny_bert)
        rows = Rows(first=(["the cat saw the dog near the old house and left .", "a fish"],), second=None)
        found = {
            way: encode_cached(
                tokenizer, rows, max_length=6, truncation="longest-first", cache=tmp_path, long_text=LongText(*way)
            )
            for way in (("hierarchical",), ("tail",), ("hierarchical", "head", 1)) for _ in range(2)
        }

        for way, encoded in found.items():
            own = tokenizer.encode(rows, max_length=6, truncation="longest-first", long_text=LongText(*way))
            assert encoded.fingerprint() == own.fingerprint() and encoded.truncation() == own.truncation()
        assert len({encoded.fingerprint() for encoded in found.values()}) == 3


def long_rows(count: int, *, words: int = 40, seed: int = 0) -> list[dict[str, Any]]:
    """Long texts of plain words with three of their topic at the very end."""
    random = np.random.default_rng(seed)
    names = [list(TOPICS)[number] for number in random.integers(0, len(TOPICS), count)]
    return [
        {"text": f"{sentence(random, [], words=words)} {' '.join(random.choice(TOPICS[name], 3))}", "label": name}
        for name in names
    ]


def train(out: Path, model: Path, rows: Any, *, told: Told | None = None, **named: Any) -> Any:
    changed = {name.replace("__", "."): value for name, value in named.pop("settings", {}).items()}
    return bertune.train(rows, out=out, model=model, settings=QUICK | changed, listener=told or Told(), **named)


class TestModel:
    @pytest.mark.parametrize("join", ["mean", "max", "attention"])
    def test_a_row_of_one_chunk_is_what_the_plain_model_makes_of_it_dropout_included(
        self, tiny_bert: Path, join: str
    ) -> None:
        tokenizer = Tokenizer.load(tiny_bert)
        rows = Rows(first=([row["text"] for row in topic_rows(6)],), second=None)
        plain, _ = loaded(tiny_bert)
        joined, _ = loaded(tiny_bert, join=join)
        for way, model in (("head", plain), ("hierarchical", joined)):
            encoded = tokenizer.encode(
                rows, max_length=24, truncation="longest-first", long_text=LongText(way)
            )
            batch, noise = make_batch(encoded, np.arange(6)), Noise(torch.device("cpu"))
            noise.seek(1, 2, batch)
            with torch.no_grad():
                logits = model(model.inputs(batch)), model(model.inputs(batch), noise=noise)
            if model is plain:
                wanted = logits
        assert all(torch.allclose(one, other, atol=1e-6) for one, other in zip(wanted, logits, strict=True))

    @pytest.mark.parametrize("pooling", ["cls", "mean"])
    def test_chunks_are_joined_by_what_was_asked_for(self, tiny_bert: Path, pooling: str) -> None:
        encoded = read([*range(5, 19)], [6], [*range(5, 12)], max_length=6, long_text=LongText("hierarchical"))
        encoded = replace(encoded, ids=np.where(encoded.ids > 100, 2, encoded.ids).astype(np.int32))
        model, _ = loaded(tiny_bert, pooling=pooling, head="linear", join="max")
        batch = make_batch(encoded, np.array([2, 0, 1]))
        with torch.no_grad():
            pooled = model.pooled(model.inputs(batch))
            alone = replace(encoded, offsets=np.concatenate(([0], np.cumsum(encoded.part_lengths))), parts=None,
                            part_lengths=None)  # fmt: skip
            states = model.pooled(model.inputs(make_batch(alone, np.array([5, 6, 0, 1, 2, 3, 4]))))

        wanted = torch.stack([states[:2].amax(0), states[2:6].amax(0), states[6]])
        assert torch.allclose(pooled, wanted, atol=1e-6)

    def test_chunks_of_a_row_have_dropout_of_their_own(self) -> None:
        encoded = read([5] * 8, max_length=6, long_text=LongText("hierarchical"))
        noise = Noise(torch.device("cpu"))
        noise.seek(0, 1, make_batch(encoded, np.array([0])))

        assert len({tuple(key) for key in noise.tokens.tolist()}) == 12
        assert torch.equal(noise.first, noise.tokens[[0, 6]]) and torch.equal(noise.rows, noise.tokens[[0]])


class TestRuns:
    @pytest.mark.parametrize(
        ("way", "reads_the_end"), [("head", False), ("tail", True), ("head+tail", True), ("hierarchical", True)]
    )
    def test_a_model_learns_what_it_reads(
        self, tiny_bert: Path, tmp_path: Path, way: str, reads_the_end: bool
    ) -> None:
        result = train(
            tmp_path / "out", tiny_bert, long_rows(120),
            settings={"model.long_text": way, "train.epochs": 8, "model.pooling": "mean"},
        )  # fmt: skip

        assert (result.metrics["valid"]["accuracy"] > 0.7) == reads_the_end
        if way == "hierarchical":
            assert result.metrics["truncation"]["train"]["rows_cut"] == 0

    @pytest.mark.parametrize("join", ["mean", "max", "attention"])
    def test_the_saved_model_reads_as_it_was_trained(self, tiny_bert: Path, tmp_path: Path, join: str) -> None:
        rows = long_rows(60)
        options = {
            "model.long_text": "hierarchical", "model.join": join, "model.chunk_overlap": 4, "model.max_chunks": 2
        }
        result = train(tmp_path / "out", tiny_bert, rows, settings=options)
        bundle, model = Bundle.read(result.out), bertune.load(result.out)

        assert bundle.long_text == LongText("hierarchical", "head", overlap=4, most=2) and bundle.head.join == join
        assert not bundle.opens_in_transformers
        assert "2 chunks of that size that share 4 tokens" in (result.out / "README.md").read_text(encoding="utf-8")
        assert any("join" in name for name in load_file(result.out / "model.safetensors")) == (join == "attention")
        texts = [row["text"] for row in rows]
        whole = model.logits(texts)
        assert np.allclose(whole, np.concatenate([model.logits([text]) for text in texts]), atol=1e-5)
        behind = "the " * 30  # in the second chunk, and behind the last one
        assert not np.allclose(model.logits([f"{behind}cat"]), model.logits([behind]), atol=1e-6)
        assert np.allclose(model.logits([f"{behind * 2}cat"]), model.logits([behind * 2]), atol=1e-6)

    def test_chunks_train_resume_and_predict_to_the_last_bit(self, tiny_bert: Path, tmp_path: Path) -> None:
        options = {"model.long_text": "hierarchical", "model.join": "attention", "train.checkpoint_steps": 2,
                   "train.token_budget": 60}  # fmt: skip
        rows = long_rows(60)
        whole = train(tmp_path / "whole", tiny_bert, rows, settings=options)
        with pytest.raises(Stop):
            train(tmp_path / "out", tiny_bert, rows, told=Stopper(5), settings=options)
        resumed = train(tmp_path / "out", tiny_bert, rows, settings=options, resume=True)

        assert (resumed.out / "model.safetensors").read_bytes() == (whole.out / "model.safetensors").read_bytes()

    @pytest.mark.parametrize("join", ["mean", "attention"])
    @pytest.mark.parametrize("freeze", ["1", "encoder"])
    def test_frozen_layers_of_chunks_run_once(self, tiny_bert: Path, tmp_path: Path, freeze: str, join: str) -> None:
        told = Told()
        options = {"model.long_text": "hierarchical", "model.join": join, "model.freeze": freeze}
        result = train(tmp_path / "out", tiny_bert, long_rows(40), told=told, settings=options)

        assert any("They run once" in text for text in told.said)
        assert 0 <= result.metrics["valid"]["accuracy"] <= 1

    def test_pairs_with_one_long_side(self, tiny_bert: Path, tmp_path: Path) -> None:
        rows = pair_rows(60)
        result = train(
            tmp_path / "out", tiny_bert, rows, text="first", text_pair="second",
            settings={"model.long_text": "tail", "model.long_text_pair": "hierarchical", "model.max_length": 16},
        )  # fmt: skip
        bundle = Bundle.read(result.out)

        assert bundle.long_text == LongText("tail", "hierarchical") and bundle.head.join == "mean"
        assert len(bertune.load(result.out).predict([(row["first"], row["second"]) for row in rows])) == 60

    def test_an_explanation_covers_all_chunks(self, tiny_bert: Path, tmp_path: Path) -> None:
        pytest.importorskip("captum")
        result = train(tmp_path / "out", tiny_bert, long_rows(60), settings={"model.long_text": "hierarchical"})
        [found] = bertune.load(result.out).explain([long_rows(1)[0]["text"]], neighbors=1)

        assert len(found.words) >= 40 and found.cut == 0 and all(np.isfinite(word.score) for word in found.words)


class TestOptions:
    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ({"model.join": "max"}, "--join max: needs --long-text hierarchical"),
            ({"model.chunk_overlap": 3}, "--chunk-overlap 3: needs --long-text hierarchical"),
            ({"model.max_chunks": 3}, r"model.max_chunks 3: needs --long-text hierarchical"),
            ({"model.long_text_pair": "tail"}, "--long-text-pair tail: is for pairs"),
            ({"model.long_text_pair": "auto"}, "--long-text-pair auto: is for pairs"),
            ({"model.long_text": "22+tail"}, r"--long-text 22\+tail: --max-length 24 leaves 22 tokens"),
            ({"model.long_text": "hierarchical", "model.chunk_overlap": 11}, "Pass less than 11"),
            ({"model.long_text": "midle"}, "model.long_text.*expected one of head, tail"),
        ],
    )
    def test_options_that_have_no_meaning_are_refused_before_anything_is_written(
        self, tiny_bert: Path, tmp_path: Path, options: dict[str, Any], said: str
    ) -> None:
        with pytest.raises(ConfigError, match=said):
            train(tmp_path / "out", tiny_bert, topic_rows(30), settings=options)
        assert not (tmp_path / "out").exists()


    def test_which_side_is_cut_is_not_asked_for_beside_chunks(self, tiny_bert: Path, tmp_path: Path) -> None:
        options = {"model.long_text": "hierarchical", "model.truncation": "only-second"}
        with pytest.raises(ConfigError, match="--truncation only-second: has no effect where one side is read in"):
            train(tmp_path / "out", tiny_bert, pair_rows(30), text="first", text_pair="second", settings=options)


class TestAuto:
    def test_the_way_that_reads_what_matters_is_found_on_the_validation_rows(
        self, tiny_bert: Path, tmp_path: Path
    ) -> None:
        told = Told()
        options = {"model.long_text": "auto", "model.pooling": "mean", "train.lr": 1e-2}
        result = train(tmp_path / "out", tiny_bert, long_rows(400), told=told, settings=options)
        tried = json.loads((result.out / "run/long_text.json").read_text(encoding="utf-8"))

        assert list(tried["tried"]) == ["head", "tail", "head+tail", "hierarchical"]
        assert tried["chosen"] == Bundle.read(result.out).long_text.first != "head"
        tokenizer, reading = Tokenizer.load(tiny_bert), Bundle.read(result.out).reading
        texts = Rows(first=([row["text"] for row in long_rows(400)],), second=None)
        cost = {
            way: tokenizer.encode(texts, **{**reading, "long_text": LongText(way)}).offsets[-1]
            for way in tried["tried"]
        }
        epochs = sum(cost.values()) / cost["head"]
        assert epochs > 4.5
        assert any(
            "Trying 4 ways for one epoch of 320 rows each; together they read as much as "
            f"{epochs:.1f} epochs of the training with head." in text for text in told.said
        )  # fmt: skip

    @pytest.mark.parametrize("auto", ["long_text", "long_text_pair"])
    def test_beside_a_side_in_chunks_the_other_one_is_chosen_and_the_chunks_stay_as_asked(
        self, tiny_bert: Path, tmp_path: Path, auto: str
    ) -> None:
        rows = [{"label": row["label"], "first": row["text"], "second": row["text"]} for row in long_rows(120)]
        sides = {"long_text", "long_text_pair"}
        options = {f"model.{auto}": "auto", f"model.{(sides - {auto}).pop()}": "hierarchical", "train.max_steps": 2}
        options |= {"model.join": "attention", "model.chunk_overlap": 2, "model.max_chunks": 3}
        result = train(tmp_path / "out", tiny_bert, rows, text="first", text_pair="second", settings=options)
        bundle = Bundle.read(result.out)
        tried = json.loads((result.out / "run/long_text.json").read_text(encoding="utf-8"))

        assert list(tried["tried"]) == ["head", "tail", "head+tail"]
        assert sorted((bundle.long_text.first, bundle.long_text.second)) == sorted((tried["chosen"], "hierarchical"))
        assert (bundle.long_text.overlap, bundle.long_text.most, bundle.head.join) == (2, 3, "attention")

    @pytest.mark.parametrize(
        ("first", "second", "chunked"),
        [("auto", None, 0), ("auto", "tail", 0), ("tail", "auto", 1), ("auto", "auto", 0)],
    )
    def test_chunks_are_tried_for_the_side_that_is_chosen(
        self, tiny_bert: Path, tmp_path: Path, first: str, second: str | None, chunked: int
    ) -> None:
        rows = [{"label": row["label"], "first": row["text"], "second": row["text"]} for row in long_rows(120)]
        options = {"model.long_text": first, "model.long_text_pair": second, "train.max_steps": 2}
        result = train(tmp_path / "out", tiny_bert, rows, text="first", text_pair="second", settings=options)
        config = Config.load(result.out / "run/config.yaml").updated(
            {"model": {"long_text": first, "long_text_pair": second}}
        )
        tried = json.loads((result.out / "run/long_text.json").read_text(encoding="utf-8"))

        assert list(tried["tried"]) == ["head", "tail", "head+tail", "hierarchical"]
        model = with_way(config, "hierarchical").model
        ways = [model.long_text, model.long_text_pair]
        assert ways.count("hierarchical") == 1 and ways[chunked] == "hierarchical"

    def test_what_does_not_go_with_chunks_stays_out_beside_them(self) -> None:
        config = Config().updated({"model": {"long_text": "auto", "truncation": "only-second"}})

        assert with_way(config, "tail").model.truncation == "only-second"
        assert with_way(config, "hierarchical").model.truncation == "longest-first"

    def test_a_resumed_run_keeps_what_was_chosen(self, tiny_bert: Path, tmp_path: Path) -> None:
        told = Stopper(60)  # the tries end with step 40
        rows, options = long_rows(400), {"model.long_text": "auto", "train.lr": 1e-2, "train.checkpoint_steps": 10}
        with pytest.raises(Stop):
            train(tmp_path / "out", tiny_bert, rows, told=told, settings=options)
        again = Told()
        resumed = train(tmp_path / "out", tiny_bert, rows, told=again, settings=options, resume=True)

        assert not any("Trying" in text for text in again.said)
        chosen = json.loads((resumed.out / "run/long_text.json").read_text(encoding="utf-8"))["chosen"]
        assert Bundle.read(resumed.out).long_text.first == chosen
        assert train(tmp_path / "out", tiny_bert, rows, settings=options, resume=True).metrics == resumed.metrics

    def test_a_stop_while_it_tries_says_that_nothing_is_kept(self, tiny_bert: Path, tmp_path: Path) -> None:
        class Interrupting(Told):
            def step(self, step: Any) -> None:
                signal.raise_signal(signal.SIGINT)

        with pytest.raises(Interrupted, match="nothing of that is kept, and the same command begins anew"):
            train(tmp_path / "out", tiny_bert, long_rows(120), told=Interrupting(),
                  settings={"model.long_text": "auto"})  # fmt: skip
        assert not (tmp_path / "out").exists()

    def test_what_was_tried_outlives_a_stop_in_the_pre_training(self, tiny_bert: Path, tmp_path: Path) -> None:
        class StopInPretraining(Told):
            def say(self, text: str) -> None:
                if text.startswith("Pre-training:"):
                    raise Stop

        options = {"model.long_text": "auto", "pretrain.on": ["train"], "pretrain.max_length": 32}
        with pytest.raises(Stop):
            train(tmp_path / "out", tiny_bert, long_rows(120), told=StopInPretraining(), settings=options)

        assert not (tmp_path / "out/bertune.json").exists() and (tmp_path / "out/run/long_text.json").is_file()

    def test_with_pre_training_the_ways_are_tried_before_it_and_that_is_said(
        self, tiny_bert: Path, tmp_path: Path
    ) -> None:
        told = Told()
        options = {"model.long_text": "auto", "train.max_steps": 2}
        options |= {"pretrain.on": ["train"], "pretrain.max_steps": 1, "pretrain.max_length": 32}
        result = train(tmp_path / "out", tiny_bert, long_rows(120), told=told, settings=options)

        words = ("Trying 4 ways, from the encoder as it is before pre-training, for one epoch of ", "Pre-training: ")
        tried, trained = (next(place for place, text in enumerate(told.said) if part in text) for part in words)
        assert tried < trained
        assert (result.out / "run/pretrain/model.safetensors").is_file()

    def test_where_hardly_anything_is_cut_nothing_is_tried(self, tiny_bert: Path, tmp_path: Path) -> None:
        told = Told()
        result = train(tmp_path / "out", tiny_bert, topic_rows(60), told=told, settings={"model.long_text": "auto"})

        assert any("too few to choose by; head is taken" in text for text in told.said)
        assert Bundle.read(result.out).long_text == LongText()

    def test_without_validation_rows_there_is_nothing_to_choose_by(self, tiny_bert: Path, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="--long-text auto: is chosen on validation rows"):
            train(
                tmp_path / "out", tiny_bert, topic_rows(30),
                settings={"model.long_text": "auto", "data.hold_out": False},
            )  # fmt: skip

    def test_several_trainings_would_each_choose_anew(self, tiny_bert: Path, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="would choose anew in each training"):
            bertune.cross_validate(
                topic_rows(30), out=tmp_path / "out", folds=3, model=tiny_bert,
                settings=QUICK | {"model.long_text": "auto"},
            )  # fmt: skip
