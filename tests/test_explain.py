"""Explanations: scores that add up and are those of the method, words that cover the text, words that matter."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import bertune
from bertune.data.batch import Batch, make_batch, rounded
from bertune.data.ragged import Encoded
from bertune.data.rows import Rows, rows_from_python
from bertune.errors import ConfigError
from bertune.explain.attribute import Attributor
from bertune.explain.deletion import deletion_test, without
from bertune.explain.explain import places_of, readable
from bertune.explain.explanation import Word
from bertune.explain.words import side_text, units, words_of_tokens
from bertune.model.classifier import ClassifierModel
from bertune.model.encoder import Encoder, Inputs, inputs_of
from bertune.ship.predict import Predictor
from explained_runs import alone
from tiny_models import CASES, batch_of, loaded, logits_of, random_rows, tiny
from tiny_runs import multi_rows, topic_rows

pytest.importorskip("captum")
pytestmark = pytest.mark.usefixtures("one_thread")


class TestScores:
    def test_they_add_up_to_what_the_words_change(self, single: Predictor) -> None:
        texts = [row["text"] for row in topic_rows(8, seed=3)]
        logits = single.logits(texts)
        for found in single.explain(texts, neighbors=0):
            total = sum(word.score for word in found.words)
            change = found.logit - found.baseline
            assert found.logit == pytest.approx(logits[found.row, single.labels.index(found.label)], abs=1e-4)
            assert abs(change) > 0.1
            assert found.error == pytest.approx(abs(total - change), abs=1e-6)
            assert found.error <= max(0.02 * abs(change), 1e-4)
            assert found.relative_error == pytest.approx(found.error / abs(change))

    def test_they_are_those_of_a_plain_sum_over_the_line(self, single: Predictor) -> None:
        text, label = "the old dog was near my house .", 1
        model = single.backend.model  # type: ignore[attr-defined]
        rows = rows_from_python(single.task, [text])
        encoded = single.encode(rows)
        of_text = places_of(single, rows)[:, 0] >= 0
        found = Attributor(model, pad_id=single.tokenizer.pad_id).attribute(
            encoded, 0, of_text=of_text, label=label, steps=64
        )

        inputs = inputs_of(make_batch(encoded, np.array([0])), device=torch.device("cpu"), dtype=torch.float32)
        blank = replace(inputs, ids=torch.where(torch.from_numpy(of_text), single.tokenizer.pad_id, inputs.ids))
        assert isinstance(model.encoder, Encoder)
        end, begin = (model.encoder.embeddings(part, None) for part in (inputs, blank))
        total = torch.zeros_like(end)
        points = 2000
        for number in range(points):  # the midpoint rule
            place = (begin + (number + 0.5) / points * (end - begin)).detach().requires_grad_()
            (gradient,) = torch.autograd.grad(model(inputs, hidden=place, start=0)[0, label], place)
            total += gradient / points
        plain = ((end - begin) * total).sum(dim=-1).detach().numpy()

        assert np.abs(found.tokens - plain).max() < 1e-3
        assert np.abs(plain).max() > 0.05
        assert not found.tokens[~of_text].any()

    def test_the_one_word_that_a_model_reads_gets_all_of_the_score(self, single: Predictor) -> None:
        """A model without layers over the mean of the states is linear: each word counts for itself, in one step."""
        model = single.backend.model  # type: ignore[attr-defined]
        linear = bertune.load(single.bundle.folder or "", threads=1)
        only = linear.backend.model  # type: ignore[attr-defined]
        only.encoder.layers = torch.nn.ModuleList()
        hidden = model.encoder.config.hidden
        known = linear.tokenizer._vocabulary.rust.token_to_id("dog")  # type: ignore[union-attr]
        with torch.no_grad():
            table = only.encoder.embeddings
            for weights in (table.word.weight, table.position.weight, table.segment.weight):
                weights.zero_()
            table.norm = None
            table.word.weight[known, 0] = 5.0
            only.head.dense = None
            only.head.classifier.weight.zero_()
            only.head.classifier.weight[2, 0] = 3.0
            assert only.head.classifier.weight.shape[1] == hidden
        found = alone(linear, "my old dog was here .", label=linear.labels[2], steps=1)

        tokens = 6 + 2
        assert [word.text for word in found.words if abs(word.score) > 1e-6] == ["dog"]
        assert found.strongest(1)[0].score == pytest.approx(3.0 * 5.0 / tokens, abs=1e-5)
        assert found.error < 1e-5

    def test_more_steps_are_taken_where_few_miss_too_much_and_those_asked_for_are_kept_to(
        self, single: Predictor, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        text = "a cat in the garden ."
        assert alone(single, text, steps=5).steps == 5
        monkeypatch.setattr("bertune.explain.attribute.FEWEST_STEPS", 1)
        assert alone(single, text).steps > 1
        monkeypatch.setattr("bertune.explain.attribute.MOST_STEPS", 2)
        assert alone(single, text).steps <= 2

    def test_memory_bounds_do_not_change_them(self, single: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
        text = "a cat in the garden ."
        whole = [word.score for word in alone(single, text).words]
        monkeypatch.setattr("bertune.explain.attribute.TOKENS", 20)
        assert [word.score for word in alone(single, text).words] == pytest.approx(whole, abs=1e-4)

    @pytest.mark.parametrize("case", CASES)
    def test_they_add_up_for_every_architecture(self, case: str, tmp_path: Path) -> None:
        tiny(case).save_pretrained(tmp_path)
        model, _ = loaded(tmp_path)
        with torch.no_grad():
            model.head.classifier.weight *= 50  # a fresh head says next to nothing
        rows = random_rows([9, 4, 13])
        batch = batch_of(rows)
        encoded = Encoded(
            ids=batch.ids.astype(np.int32), types=batch.types.astype(np.uint8), offsets=batch.cu,
            full_lengths=batch.lengths.astype(np.int32),
        )  # fmt: skip
        of_text = np.array([place not in (0, 12) for place in range(13)])
        blank = [1 if inside else token for inside, token in zip(of_text, rows[2], strict=True)]
        wanted = logits_of(model, batch_of([rows[2], blank])).numpy()
        label = int(np.abs(wanted[0] - wanted[1]).argmax())
        change = abs(wanted[0, label] - wanted[1, label])
        found = Attributor(model, pad_id=1).attribute(encoded, 2, of_text=of_text, label=label, steps=256)
        assert [found.logit, found.baseline] == pytest.approx(wanted[:, label].tolist(), abs=1e-4)
        assert change > 0.01
        assert found.error < 0.02 * change
        assert not found.tokens[[0, 12]].any()

    def test_padding_that_a_gpu_wants_does_not_change_them(
        self, single: Predictor, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        text = "a cat in the garden ."
        before = alone(single, text, neighbors=2)

        def inputs(model: ClassifierModel, batch: Batch) -> Inputs:
            return inputs_of(rounded(batch, multiple=64, pad_id=0), device=model.device, dtype=torch.float32)

        monkeypatch.setattr(ClassifierModel, "inputs", inputs)
        after = alone(single, text, neighbors=2)
        assert [word.score for word in after.words] == pytest.approx([word.score for word in before.words], abs=1e-4)
        assert [near.row for near in after.neighbors] == [near.row for near in before.neighbors]

    def test_a_bf16_model_is_explained_in_fp32(self, runs: Path, single: Predictor) -> None:
        text = "a cat in the garden ."
        rough = bertune.load(runs / "single", threads=1, precision="bf16")
        assert alone(rough, text).words == alone(single, text).words

    def test_a_text_without_words_changes_nothing(self, single: Predictor) -> None:
        found = alone(single, "")
        assert (found.words, found.error, found.relative_error) == ((), 0.0, None)


class TestLabels:
    def test_the_predicted_label_or_the_one_asked_for(self, single: Predictor) -> None:
        text = "the old hammer was in the box ."
        found = alone(single, text)
        assert (found.label, found.predicted) == (single.predict([text])[0], True)
        assert found.probability == pytest.approx(single.predict_proba([text]).max())
        other = next(label for label in single.labels if label != found.label)
        assert (alone(single, text, label=other).label, alone(single, text, label=other).predicted) == (other, False)

    def test_each_label_of_several_or_the_most_probable(self, runs: Path) -> None:
        model = bertune.load(runs / "multi", threads=1)
        texts = [row["text"] for row in multi_rows(30, seed=4)]
        found = model.explain(texts, neighbors=0)
        given, shares = model.predict(texts), model.predict_proba(texts)
        for row in range(len(texts)):
            labels = [one.label for one in found if one.row == row]
            assert labels == (given[row] or [model.labels[int(shares[row].argmax())]])
        assert {len(labels) for labels in given} >= {0, 1, 2}

    def test_an_option_that_cannot_be_is_a_clear_error(self, single: Predictor) -> None:
        with pytest.raises(ConfigError, match="--steps 0: takes at least 1"):
            single.explain(["a"], steps=0)
        with pytest.raises(ConfigError, match="--neighbors -1: a number of rows"):
            single.explain(["a"], neighbors=-1)


class TestWords:
    def test_pieces_of_a_word_are_one_word_and_the_text_is_covered(self, single: Predictor) -> None:
        text = "The cat's  house,\tnaïve <b> & 2.5 — don't!"
        found = alone(single, text)
        assert [word.text for word in found.words] == [
            "The", "cat's", "house", ",", "naïve", "<", "b", ">", "&", "2.5", "—", "don't", "!",
        ]  # fmt: skip
        assert all(text[word.begin : word.end] == word.text for word in found.words)

    def test_sides_and_columns_keep_apart(self, pair: Predictor) -> None:
        found = alone(pair, ("the cat was red", "a dog"))
        assert found.texts == ("the cat was red", "a dog")
        assert [(word.side, word.text) for word in found.words] == [
            (0, "the"), (0, "cat"), (0, "was"), (0, "red"), (1, "a"), (1, "dog"),
        ]  # fmt: skip
        assert all(found.texts[word.side][word.begin : word.end] == word.text for word in found.words)

    def test_what_was_cut_off_is_counted_and_not_among_them(self, single: Predictor) -> None:
        found = alone(single, "the cat " * 20)
        assert (len(found.words), found.cut) == (22, 18)  # 24 tokens, of which two are special

    def test_columns_of_a_side_become_one_text(self) -> None:
        assert side_text(["a b", "", "c"]) == ("a b c", [0, 3, 4])
        assert side_text(["", "c"]) == (" c", [0, 1])

    @pytest.mark.parametrize(
        "text, words",
        [
            ("Hello, world", "Hello|,|world"),
            ("don't 'quote' it’s", "don't|'|quote|'|it’s"),
            ("cafe\u0301 2.5 1,000. a.b", "cafe\u0301|2.5|1,000|.|a|.|b"),
            ("中文 text ไทย", "中|文|text|ไ|ท|ย"),
            ("  \n", ""),
        ],
    )
    def test_units_of_a_text(self, text: str, words: str) -> None:
        assert "|".join(text[begin:end] for begin, end in units(text)) == words

    @given(st.text(max_size=40), st.data())
    def test_words_are_in_order_apart_and_hold_every_token(self, text: str, data: st.DataObject) -> None:
        cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=12)))
        spans = list(pairwise(cuts))
        words, owner = words_of_tokens(text, spans)
        assert len(owner) == len(spans)
        assert all(begin <= end for begin, end in words)
        assert all(before[1] <= after[0] for before, after in pairwise(words))
        assert set(owner.tolist()) == set(range(len(words)))
        covered = {place for begin, end in words for place in range(begin, end)}
        read = {place for begin, end in spans for place in range(begin, end) if not text[place].isspace()}
        assert read <= covered

    @settings(deadline=None)
    @given(st.lists(st.tuples(st.text(max_size=30), st.text(max_size=30)), min_size=1, max_size=4), st.booleans())
    def test_every_token_of_any_text_is_placed(
        self, single: Predictor, texts: list[tuple[str, str]], two: bool
    ) -> None:
        first, second = (list(column) for column in zip(*texts, strict=True))
        rows = readable(Rows((first,), (second,)) if two else Rows((first, second)))
        options: dict[str, Any] = {"max_length": 20, "truncation": "longest-first"}
        encoded, places = single.tokenizer.encode(rows, **options), single.tokenizer.places(rows, **options)
        assert len(places) == len(encoded.ids)
        special = places[:, 0] < 0
        separators = [2, 3]  # [CLS] and [SEP]
        assert set(encoded.ids[special].tolist()) <= set(separators)
        assert not set(encoded.ids[~special].tolist()) & set(separators)


class TestDeletion:
    def test_the_named_word_matters_more_than_a_random_one(self, single: Predictor) -> None:
        rows = [row["text"] for row in topic_rows(40, seed=9)]
        found = deletion_test(single, rows, words=1)
        assert found.low > 0.05, found
        assert found.difference == pytest.approx(found.named - found.random)
        assert (found.rows, found.short) == (40, 0)
        assert found == deletion_test(single, rows, words=1)

    def test_rows_that_are_too_short_are_left_out(self, single: Predictor) -> None:
        rows = rows_from_python(single.task, ["a cat", "the old dog was in the garden"])
        found = deletion_test(single, rows, words=3)
        assert (found.rows, found.short) == (1, 1)
        with pytest.raises(ConfigError, match="none of the 2 rows has more words than that"):
            deletion_test(single, rows, words=30)

    def test_words_leave_the_column_and_the_side_they_stand_in(self) -> None:
        rows = Rows((["a big cat"], ["b  c"]), (["a dog"],))
        words = [Word(0, 2, 5, "big", 0.0), Word(0, 10, 11, "b", 0.0), Word(1, 0, 1, "a", 0.0)]
        assert without(rows, 0, words) == Rows((["a cat"], ["c"]), (["dog"],))
        assert without(rows, 0, []) == rows
