"""Our encoder computes what transformers computes, for every architecture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file

from bertune.data.batch import rounded
from bertune.errors import ModelError
from bertune.model.attention import _fused, _Grouped, plan_attention
from bertune.model.encoder import EncoderConfig, Norm, _DropAddNorm, inputs_of
from bertune.model.load import load_model, read_source, save_model
from bertune.model.noise import Noise
from bertune.model.source import convert
from d2l_archive import WORDS, make_archive, plain_forward
from tiny_models import (
    CASES,
    batch_of,
    hidden_of,
    loaded,
    logits_of,
    own_head,
    padded,
    random_rows,
    scrambled,
    tiny,
    types_of,
)  # fmt: skip

pytestmark = pytest.mark.usefixtures("one_thread")
LENGTHS = [60, 57, 31, 12, 3, 1]
LABELS = ("no", "yes", "maybe")
TOLERANCE = 1e-5


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> str:
    return request.param


def _types_allowed(model: object) -> bool:
    return getattr(model.config, "type_vocab_size", 0) > 1  # type: ignore[attr-defined]


def _real_states(model: object, rows: list[list[int]], types: list[list[int]] | None, pad: int) -> torch.Tensor:
    """transformers' states of all real tokens, row after row."""
    with torch.no_grad():
        states = model(**padded(rows, types, pad=pad))[0]  # type: ignore[operator]
    return torch.cat([state[: len(row)] for state, row in zip(states, rows, strict=True)])


def test_hidden_states_equal_those_of_transformers(case: str, tmp_path: Path) -> None:
    theirs = tiny(case)
    theirs.save_pretrained(tmp_path)
    ours, _ = loaded(tmp_path)
    rows, pad = random_rows(LENGTHS), theirs.config.pad_token_id
    for types in [None, types_of(rows)] if _types_allowed(theirs) else [None]:
        expected = _real_states(theirs, rows, types, pad)
        assert expected.abs().mean() > 0.1
        assert (hidden_of(ours, batch_of(rows, types)) - expected).abs().max() <= TOLERANCE
        for place, row in enumerate(rows):  # the same rows one by one, where transformers pads nothing
            own = None if types is None else [types[place]]
            alone = _real_states(theirs, [row], own, pad)
            assert (hidden_of(ours, batch_of([row], own)) - alone).abs().max() <= TOLERANCE


def test_token_types_change_the_states(tmp_path: Path) -> None:
    tiny("bert").save_pretrained(tmp_path)
    ours, _ = loaded(tmp_path)
    rows = random_rows([9])
    assert not torch.equal(hidden_of(ours, batch_of(rows)), hidden_of(ours, batch_of(rows, types_of(rows))))


def test_logits_equal_those_of_a_classifier_trained_with_transformers(case: str, tmp_path: Path) -> None:
    theirs = tiny(case, head="SequenceClassification")
    theirs.save_pretrained(tmp_path)
    ours, report = load_model(tmp_path)
    rows = random_rows(LENGTHS)
    with torch.no_grad():
        expected = theirs(**padded(rows, pad=theirs.config.pad_token_id)).logits
    assert (logits_of(ours, batch_of(rows)) - expected).abs().max() <= TOLERANCE
    assert report.new == []


@pytest.mark.parametrize("problem", ["single_label_classification", "multi_label_classification"])
def test_saved_results_open_in_transformers_with_the_same_logits(case: str, problem: str, tmp_path: Path) -> None:
    theirs = tiny(case)
    theirs.save_pretrained(tmp_path)
    ours, _ = load_model(tmp_path, head=own_head(tmp_path), seed=5)
    scrambled(ours, seed=2)
    result = tmp_path / "result"
    result.mkdir()
    save_model(result, ours, read_source(tmp_path), labels=LABELS, problem_type=problem)
    opened, found = transformers.AutoModelForSequenceClassification.from_pretrained(result, output_loading_info=True)
    assert not any(found.values()), found
    rows = random_rows(LENGTHS)
    with torch.no_grad():
        logits = opened.eval()(**padded(rows, pad=opened.config.pad_token_id)).logits
    assert (logits_of(ours, batch_of(rows)) - logits).abs().max() <= TOLERANCE
    assert (opened.config.problem_type, opened.config.num_labels) == (problem, 3)
    assert opened.config.id2label == dict(enumerate(LABELS))
    assert opened.config.label2id == {"no": 0, "yes": 1, "maybe": 2}
    assert {parameter.dtype for parameter in opened.parameters()} == {torch.float32}
    again, report = load_model(result)
    assert torch.equal(logits_of(again, batch_of(rows)), logits_of(ours, batch_of(rows)))
    assert report.new == [] and report.skipped == {}


