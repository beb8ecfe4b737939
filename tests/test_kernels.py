"""The compiled kernels compute what torch's operators compute, with the same dropout masks."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from bertune.errors import ConfigError
from bertune.model import fused, kernels, machine
from bertune.model.classifier import ClassifierModel
from bertune.model.encoder import ACTIVATIONS, activation_table
from bertune.model.kernels import Drop
from bertune.model.noise import Noise, level, mask, mask_factor
from bertune.model.pretraining import _guess, tied_loss
from tiny_models import batch_of, loaded, random_rows, scrambled, tiny

built = pytest.mark.skipif(kernels.library() is None, reason="kernels were not built: no C compiler at installation")
LENGTHS = [70, 66, 33, 17, 16, 15, 5, 3]
RATE = 0.3


@pytest.fixture(params=[1, 2], autouse=True)
def threads(request: pytest.FixtureRequest) -> int:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def _random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


def _drop(lines: int, site: int = 4) -> Drop:
    noise = Noise(torch.device("cpu"))
    noise.seek(0, 1, batch_of([[5]] * lines))
    return Drop(noise.tokens, site, level(RATE), mask_factor(RATE))


def _close(found: torch.Tensor, expected: torch.Tensor, parts: float = 1.5) -> bool:
    """Equal within `parts` of the last bit of bf16, or of what that is at the scale of the whole."""
    apart = (found.float() - expected.float()).abs()
    return bool((apart <= parts * 2**-8 * (expected.float().abs() + 0.01 * expected.float().abs().max())).all())


@built
@pytest.mark.parametrize("dropout", [False, True])
@pytest.mark.parametrize("width", [16, 37, 384])
def test_norm_and_its_gradient(dropout: bool, width: int) -> None:
    lines = 300
    drop = _drop(lines) if dropout else None
    update, residual, grad = (_random(lines, width, seed=seed) for seed in (1, 2, 3))
    weight, bias = _random(width, seed=4).float(), _random(width, seed=5).float()
    kept = mask(drop.keys, width, RATE, torch.float32, site=4) * drop.factor if drop else torch.ones(lines, width)

    leaves = [value.float().requires_grad_() for value in (update, residual, weight, bias)]
    exact = leaves[1] + leaves[0] * kept
    total = exact + (exact.bfloat16().float() - exact).detach()  # what is normed is kept in bf16
    expected = F.layer_norm(total, (width,), leaves[2], leaves[3], 1e-5)
    expected.backward(grad.float())

    held = update.clone()
    out, stats = kernels.norm(held, residual, weight, bias, eps=1e-5, drop=drop)
    assert _close(held, total.detach(), 1)
    assert _close(out, expected.detach(), 4)
    grad_residual, grad_update, sums = kernels.norm_back(grad, held, stats, weight, drop=drop)
    assert _close(grad_residual, leaves[1].grad, 6)
    assert _close(grad_update, leaves[0].grad, 6)
    assert torch.equal(grad_update == 0, kept == 0) if drop else grad_update is grad_residual
    assert torch.allclose(sums[0], leaves[2].grad, rtol=0.01, atol=0.3)
    assert torch.allclose(sums[1], leaves[3].grad, rtol=1e-4, atol=1e-3)
    assert torch.allclose(sums[2], leaves[0].grad.sum(dim=0), rtol=0.01, atol=0.1)


@pytest.fixture(params=["plain", "pairs", "tiles"])
def instructions(request: pytest.FixtureRequest) -> str:
    """With the processor's tiles, with its products of bf16 pairs, where it has them, and without."""
    switch = ctypes.c_int.in_dll(kernels.library(), "bertune_with")
    before, switch.value = switch.value, ["plain", "pairs", "tiles"].index(request.param)
    yield request.param
    switch.value = before


