"""The heads of pre-training compute what transformers' do, are loaded from its files, and are saved for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file, save_file

from bertune.data.sequences import Sample
from bertune.errors import ConfigError, ModelError
from bertune.model.load import read_config, read_source
from bertune.model.names import TIED
from bertune.model.pretraining import (
    PretrainingModel,
    check_objective,
    load_pretraining,
    save_pretraining,
    tied_loss,
)
from tiny_models import CASES, batch_of, configure, padded, random_rows, tiny, types_of

pytestmark = pytest.mark.usefixtures("one_thread")

ROWS = random_rows([9, 3, 14, 6])


def sample_of(
    rows: list[list[int]], types: list[list[int]] | None = None, *, follows: list[int] | None = None
) -> Sample:
    """Every third token is to be guessed."""
    batch = batch_of(rows, types)
    places = np.arange(1, batch.tokens, 3)
    right = None if follows is None else np.array(follows)
    return Sample(
        batch.ids, batch.types, batch.positions, batch.cu, batch.rows, places=places, targets=batch.ids[places],
        follows=right,
    )  # fmt: skip


def save(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    return folder


def our_scores(model: PretrainingModel, sample: Sample) -> torch.Tensor:
    """[tokens, vocabulary]."""
    with torch.no_grad():
        return model.scores(model.encoder(model.inputs(sample)))


def their_scores(model: Any, rows: list[list[int]], types: list[list[int]] | None = None) -> torch.Tensor:
    pad = model.config.pad_token_id
    with torch.no_grad():
        logits = model(**padded(rows, types, pad=pad)).logits
    return torch.cat([logits[number, : len(row)] for number, row in enumerate(rows)])


@pytest.mark.parametrize("case", CASES)
def test_masked_scores_are_those_of_transformers_there_and_back(case: str, tmp_path: Path) -> None:
    theirs = tiny(case, head="MaskedLM")
    folder = save(theirs, tmp_path / "theirs")
    types = types_of(ROWS) if read_config(folder).type_vocab > 1 else None
    model, report = load_pretraining(folder, objective="mlm")
    assert not report.new and not report.skipped, "every weight is used"
    torch.testing.assert_close(
        our_scores(model, sample_of(ROWS, types)), their_scores(theirs, ROWS, types), atol=1e-4, rtol=1e-4
    )

    with torch.no_grad():
        for number, weight in enumerate(model.parameters()):
            weight.add_(0.01 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(number)))
    (tmp_path / "ours").mkdir()
    save_pretraining(tmp_path / "ours", model, read_source(folder))
    again, info = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert type(again) is type(theirs)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    torch.testing.assert_close(
        their_scores(again.eval(), ROWS, types), our_scores(model, sample_of(ROWS, types)), atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize(
    ("objective", "name"), [("both", "BertForPreTraining"), ("nsp", "BertForNextSentencePrediction")]
)
def test_next_sentence_scores_are_those_of_transformers_there_and_back(
    objective: str, name: str, tmp_path: Path
) -> None:
    theirs = tiny("bert", head="PreTraining")
    folder, types = save(theirs, tmp_path / "theirs"), types_of(ROWS)
    sample = sample_of(ROWS, types, follows=[1, 0, 0, 1])
    model, report = load_pretraining(folder, objective=objective)
    assert not report.new
    (tmp_path / "ours").mkdir()
    save_pretraining(tmp_path / "ours", model, read_source(folder))
    again, info = getattr(transformers, name).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    for other in (theirs, again.eval()):
        with torch.no_grad():
            found = other(**padded(ROWS, types))
            scores = found.seq_relationship_logits if hasattr(found, "seq_relationship_logits") else found.logits
            states = model.encoder(model.inputs(sample), first_only=True)
            torch.testing.assert_close(model._following(states), scores, atol=1e-5, rtol=1e-5)
            loss = F.cross_entropy(scores, torch.tensor([0, 1, 1, 0]))  # 0: the next sentence
        assert model.measure(sample).next_loss / 4 == pytest.approx(loss.item(), abs=1e-5)


def test_an_encoder_without_heads_gets_new_ones_and_says_so(tmp_path: Path) -> None:
    folder = save(tiny("bert"), tmp_path / "bare")
    one, report = load_pretraining(folder, objective="both", seed=3)
    assert report.new == ["head.masked", "head.next"], "it brings a pooler along"
    assert report.sentence().endswith("New weights: head.masked, head.next.")
    same, other = (load_pretraining(folder, objective="both", seed=seed)[0] for seed in (3, 4))
    weight = one.head.next.weight  # type: ignore[union-attr]
    assert torch.equal(weight, same.head.next.weight)  # type: ignore[union-attr]
    assert not torch.equal(weight, other.head.next.weight)  # type: ignore[union-attr]


def test_a_pooler_that_is_not_trained_is_carried_along(tmp_path: Path) -> None:
    folder = save(tiny("bert"), tmp_path / "bare")
    model, _ = load_pretraining(folder, objective="mlm")
    assert [name for name, weight in model.named_parameters() if not weight.requires_grad] == [
        "head.pooler.weight", "head.pooler.bias",
    ]  # fmt: skip
    (tmp_path / "ours").mkdir()
    save_pretraining(tmp_path / "ours", model, read_source(folder))
    before, after = (load_file(place / "model.safetensors") for place in (folder, tmp_path / "ours"))
    assert torch.equal(before["pooler.dense.weight"], after["bert.pooler.dense.weight"])


def test_a_decoder_that_is_not_tied_is_refused(tmp_path: Path) -> None:
    folder = save(tiny("bert", head="MaskedLM"), tmp_path / "theirs")
    weights = load_file(folder / "model.safetensors")
    name = TIED["bert"][0]
    save_file(weights | {name: weights["bert.embeddings.word_embeddings.weight"].clone()}, folder / "model.safetensors")
    load_pretraining(folder, objective="mlm")  # a copy does no harm
    save_file(weights | {name: weights["bert.embeddings.word_embeddings.weight"] + 1}, folder / "model.safetensors")
    with pytest.raises(ModelError, match="its masked-language head has embeddings of its own"):
        load_pretraining(folder, objective="mlm")


def test_only_bert_tells_next_sentences_and_some_encoders_fill_no_masks(tmp_path: Path) -> None:
    roberta = read_config(save(tiny("roberta"), tmp_path / "roberta"))
    with pytest.raises(ConfigError, match=r"--objective both: next sentences are told by the encoders of BERT's kind"):
        check_objective(roberta, "both", "x")
    folder = save(tiny("bert"), tmp_path / "bert")
    configure(folder, model_type="d2l-bert")
    with pytest.raises(ConfigError, match=r"--model x: an encoder of the kind 'd2l' has no head over its word"):
        check_objective(read_config(folder), "mlm", "x")


@pytest.mark.parametrize("bias", [True, False])
def test_the_loss_over_the_vocabulary_has_the_gradients_of_a_plain_one(bias: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    states, table, offset = (torch.randn(*shape, generator=generator) for shape in ((150, 8), (70, 8), (70,)))
    targets = torch.randint(0, 70, (150,), generator=generator)
    found = []
    for plain in (True, False):
        leaves = [value.clone().requires_grad_() for value in (states, table, *([offset] if bias else []))]
        one, two = leaves[:2]
        three = leaves[2] if bias else None
        if plain:
            scores = one @ two.t() + (0 if three is None else three)
            loss = 0.5 * F.cross_entropy(scores, targets, reduction="sum")
        else:
            loss = tied_loss(one, two, three, targets, scale=0.5, dtype=torch.float32)
        (3 * loss).backward()
        found.append([loss.detach(), *(leaf.grad for leaf in leaves)])
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("case", ["bert", "modernbert", "roberta", "electra with small embeddings"])
def test_sequences_packed_together_do_not_see_each_other(case: str, tmp_path: Path) -> None:
    """The gradient of one sequence's loss over the word embeddings is none for tokens that stand in others alone."""
    model, _ = load_pretraining(save(tiny(case), tmp_path / "model"), objective="mlm")
    rows = [list(range(5, 20)), list(range(20, 45)), list(range(45, 52))]
    sample = sample_of(rows)
    inputs = model.inputs(sample)
    words = model.table.detach()[torch.from_numpy(sample.ids)].requires_grad_()
    states = model.encoder(inputs, words=words)
    states[15:40].square().sum().backward()
    reached = words.grad.abs().sum(1) > 0  # type: ignore[union-attr]
    assert reached[15:40].all() and not reached[:15].any() and not reached[40:].any()
    alone = our_scores(model, sample_of([rows[1]]))
    torch.testing.assert_close(our_scores(model, sample)[15:40], alone, atol=1e-5, rtol=1e-5)


