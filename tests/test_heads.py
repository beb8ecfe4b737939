"""Pooling reads the right tokens, and every head computes what it says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from bertune.model.encoder import EncoderConfig, inputs_of
from bertune.model.heads import Head, HeadConfig, decide_head, pool
from bertune.model.noise import Noise
from tiny_models import CASES, batch_of, loaded, own_head, random_rows, scrambled, tiny

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")
INPUTS = inputs_of(batch_of([[5, 6, 7], [8], [9, 9]]), device=CPU, dtype=torch.float32)
STATES = torch.tensor([[1.0, -4.0], [2.0, -6.0], [6.0, -5.0], [7.0, 0.5], [-3.0, 0.0], [-1.0, 2.0]])


def _encoder(arch: str = "bert") -> EncoderConfig:
    return EncoderConfig(
        arch=arch, vocab_size=10, hidden=2, layers=1, heads=1, ffn=4, max_positions=8, head_dropout=0.2
    )  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("pooling", "expected"),
    [
        ("cls", [[1.0, -4.0], [7.0, 0.5], [-3.0, 0.0]]),
        ("mean", [[3.0, -5.0], [7.0, 0.5], [-2.0, 1.0]]),
        ("max", [[6.0, -4.0], [7.0, 0.5], [-1.0, 2.0]]),
    ],
)
def test_pooling_reads_each_rows_own_tokens(pooling: str, expected: list[list[float]]) -> None:
    assert torch.equal(pool(STATES, INPUTS, pooling), torch.tensor(expected))  # type: ignore[arg-type]


@pytest.mark.parametrize("pooling", ["cls", "mean", "max"])
def test_pooling_of_bf16_states_is_fp32(pooling: str) -> None:
    assert pool(STATES.bfloat16(), INPUTS, pooling).dtype == torch.float32  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("pooling", "expected"),
    [
        ("cls", [[1, 1], [0, 0], [0, 0], [1, 1], [1, 1], [0, 0]]),
        ("mean", [[1 / 3, 1 / 3]] * 3 + [[1, 1]] + [[1 / 2, 1 / 2]] * 2),
        ("max", [[0, 1], [0, 0], [1, 0], [1, 1], [0, 0], [1, 1]]),
    ],
)
def test_the_gradient_of_pooling_reaches_the_tokens_it_read(pooling: str, expected: list[list[float]]) -> None:
    states = STATES.clone().requires_grad_()
    pool(states, INPUTS, pooling).sum().backward()  # type: ignore[arg-type]
    assert torch.allclose(states.grad, torch.tensor(expected, dtype=torch.float32))


def test_the_linear_head_is_one_linear_layer_over_the_pooled_states() -> None:
    head = Head(_encoder(), HeadConfig(kind="linear", pooling="mean", num_labels=3, dropout=0.1))
    assert [name for name, _ in head.named_parameters()] == ["classifier.weight", "classifier.bias"]
    expected = pool(STATES, INPUTS, "mean") @ head.classifier.weight.T + head.classifier.bias
    assert torch.allclose(head.classify(head.pool([STATES], INPUTS)), expected)


def test_the_mlp_head_is_that_of_the_published_system() -> None:
    """Dropout .3, Linear(hidden, 50), ReLU, Dropout .3, Linear(50, labels) on the first token."""
    head = Head(_encoder(), HeadConfig(kind="mlp", pooling="cls", num_labels=6, dropout=0.3, hidden=50))
    plain = nn.Sequential(
        nn.Dropout(0.3), nn.Linear(2, 50), nn.ReLU(), nn.Dropout(0.3), nn.Linear(50, 6)
    ).eval()  # fmt: skip
    state = head.state_dict()
    plain.load_state_dict({
        "1.weight": state["dense.weight"], "1.bias": state["dense.bias"],
        "4.weight": state["classifier.weight"], "4.bias": state["classifier.bias"],
    })  # fmt: skip
    assert torch.allclose(head.classify(head.pool([STATES], INPUTS)), plain(STATES[[0, 3, 4]]))


def test_dropout_stands_before_each_linear_layer_of_the_mlp() -> None:
    head = Head(_encoder(), HeadConfig(kind="mlp", pooling="cls", num_labels=2, dropout=0.5, hidden=8))
    seen: list[tuple[int, ...]] = []

    class Recorder(Noise):
        def dropout(self, values: torch.Tensor, rate: float) -> torch.Tensor:
            assert rate == 0.5
            seen.append(tuple(values.shape))
            return values

    head.classify(head.pool([STATES], INPUTS), noise=Recorder(CPU))
    assert seen == [(3, 2), (3, 8)]


def test_auto_is_the_architectures_own_head_unless_it_lacks_the_pooling_asked_for() -> None:
    def kind(head: str, pooling: str, arch: str = "bert") -> tuple[str, str]:
        chosen = decide_head(
            _encoder(arch), pooling=pooling, head=head, num_labels=2, head_hidden=50, head_dropout=None
        )
        return chosen.kind, chosen.pooling

    assert kind("auto", "auto") == ("own", "cls")
    assert kind("auto", "cls") == ("own", "cls")
    assert kind("auto", "mean") == ("linear", "mean")
    assert kind("linear", "auto") == ("linear", "cls")
    assert kind("mlp", "max") == ("mlp", "max")
    assert kind("auto", "mean", "modernbert") == ("own", "mean")  # transformers has both poolings there
    assert kind("auto", "max", "modernbert") == ("linear", "max")
    assert kind("auto", "auto", "adapter") == ("linear", "cls")  # what transformers has there is not ours to know


def test_the_heads_dropout_is_the_models_own_unless_given() -> None:
    arguments = {"pooling": "auto", "head": "auto", "num_labels": 2, "head_hidden": 50}
    assert decide_head(_encoder(), **arguments, head_dropout=None).dropout == 0.2  # type: ignore[arg-type]
    assert decide_head(_encoder(), **arguments, head_dropout=0.0).dropout == 0.0  # type: ignore[arg-type]


@pytest.mark.parametrize("case", CASES)
def test_dropout_stands_where_transformers_has_it(case: str, tmp_path: Path) -> None:
    """Each side's dropout is replaced by a factor of one half, so that every place it acts shows in the logits."""
    theirs = tiny(case, head="SequenceClassification")
    theirs.save_pretrained(tmp_path)
    ours, _ = loaded(tmp_path, keep_head=True)
    for name, part in theirs.named_modules():
        if isinstance(part, nn.Dropout) and name.split(".")[0] in ("classifier", "dropout", "drop"):
            part.forward = lambda values: values / 2  # type: ignore[method-assign]
    rows = random_rows([8, 8])

    class Halving(Noise):
        def dropout(self, values: torch.Tensor, rate: float) -> torch.Tensor:
            return values / 2

    batch = batch_of(rows)
    with torch.no_grad():
        expected = theirs(torch.tensor(rows)).logits
        states = ours.encoder(ours.inputs(batch))
        pooled = ours.head.pool([states], ours.inputs(batch))
        assert torch.allclose(ours.head.classify(pooled, noise=Halving(CPU)), expected, atol=1e-5)


def test_logits_are_fp32_and_one_a_label(tmp_path: Path) -> None:
    tiny("bert").save_pretrained(tmp_path)
    for head in ("auto", "linear", "mlp"):
        ours, _ = loaded(tmp_path, head=head, labels=4)
        scrambled(ours.head)
        logits = ours(ours.inputs(batch_of(random_rows([4, 2]))))
        assert (logits.shape, logits.dtype) == ((2, 4), torch.float32)
    assert own_head(tmp_path, labels=4).num_labels == 4