@built
@pytest.mark.usefixtures("instructions")
@pytest.mark.parametrize("dropout", [False, True])
@pytest.mark.parametrize(("heads", "size"), [(4, 32), (3, 64), (2, 6), (5, 40)])
@pytest.mark.parametrize("lengths", [[70, 66, 33, 17, 16, 15, 5, 3, 1], [1], [300, 40], [64] * 3])
def test_attention_and_its_gradient(lengths: list[int], heads: int, size: int, dropout: bool) -> None:
    tokens, hidden, longest = sum(lengths), heads * size, max(lengths)
    offset = torch.tensor([0, *np.cumsum(lengths)])
    drop = _drop(tokens) if dropout else None
    qkv, grad = _random(tokens, 3 * hidden, seed=1), _random(tokens, hidden, seed=2)

    leaf = qkv.float().requires_grad_()
    contexts = []
    for begin, end in pairwise(offset):
        query, key, value = leaf[begin:end].view(-1, 3, heads, size).permute(1, 2, 0, 3)
        weights = torch.softmax(query @ key.transpose(1, 2) / size**0.5, dim=-1)
        if drop is not None:
            keys = drop.keys[None, begin:end]
            weights = weights * mask(keys, len(query[0]), RATE, torch.float32, site=4, heads=heads)[0] * drop.factor
        contexts.append((weights @ value).transpose(0, 1).reshape(-1, hidden))
    expected = torch.cat(contexts)
    expected.backward(grad.float())

    context, stats = kernels.attend(qkv, offset, longest=longest, heads=heads, drop=drop)
    assert _near(context, expected.detach())
    grad_qkv = kernels.attend_back(grad, qkv, stats, offset, longest=longest, heads=heads, drop=drop)
    for found, wanted in zip(grad_qkv.chunk(3, dim=1), leaf.grad.chunk(3, dim=1), strict=True):
        assert _near(found, wanted)