def test_what_is_measured_is_what_transformers_loses(tmp_path: Path) -> None:
    theirs = tiny("bert", head="MaskedLM")
    model, _ = load_pretraining(save(theirs, tmp_path / "theirs"), objective="mlm")
    sample = sample_of(ROWS)
    scores, targets = their_scores(theirs, ROWS)[sample.places], torch.from_numpy(sample.targets)
    found = model.measure(sample)
    assert found.masked == len(sample.places)
    assert found.masked_loss == pytest.approx(F.cross_entropy(scores, targets, reduction="sum").item(), rel=1e-4)
    assert found.masked_right == int((scores.argmax(1) == targets).sum())
    loss = model.loss(sample, None, masked=len(sample.places), pairs=4)
    assert loss.item() == pytest.approx(found.masked_loss / found.masked, rel=1e-5)


def test_both_losses_are_added_up_as_in_transformers(tmp_path: Path) -> None:
    theirs = tiny("bert", head="PreTraining")
    model, _ = load_pretraining(save(theirs, tmp_path / "theirs"), objective="both")
    types, follows = types_of(ROWS), [1, 0, 0, 1]
    sample = sample_of(ROWS, types, follows=follows)
    given = padded(ROWS, types)
    labels = torch.full_like(given["input_ids"], -100)
    for number, row in enumerate(ROWS):
        for place, token in enumerate(row):
            if sample.cu[number] + place in sample.places:
                labels[number, place] = token
    theirs(**given, labels=labels, next_sentence_label=1 - torch.tensor(follows)).loss.backward()
    model.loss(sample, None, masked=len(sample.places), pairs=4).backward()
    ours = dict(model.named_parameters())
    for name, weight in (
        ("encoder.embeddings.word.weight", theirs.bert.embeddings.word_embeddings.weight),
        ("encoder.layers.0.up.weight", theirs.bert.encoder.layer[0].intermediate.dense.weight),
        ("head.masked.dense.weight", theirs.cls.predictions.transform.dense.weight),
        ("head.masked.bias", theirs.cls.predictions.bias),
        ("head.next.weight", theirs.cls.seq_relationship.weight),
    ):
        torch.testing.assert_close(ours[name].grad, weight.grad, atol=1e-4, rtol=1e-3)