def test_the_embedded_model_equals_transformers(mini_dir: Path) -> None:
    theirs = transformers.AutoModel.from_pretrained(mini_dir).eval()
    ours, report = loaded(mini_dir)
    rows = random_rows([128, 40, 7], vocabulary=30000)
    for types in (None, types_of(rows)):
        expected = _real_states(theirs, rows, types, 0)
        assert (hidden_of(ours, batch_of(rows, types)) - expected).abs().max() <= TOLERANCE
    assert report.new == ["head.classifier"]  # its pooler is in the file
    assert report.skipped == {"buffers": ["embeddings.position_ids"]}


@pytest.fixture
def book(tmp_path: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    """A published archive of the book, converted, and its state dict."""
    state = make_archive(tmp_path / "bert.small.torch.zip", hidden=32, ffn=48, layers=3)
    convert(tmp_path / "bert.small.torch.zip", tmp_path / "book", heads=4)
    return tmp_path / "book", state


def test_the_books_encoder_equals_a_plain_computation(book: tuple[Path, dict[str, torch.Tensor]]) -> None:
    folder, state = book
    ours, report = loaded(folder)
    rows = random_rows([30, 17, 4, 1], vocabulary=len(WORDS))
    types = types_of(rows)
    inputs = padded(rows, types, pad=WORDS.index("<pad>"))
    ids, segments = inputs["input_ids"].numpy(), inputs["token_type_ids"].numpy()
    states, pooled = plain_forward(state, ids, segments, [len(row) for row in rows], 4)
    expected = torch.from_numpy(np.concatenate([states[place, : len(row)] for place, row in enumerate(rows)]))
    batch = batch_of(rows, types)
    assert (hidden_of(ours, batch) - expected).abs().max() <= TOLERANCE
    weight, bias = (value.detach().double() for value in ours.head.classifier.parameters())
    assert (logits_of(ours, batch) - (torch.from_numpy(pooled) @ weight.T + bias)).abs().max() <= TOLERANCE
    assert report.new == ["head.classifier"]
    assert report.sentence().startswith(f"Loaded {len(state) - 8} weights; left out: other tasks' heads (8).")


def test_the_books_encoder_is_saved_under_its_own_names(
    book: tuple[Path, dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    folder, state = book
    ours, _ = loaded(folder)
    result = tmp_path / "result"
    result.mkdir()
    save_model(result, ours, read_source(folder), labels=LABELS, problem_type="single_label_classification")
    saved = load_file(result / "model.safetensors")
    kept = {name: tensor for name, tensor in state.items() if not name.startswith(("mlm", "nsp"))}
    assert saved.keys() - kept.keys() == {"output.weight", "output.bias"}
    assert all(torch.equal(saved[name], tensor) for name, tensor in kept.items())
    assert read_source(result)["model_type"] == "d2l-bert"
    with pytest.raises((ValueError, KeyError), match="d2l-bert"):
        transformers.AutoModelForSequenceClassification.from_pretrained(result)
    batch = batch_of(random_rows([9, 4], vocabulary=len(WORDS)))
    assert torch.equal(logits_of(load_model(result)[0], batch), logits_of(ours, batch))


def test_a_batch_gives_what_each_row_gives_alone(case: str, tmp_path: Path) -> None:
    tiny(case, head="SequenceClassification").save_pretrained(tmp_path)
    ours, _ = load_model(tmp_path)
    rows = random_rows([5, 60, 18, 33, 1, 34, 35, 6, 59, 7] * 3)
    together = logits_of(ours, batch_of(rows))
    alone = torch.cat([logits_of(ours, batch_of([row])) for row in rows])
    assert (together - alone).abs().max() <= TOLERANCE


def test_a_sequence_that_fills_a_batch_up_changes_no_answer(case: str, tmp_path: Path) -> None:
    tiny(case, head="SequenceClassification").save_pretrained(tmp_path)
    ours, _ = load_model(tmp_path)
    batch = batch_of(random_rows([5, 60, 18]))
    filled = inputs_of(rounded(batch, multiple=32, pad_id=0), device=torch.device("cpu"), dtype=torch.float32)
    assert (len(filled.ids), filled.tokens, filled.rows) == (96, 83, 3)
    with torch.no_grad():
        found = ours(filled)
        half = ours.encoder(filled, stop=2)[: filled.tokens]
        from_half = ours(filled, hidden=half, start=2)
    assert found.shape == (3, 3)
    assert (found - logits_of(ours, batch)).abs().max() <= TOLERANCE
    assert (from_half - found).abs().max() <= TOLERANCE


def test_states_can_be_taken_and_given_between_layers(case: str, tmp_path: Path) -> None:
    tiny(case).save_pretrained(tmp_path)
    ours, _ = loaded(tmp_path)
    inputs = ours.inputs(batch_of(random_rows(LENGTHS)))
    with torch.no_grad():
        whole = ours.encoder(inputs)
        half = ours.encoder(inputs, stop=2)
        assert torch.equal(ours.encoder(inputs, hidden=half, start=2), whole)


def test_bf16_stays_close_to_fp32(case: str, tmp_path: Path) -> None:
    tiny(case, head="SequenceClassification").save_pretrained(tmp_path)
    ours, _ = load_model(tmp_path)
    batch = batch_of(random_rows(LENGTHS))
    exact = hidden_of(ours, batch)
    ours.encoder.compute_in(torch.bfloat16)
    assert ours.encoder.layers[0].qkv.weight.dtype == torch.bfloat16
    assert ours.encoder.embeddings.word.weight.dtype == torch.float32
    close = hidden_of(ours, batch).float()
    assert (close - exact).norm() / exact.norm() < 0.05
    assert logits_of(ours, batch).dtype == torch.float32


def test_gradients_equal_those_of_transformers(case: str, tmp_path: Path) -> None:
    theirs = tiny(case, head="SequenceClassification")
    theirs.save_pretrained(tmp_path)
    ours, _ = load_model(tmp_path)
    rows = random_rows([40, 31, 12, 3])
    targets = torch.tensor([0, 2, 1, 1])
    theirs(**padded(rows, pad=theirs.config.pad_token_id), labels=targets).loss.backward()
    torch.nn.functional.cross_entropy(ours(ours.inputs(batch_of(rows))), targets).backward()
    words = theirs.get_input_embeddings().weight.grad[5:]
    found = ours.encoder.embeddings.word.weight.grad[5:]
    assert words.abs().max() > 1e-3
    assert (found - words).abs().max() <= 1e-5 * max(1, float(words.abs().max()))


@pytest.mark.parametrize("window", [-1, 0, 2])
@pytest.mark.parametrize("dropout", [0.0, 0.25])
def test_the_gradient_of_attention_is_right(window: int, dropout: float) -> None:
    cu = np.array([0, 5, 9, 10, 12])
    plan = plan_attention(cu, device=torch.device("cpu"), dtype=torch.float64)
    noise = Noise(torch.device("cpu"))
    qkv = torch.randn(12, 3 * 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)

    def attend(values: torch.Tensor) -> torch.Tensor:
        noise.seek(3, 1, batch_of([[5] * length for length in np.diff(cu)]))  # the same mask in every evaluation
        return _Grouped.apply(values, plan.groups, 2, dropout, noise, window)

    assert torch.autograd.gradcheck(attend, (qkv,))


@pytest.mark.parametrize("window", [-1, 2])
def test_fused_attention_gives_what_the_products_give(window: int) -> None:
    cu = np.array([0, 5, 9, 10, 30])
    plan = plan_attention(cu, device=torch.device("cpu"), dtype=torch.float64)
    qkv = torch.randn(30, 3 * 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    weight = torch.randn(30, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    found = []
    for attend in (
        lambda values: _Grouped.apply(values, plan.groups, 2, 0.0, None, window),
        lambda values: _fused(values, plan, 2, 0.0, window),
    ):
        values = qkv.clone().requires_grad_()
        out = attend(values)
        (out * weight).sum().backward()
        found.append((out.detach(), values.grad))
    for exact, close in zip(*found, strict=True):
        assert torch.allclose(exact, close, atol=1e-12)


def test_rows_are_grouped_so_that_little_is_padded() -> None:
    lengths = np.array([60] * 10 + [50] * 20 + [10] * 100 + [9] * 100)
    plan = plan_attention(np.concatenate([[0], np.cumsum(lengths)]), device=torch.device("cpu"), dtype=torch.float32)
    assert [group.begin for group in plan.groups[1:]] == [group.end for group in plan.groups[:-1]]
    assert sum(group.rows * group.width for group in plan.groups) <= 1.15 * lengths.sum()


def test_the_gradient_of_the_fused_residual_norm_is_right() -> None:
    noise = Noise(torch.device("cpu"))
    generator = torch.Generator().manual_seed(1)
    update, residual = (torch.randn(4, 6, dtype=torch.float64, generator=generator, requires_grad=True) for _ in "ab")
    weight, bias = (torch.randn(6, dtype=torch.float64, generator=generator, requires_grad=True) for _ in "ab")

    def step(*values: torch.Tensor) -> torch.Tensor:
        noise.seek(1, 1, batch_of([[5] * 4]))
        return _DropAddNorm.apply(*values, 1e-5, 0.3, noise)

    assert torch.autograd.gradcheck(step, (update, residual, weight, bias))


def test_norm_weights_stay_in_fp32_for_bf16_inputs() -> None:
    norm = Norm(8, 1e-5)
    assert norm(torch.randn(3, 8, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert norm.weight.dtype == torch.float32


def test_sizes_that_do_not_go_together_are_an_error() -> None:
    with pytest.raises(ModelError, match="hidden size 30 is not a multiple of the number of heads, 4"):
        EncoderConfig(arch="bert", vocab_size=9, hidden=30, layers=1, heads=4, ffn=8, max_positions=8)
    with pytest.raises(ModelError, match="Activation 'step' is not known"):
        EncoderConfig(arch="bert", vocab_size=9, hidden=8, layers=1, heads=4, ffn=8, max_positions=8, activation="step")