def _near(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Equal but for what rounding weights and slopes to bf16 brings into a sum of many."""
    apart = found.float() - expected
    return bool(apart.norm() <= 0.01 * expected.norm() and apart.abs().max() <= 0.03 * expected.abs().max() + 1e-6)


@built
def test_attention_is_the_same_bits_for_any_number_of_threads() -> None:
    lengths = [70, 33, 5, 40]
    offset = torch.tensor([0, *np.cumsum(lengths)])
    qkv, grad, drop = _random(148, 3 * 96, seed=1), _random(148, 96, seed=2), _drop(148)
    made = []
    for count in (1, 2, 3, 5):
        torch.set_num_threads(count)
        context, stats = kernels.attend(qkv, offset, longest=70, heads=3, drop=drop)
        made.append((context, kernels.attend_back(grad, qkv, stats, offset, longest=70, heads=3, drop=drop)))
    assert all(torch.equal(one, other) for again in made[1:] for one, other in zip(made[0], again, strict=True))


tiled = pytest.mark.skipif(not kernels.has_tiles(), reason="no tiles (AMX) here, or kernels were not built")


@tiled
@pytest.mark.parametrize("lines", [1, 31, 32, 33, 300, 1700])
@pytest.mark.parametrize(("into", "out"), [(32, 64), (384, 96), (96, 1568)])
def test_products_of_tiles(lines: int, into: int, out: int) -> None:
    """Forward, and both gradients; 1,700 tokens and 1,568 columns are more than is summed up at once."""
    values, weight, bias = _random(lines, into, seed=1), _random(out, into, seed=2), _random(out, seed=3)
    grad, before = _random(lines, out, seed=4), _random(lines, into, seed=5)
    for left, right, add in (
        (values, weight.t(), bias), (values, weight.t(), None), (grad, weight, before), (grad.t(), values, None)
    ):
        exact = left.double() @ right.double() + (0 if add is None else add.double())
        found = kernels.product(left, right, add)
        assert found.dtype == torch.bfloat16 and found.is_contiguous()
        assert _close(found, exact, parts=1.01)


@tiled
def test_a_product_does_not_depend_on_threads_or_other_lines() -> None:
    values, weight = _random(700, 1600, seed=1), _random(1600, 64, seed=2)
    whole = kernels.product(values, weight)
    assert torch.equal(kernels.product(values[:45], weight), whole[:45])
    across = kernels.product(values.t(), values)
    for count in (1, 3):
        torch.set_num_threads(count)
        assert torch.equal(kernels.product(values, weight), whole)
        assert torch.equal(kernels.product(values.t(), values), across)


@tiled
def test_numbers_that_are_not_finite_stay_where_they_are() -> None:
    values, weight = _random(40, 64, seed=1), _random(32, 64, seed=2)
    values[3, 5], values[39, 63] = torch.inf, torch.nan
    finite = kernels.product(values, weight.t()).isfinite()
    assert not finite[3].any() and not finite[39].any() and finite.sum() == 38 * 32


@pytest.mark.parametrize(("lines", "depth", "columns"), [(3, 64, 26), (3, 17, 32), (0, 32, 32)])
def test_products_that_tiles_do_not_take_are_those_of_torch(lines: int, depth: int, columns: int) -> None:
    left, right, add = _random(lines, depth), _random(columns, depth, seed=1).t(), _random(columns, seed=2)
    assert torch.equal(kernels.product(left, right, add), torch.addmm(add, left, right))
    assert torch.equal(kernels.product(left.float(), right.float()), torch.mm(left.float(), right.float()))


@built
@pytest.mark.parametrize("with_bias", [True, False])
def test_a_linear_layer_and_its_gradients(with_bias: bool) -> None:
    values, weight = _random(70, 64, seed=1).requires_grad_(), _random(96, 64, seed=2).requires_grad_()
    bias = _random(96, seed=3).requires_grad_() if with_bias else None
    leaves = [leaf for leaf in (values, weight, bias) if leaf is not None]
    grad = _random(70, 96, seed=4)
    found = fused.linear(values, weight, bias)
    again = F.linear(values, weight, bias)
    assert _close(found, again)
    pairs = zip(*(torch.autograd.grad(out, leaves, grad) for out in (found, again)), strict=True)
    assert all(_close(one, other) for one, other in pairs)


@tiled
def test_guessing_masks_over_any_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    """Vocabularies are hardly ever a multiple of what tiles take."""
    states, table = _random(50, 64, seed=1).float(), (0.1 * _random(1003, 64, seed=2)).float()
    bias, targets = 0.1 * _random(1003, seed=3).float(), torch.arange(50) * 20
    made = []
    for tiles, compiled in ((True, True), (True, False), (False, True), (False, False)):
        monkeypatch.setattr(kernels, "has_tiles", lambda tiles=tiles: tiles)
        leaves = [value.clone().requires_grad_() for value in (states, table, bias)]
        loss = tied_loss(*leaves, targets, scale=0.5, dtype=torch.bfloat16, compiled=compiled)
        made.append((loss, *torch.autograd.grad(loss, leaves)))
    for some in made[:-1]:
        for found, expected in zip(some, made[-1], strict=True):
            assert found.shape == expected.shape
            assert (found - expected).norm() <= 0.01 * expected.norm()


@built
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize(("lines", "width", "columns"), [(3, 5, 5), (40, 1003, 1024), (200, 700, 704)])
def test_scores_become_the_gradient_of_their_cross_entropy(
    lines: int, width: int, columns: int, with_bias: bool
) -> None:
    scores, bias = 4 * _random(lines, columns), _random(width, seed=1).float() if with_bias else None
    targets = torch.arange(lines) * 7 % width
    leaves = [scores[:, :width].float().requires_grad_(), *([] if bias is None else [bias.clone().requires_grad_()])]
    loss = F.cross_entropy(sum(leaves), targets, reduction="sum")  # type: ignore[arg-type]
    (0.25 * loss).backward()
    for turned in (kernels.guess, _guess):
        found = scores.clone()
        total, grad_bias = turned(found, targets, bias, width=width, scale=0.25)
        torch.testing.assert_close(total, loss.detach())
        assert _close(found[:, :width], leaves[0].grad)
        assert not found[:, width:].any()
        if bias is not None:
            torch.testing.assert_close(grad_bias, leaves[1].grad, atol=1e-4, rtol=1e-4)


@built
def test_a_score_that_is_no_number_is_seen_in_the_loss() -> None:
    scores = _random(2, 64)
    scores[1, 7] = torch.nan
    assert kernels.guess(scores, torch.tensor([3, 3]), None, width=64, scale=1.0)[0].isnan()


@built
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_are_exact_for_every_number(name: str) -> None:
    every = torch.arange(65536, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    values = every[every.isfinite()].clone()
    leaf = values.float().requires_grad_()
    expected = ACTIVATIONS[name](leaf)
    (slope,) = torch.autograd.grad(expected.sum(), leaf)
    out = kernels.activate(values, activation_table(name))
    assert torch.equal(out, expected.bfloat16())
    assert torch.equal(values.nan_to_num(7), slope.bfloat16().nan_to_num(7))  # torch's own overflows here and there
    nothing = torch.tensor([torch.nan], dtype=torch.bfloat16)
    assert kernels.activate(nothing, activation_table(name)).isnan().all()


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_table_of_an_activation_is_the_same_where_no_gradients_are_kept(name: str) -> None:
    with torch.inference_mode():
        table = kernels.activation_table(ACTIVATIONS[name])
    assert torch.equal(table, kernels.activation_table(ACTIVATIONS[name]))


@built
def test_products_and_sums_over_tokens() -> None:
    values, other = _random(300, 50, seed=1), _random(300, 50, seed=2)
    product = values.float() * other.float()
    assert torch.allclose(kernels.times_and_sum(values, other), product.sum(dim=0), rtol=1e-4, atol=1e-3)
    assert torch.equal(values, product.bfloat16())
    assert torch.allclose(kernels.times_and_sum(other, None), other.float().sum(dim=0), rtol=1e-4, atol=1e-3)


def _step(model: ClassifierModel, how: str, noise: bool) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    batch = batch_of(random_rows(LENGTHS))
    source = Noise(torch.device("cpu"))
    source.seek(0, 1, batch)
    dtype = torch.float32 if how == "fp32" else torch.bfloat16
    model.encoder.compute_in(dtype, kernels="torch" if how == "fp32" else how)
    logits = model(model.inputs(batch), noise=source if noise else None)
    F.cross_entropy(logits, torch.arange(len(LENGTHS)) % 3).backward()
    return logits.detach(), {name: value.grad.float() for name, value in model.named_parameters()}


def _model(case: str, folder: Path, pooling: str = "mean") -> ClassifierModel:
    tiny(case).save_pretrained(folder)
    model, _ = loaded(folder, pooling=pooling, head="linear")
    scrambled(model.head)
    return model


@built
@pytest.mark.parametrize("noise", [False, True])
@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("case", ["bert", "bert with tanh gelu", "roberta", "distilbert", "electra"])
def test_a_whole_step_is_as_near_to_fp32_as_with_torchs_operators(
    case: str, pooling: str, noise: bool, tmp_path: Path
) -> None:
    """The masks are the same in all three, or the gradients would have nothing in common."""
    exact, torchs, ours = (_step(_model(case, tmp_path, pooling), how, noise) for how in ("fp32", "torch", "compiled"))
    assert _model(case, tmp_path).encoder.compute_in(torch.bfloat16, kernels="compiled").layers[0].compiled
    assert (ours[0] - exact[0]).abs().max() <= 2 * (torchs[0] - exact[0]).abs().max() + 1e-3

    def error(found: dict[str, torch.Tensor]) -> float:
        parts = [(found[name] - value).norm() / value.norm().clamp_min(1e-3) for name, value in exact[1].items()]
        return float(torch.stack(parts).mean())

    assert error(ours[1]) <= 1.5 * error(torchs[1]) + 0.005


@built
def test_what_is_not_a_number_stays_visible(tmp_path: Path) -> None:
    model = _model("bert", tmp_path)
    model.encoder.compute_in(torch.bfloat16, kernels="compiled")
    with torch.no_grad():
        model.encoder.layers[0].qkv.bias[0] = torch.nan  # type: ignore[union-attr]
    assert model(model.inputs(batch_of(random_rows(LENGTHS)))).isnan().all()


@built
def test_the_same_step_gives_the_same_bits(tmp_path: Path) -> None:
    first, second = (_step(_model("bert", tmp_path), "compiled", True) for _ in "ab")
    assert torch.equal(first[0], second[0])
    assert all(torch.equal(value, second[1][name]) for name, value in first[1].items())


def test_kernels_that_were_not_built_are_missed_only_where_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "library", lambda: None)
    assert machine.choose_kernels("auto", "cpu", "bf16") == "torch"
    with pytest.raises(ConfigError, match="are built when bertune is installed"):
        machine.choose_kernels("compiled", "cpu", "bf16")
    with pytest.raises(ConfigError, match="for bf16 on a processor; this run computes in fp32 on cpu"):
        machine.choose_kernels("compiled", "cpu", "fp32")


def test_a_run_that_began_with_kernels_is_not_resumed_without_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "library", lambda: None)
    began = machine.Machine("cpu", "bf16", 1, 4096, False, "a processor", "compiled")
    with pytest.raises(ConfigError, match="the run in out was started with compiled kernels, and they are not there"):
        machine.check_kernels(began, Path("out"))
    machine.check_kernels(replace(began, kernels="torch"), Path("out"))


def test_layers_that_kernels_do_not_know_stay_with_torch(tmp_path: Path) -> None:
    tiny("modernbert").save_pretrained(tmp_path)
    model, _ = loaded(tmp_path)
    assert not any(layer.compiled for layer in model.encoder.compute_in(torch.bfloat16, kernels="compiled").layers)




@built
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_adam_steps_as_torchs_does(dtype: torch.dtype) -> None:
    weight, low = _random(9000).float(), _random(9000)
    master, mean, square = weight.clone(), torch.zeros(9000), torch.zeros(9000)
    theirs = torch.nn.Parameter(weight)
    optimizer = torch.optim.AdamW([theirs], lr=0.01, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.1)
    for step in range(1, 4):
        grad = _random(9000, seed=step).to(dtype)
        theirs.grad = grad.float() * 0.5
        optimizer.step()
        kernels.adam(
            master, mean, square, low, grad, scale=0.5, betas=(0.9, 0.98), rate=0.01 / (1 - 0.9**step),
            root=1 / (1 - 0.98**step) ** 0.5, eps=1e-6, keep=1 - 0.01 * 0.1,
        )
    assert torch.allclose(master, theirs.detach(), rtol=1e-5, atol=1e-6)
    assert torch.equal(low, master.bfloat16())


@built
def test_sums_of_squares() -> None:
    grads = [_random(70_001), _random(11, 13).float(), torch.empty(0)]
    expected = sum(float(grad.double().square().sum()) for grad in grads)
    assert kernels.square_sum(grads) == pytest.approx(expected, rel=1e-6)
    assert kernels.square_sum([torch.tensor([torch.inf])]) == float("inf")
    assert kernels.square_sum([]) == 0


@built
def test_fewer_threads_than_asked_for_compute_all_the_same() -> None:
    """Some OpenMP settings give a smaller team; what it does not compute would be left as the memory was."""
    code = (
        "import torch; from bertune.model import kernels; torch.set_num_threads(4)\n"
        "values = torch.ones(3000, 64, dtype=torch.bfloat16)\n"
        "out = kernels.activate(values, kernels.activation_table(torch.relu))\n"
        "assert bool((out == 1).all()), out; assert float(kernels.times_and_sum(out, None)[0]) == 3000"
    )
    environment = os.environ | {"OMP_THREAD_LIMIT": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@built
def test_a_library_of_other_sources_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_VERSION", -1)
    assert kernels.library.__wrapped__() is None
