"""The optimizer: token embeddings are updated by row, and still every weight is what dense Adam would make of it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bertune.config import TrainConfig
from bertune.model import kernels
from bertune.model.classifier import ClassifierModel
from bertune.model.noise import Noise
from bertune.training.optim import Optimizer, freeze
from bertune.training.rates import learning_rates
from bertune.training.rowadam import RowAdam
from tiny_models import batch_of, loaded, random_rows
from tiny_runs import VOCABULARY

pytestmark = pytest.mark.usefixtures("one_thread")

STEPS = 60


def config(**values: Any) -> TrainConfig:
    return TrainConfig.model_validate({"weight_decay": 0.1, "lr": 1e-2} | values)


class TestLearningRates:
    def test_the_warm_up_rises_evenly_to_the_peak(self) -> None:
        rates = learning_rates(config(warmup=0.25, schedule="constant"), peak=1.0, steps=20)

        assert np.allclose(rates[:5], np.arange(1, 6) / 6)
        assert np.allclose(rates[5:], 1.0)

    def test_linear_falls_evenly_and_ends_just_above_zero(self) -> None:
        rates = learning_rates(config(warmup=0.1, schedule="linear"), peak=2e-5, steps=100)

        assert rates.max() == rates[10] == 2e-5
        assert np.allclose(np.diff(rates[10:]), -2e-5 / 90)
        assert 0 < rates[-1] <= 2e-5 / 90 * 1.01

    def test_cosine_falls_slowly_at_both_ends(self) -> None:
        rates = learning_rates(config(warmup=0.0, schedule="cosine"), peak=1.0, steps=100)

        assert rates[0] == 1.0
        assert math.isclose(rates[50], 0.5)
        assert np.all(np.diff(rates) < 0)
        assert 0 < rates[-1] < 1e-3
        assert abs(rates[1] - rates[0]) < 1e-3 < abs(rates[51] - rates[50])

    def test_constant_without_warm_up_is_the_peak_from_the_first_step(self) -> None:
        assert learning_rates(config(warmup=0.0, schedule="constant"), peak=1e-4, steps=7).tolist() == [1e-4] * 7

    def test_the_slanted_triangle_is_that_of_its_paper(self) -> None:
        """Howard & Ruder 2018, equation 3, with T = 200, cut_frac = 0.1 and ratio = 32."""
        rates = learning_rates(config(warmup=0.1, schedule="slanted-triangular"), peak=0.01, steps=200)
        cut = 20
        for step in range(200):
            share = step / cut if step < cut else 1 - (step - cut) / (cut * (1 / 0.1 - 1))
            assert rates[step] == pytest.approx(0.01 * (1 + share * 31) / 32)
        assert rates.max() == rates[cut] == 0.01

    @pytest.mark.parametrize("schedule", ["linear", "cosine", "constant", "slanted-triangular"])
    @pytest.mark.parametrize("steps", [1, 2, 3])
    def test_the_shortest_runs_have_positive_rates(self, schedule: str, steps: int) -> None:
        rates = learning_rates(config(schedule=schedule), peak=1.0, steps=steps)

        assert rates.shape == (steps,)
        assert np.all((rates > 0) & (rates <= 1))


def rows_of_a_step(random: np.random.Generator, size: int) -> np.ndarray:
    """Some table rows as words of a text are: a few all the time, most of them rarely."""
    return np.unique(np.minimum(random.zipf(1.4, 12) - 1, size - 1))


def trained_tables(
    *, betas: tuple[float, float] = (0.9, 0.999), decay: float = 0.1, steps: int = STEPS, scale: float = 1.0
) -> tuple[RowAdam, Tensor]:
    """The same gradients through RowAdam and through torch's dense AdamW: (rows, dense table)."""
    random, size, width = np.random.default_rng(0), 150, 6
    start = torch.from_numpy(random.normal(size=(size, width)).astype(np.float32))
    rates = learning_rates(config(schedule="linear"), peak=1e-2, steps=steps)
    ours = RowAdam(nn.Parameter(start.clone()), rates, betas=betas, eps=1e-8, decay=decay)
    theirs = nn.Parameter(start.clone())
    dense = torch.optim.AdamW([theirs], lr=1.0, betas=betas, eps=1e-8, weight_decay=decay)
    for step in range(1, steps + 1):
        rows = rows_of_a_step(random, size)
        grad = torch.from_numpy(random.normal(size=(len(rows), width)).astype(np.float32)) * scale
        ours.catch_up(rows, step - 1)
        index = torch.from_numpy(rows)
        with torch.no_grad():
            ours.update(index, ours.table[index], grad, step)
        theirs.grad = torch.zeros_like(theirs).index_copy_(0, index, grad)
        dense.param_groups[0]["lr"] = rates[step - 1]
        dense.step()
    ours.catch_up(None, steps)
    return ours, theirs.detach()


class TestRowAdam:
    @pytest.mark.parametrize("betas", [(0.9, 0.999), (0.8, 0.95), (0.9, 0.98), (0.95, 0.999), (0.0, 0.9)], ids=str)
    @pytest.mark.parametrize("decay", [0.0, 0.1])
    def test_it_equals_dense_adam_for_common_and_rare_rows(self, betas: tuple[float, float], decay: float) -> None:
        ours, dense = trained_tables(betas=betas, decay=decay)

        assert torch.allclose(ours.table, dense, rtol=0, atol=2e-6)

    def test_it_equals_dense_adam_for_rows_that_wait_for_hundreds_of_steps(self) -> None:
        ours, dense = trained_tables(steps=700)

        assert torch.allclose(ours.table, dense, rtol=0, atol=5e-6)

    def test_it_equals_dense_adam_for_gradients_as_small_as_those_of_a_mean_loss(self) -> None:
        ours, dense = trained_tables(scale=1e-5)

        assert torch.allclose(ours.table, dense, rtol=0, atol=2e-5)

    def test_momentum_that_does_not_die_away_is_left_to_the_dense_optimizer(self, tiny_bert: Path) -> None:
        model, _ = loaded(tiny_bert)
        optimizer = new_optimizer(model, config(betas=(0.95, 0.9)))

        assert not RowAdam.fits((0.95, 0.9))
        assert optimizer.words(np.array([5, 6]), 1) is None
        assert "encoder.embeddings.word.weight" in optimizer.weights()

    def test_rows_that_never_occur_only_decay(self) -> None:
        rates = np.full(10, 0.5)
        ours = RowAdam(nn.Parameter(torch.ones(3, 2)), rates, betas=(0.9, 0.999), eps=1e-8, decay=0.1)
        ours.catch_up(None, 10)

        assert torch.allclose(ours.table, torch.full((3, 2), 0.95**10))

    def test_catching_up_twice_changes_nothing(self) -> None:
        ours, _ = trained_tables()
        before = ours.table.detach().clone(), ours.mean.clone(), ours.square.clone()
        ours.catch_up(None, STEPS)

        assert torch.equal(ours.table, before[0])
        assert torch.equal(ours.mean, before[1])
        assert torch.equal(ours.square, before[2])


def plain_loop(
    model: ClassifierModel, batches: Iterator[tuple[list[list[int]], Tensor]], *, values: TrainConfig, decay: float,
    clip: float, noisy: bool,
) -> None:  # fmt: skip
    """The textbook loop: dense gradients for the whole model, torch's own AdamW and clipping."""
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, value in model.named_parameters():
        without = name.endswith(".bias") or ".norm" in name
        groups.setdefault((name.startswith("head."), without), []).append(value)
    optimizer = torch.optim.AdamW(
        [{"params": params, "weight_decay": 0.0 if without else decay, "head": head}
         for (head, without), params in groups.items()],
        betas=values.betas, eps=values.eps,
    )  # fmt: skip
    rates = learning_rates(values, peak=values.lr or 0.0, steps=STEPS)
    noise = Noise(torch.device("cpu"))
    for step, (rows, targets) in enumerate(batches, 1):
        batch = batch_of(rows)
        noise.seek(0, step, batch)
        logits = model(model.inputs(batch), noise=noise if noisy else None)
        nn.functional.cross_entropy(logits, targets).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        for group in optimizer.param_groups:
            scale = (values.head_lr or values.lr or 0.0) / (values.lr or 1.0) if group["head"] else 1.0
            group["lr"] = rates[step - 1] * scale
        optimizer.step()
        optimizer.zero_grad()


def batches(*, seed: int = 0) -> Iterator[tuple[list[list[int]], Tensor]]:
    random = np.random.default_rng(seed)
    for step in range(STEPS):
        lengths = random.integers(3, 9, 4)
        rows = [np.minimum(random.zipf(1.5, length) + 4, len(VOCABULARY) - 1).tolist() for length in lengths]
        yield rows, torch.from_numpy(random.integers(0, 3, 4) if step else np.array([0, 1, 2, 0]))


def our_step(
    model: ClassifierModel, optimizer: Optimizer, rows: list[list[int]], targets: Tensor, step: int, *, noisy: bool,
    clip: float,
) -> None:  # fmt: skip
    batch, noise = batch_of(rows), Noise(torch.device("cpu"))
    noise.seek(0, step, batch)
    optimizer.begin(step)
    look_up = optimizer.words(batch.ids, step)
    words = look_up(batch.ids) if look_up is not None else None
    logits = model(model.inputs(batch), noise=noise if noisy else None, words=words)
    nn.functional.cross_entropy(logits, targets).backward()
    optimizer.collect()
    optimizer.clip(clip, optimizer.gradient_norm())
    optimizer.apply(step)


def new_optimizer(model: ClassifierModel, values: TrainConfig) -> Optimizer:
    return Optimizer(model, values, lr=values.lr or 0.0, head_lr=values.head_lr, steps=STEPS, full={})


class TestOptimizer:
    @pytest.fixture(params=[False, True], ids=["torch", "compiled"], autouse=True)
    def _both_ways(self, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
        if request.param and kernels.library() is None:
            pytest.skip("kernels were not built: no C compiler at installation")
        defaults = Optimizer.__init__.__kwdefaults__
        assert defaults is not None
        monkeypatch.setitem(defaults, "compiled", request.param)

    @pytest.mark.parametrize(
        ("values", "decay"),
        [
            ({}, 0.1),
            ({"optimizer": "adam", "warmup": 0.0, "schedule": "constant"}, 0.0),
            ({"head_lr": 3e-2, "schedule": "cosine"}, 0.1),
            ({"betas": (0.85, 0.97), "eps": 1e-6}, 0.1),
        ],
        ids=["adamw", "adam", "a rate of its own for the head", "other betas"],
    )
    @pytest.mark.parametrize("noisy", [False, True], ids=["no dropout", "dropout"])
    def test_a_model_trains_as_with_dense_adam(
        self, tiny_bert: Path, values: dict[str, Any], decay: float, noisy: bool
    ) -> None:
        settings = config(**values | {"lr": 2e-3})
        ours, _ = loaded(tiny_bert)
        theirs, _ = loaded(tiny_bert)
        start = {name: value.clone() for name, value in theirs.state_dict().items()}
        optimizer = new_optimizer(ours, settings)
        for step, (rows, targets) in enumerate(batches(), 1):
            our_step(ours, optimizer, rows, targets, step, noisy=noisy, clip=0.5)
        optimizer.finish(STEPS)
        plain_loop(theirs, batches(), values=settings, decay=decay, clip=0.5, noisy=noisy)

        # Keys need no bias: softmax does not see it, its gradient is rounding noise, and Adam scales noise up.
        hidden = ours.encoder.config.hidden
        for name, value in theirs.state_dict().items():
            found, wanted = ours.state_dict()[name], value
            if name.endswith("qkv.bias"):
                found, wanted = (torch.cat([part[:hidden], part[2 * hidden :]]) for part in (found, wanted))
            assert torch.allclose(found, wanted, rtol=0, atol=2e-5), name
            moved = (value - start[name]).abs().max()
            assert moved > 1e-3, f"{name} hardly moved, so the comparison says nothing"

    def test_berts_own_adam_corrects_no_moment_and_decays_apart(self, tiny_bert: Path) -> None:
        settings = config(optimizer="bert-adam", lr=2e-3, schedule="constant", warmup=0.0)
        ours, _ = loaded(tiny_bert)
        theirs, _ = loaded(tiny_bert)
        optimizer = new_optimizer(ours, settings)
        moments: dict[str, tuple[Tensor, Tensor]] = {}
        for step, (rows, targets) in zip(range(1, 26), batches(), strict=False):
            our_step(ours, optimizer, rows, targets, step, noisy=False, clip=1e9)
            batch = batch_of(rows)
            theirs.zero_grad()
            nn.functional.cross_entropy(theirs(theirs.inputs(batch)), targets).backward()
            with torch.no_grad():
                for name, value in theirs.named_parameters():
                    assert value.grad is not None
                    mean, square = moments.setdefault(name, (torch.zeros_like(value), torch.zeros_like(value)))
                    mean.mul_(0.9).add_(value.grad, alpha=0.1)
                    square.mul_(0.999).addcmul_(value.grad, value.grad, value=0.001)
                    plain = name.endswith("bias") or ".norm" in name
                    value.mul_(1 if plain else 1 - 2e-3 * 0.1).sub_(2e-3 * mean / (square.sqrt() + 1e-8))
        optimizer.finish(25)

        hidden = ours.encoder.config.hidden
        for name, value in theirs.named_parameters():
            found, wanted = ours.state_dict()[name], value.detach()
            if name.endswith("qkv.bias"):
                found, wanted = (torch.cat([part[:hidden], part[2 * hidden :]]) for part in (found, wanted))
            assert torch.allclose(found, wanted, rtol=0, atol=5e-5), name

    def test_without_correction_the_first_step_is_some_three_times_as_long(self, tiny_bert: Path) -> None:
        moves = []
        for name in ("adamw", "bert-adam"):
            model, _ = loaded(tiny_bert)
            before = model.encoder.layers[1].down.weight.detach().clone()
            optimizer = new_optimizer(
                model, config(optimizer=name, schedule="constant", warmup=0.0, weight_decay=0.0, eps=1e-30)
            )
            rows, targets = next(batches())
            our_step(model, optimizer, rows, targets, 1, noisy=False, clip=1e9)
            moves.append(float((model.encoder.layers[1].down.weight.detach() - before).abs().max()))

        assert moves[1] / moves[0] == pytest.approx(0.1 / 0.001**0.5, rel=1e-3)

    def test_finish_may_be_called_any_number_of_times(self, tiny_bert: Path) -> None:
        model, _ = loaded(tiny_bert)
        optimizer = new_optimizer(model, config())
        for step, (rows, targets) in zip(range(1, 6), batches(), strict=False):
            our_step(model, optimizer, rows, targets, step, noisy=False, clip=1.0)
        optimizer.finish(5)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        optimizer.finish(5)

        assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())

    def test_a_restored_optimizer_goes_on_bit_for_bit(self, tiny_bert: Path) -> None:
        steps = list(enumerate(batches(), 1))[:20]
        model, _ = loaded(tiny_bert)
        optimizer = new_optimizer(model, config())
        for step, (rows, targets) in steps[:11]:
            our_step(model, optimizer, rows, targets, step, noisy=True, clip=1.0)
        weights = {name: value.clone() for name, value in model.state_dict().items()}
        state = {name: value.clone() for name, value in optimizer.state().items()}

        other, _ = loaded(tiny_bert, seed=5)
        restored = new_optimizer(other, config())
        other.load_state_dict(weights)
        restored.load_state(weights, state)
        for each, both in ((model, optimizer), (other, restored)):
            for step, (rows, targets) in steps[11:]:
                our_step(each, both, rows, targets, step, noisy=True, clip=1.0)
            both.finish(20)

        assert all(torch.equal(value, other.state_dict()[name]) for name, value in model.state_dict().items())

    def test_clipping_scales_every_gradient_to_the_limit(self, tiny_bert: Path) -> None:
        model, _ = loaded(tiny_bert)
        optimizer = new_optimizer(model, config())
        batch = batch_of(random_rows([5, 7], vocabulary=40))
        look_up = optimizer.words(batch.ids, 1)
        assert look_up is not None
        (model(model.inputs(batch), words=look_up(batch.ids)).sum() * 100).backward()
        optimizer.collect()
        norm = optimizer.gradient_norm()
        optimizer.clip(0.5, norm)

        assert norm > 0.5
        assert optimizer.gradient_norm() == pytest.approx(0.5, rel=1e-4)
        optimizer.clip(None, norm)
        optimizer.clip(9.0, optimizer.gradient_norm())
        assert optimizer.gradient_norm() == pytest.approx(0.5, rel=1e-4)

    def test_the_norm_counts_the_token_embeddings(self, tiny_bert: Path) -> None:
        ours, _ = loaded(tiny_bert)
        theirs, _ = loaded(tiny_bert)
        optimizer = new_optimizer(ours, config())
        batch = batch_of([[5, 6, 6, 7], [8, 6]])
        look_up = optimizer.words(batch.ids, 1)
        assert look_up is not None
        ours(ours.inputs(batch), words=look_up(batch.ids)).square().sum().backward()
        optimizer.collect()
        theirs(theirs.inputs(batch)).square().sum().backward()
        dense = torch.cat([value.grad.flatten() for value in theirs.parameters() if value.grad is not None]).norm()

        assert optimizer.gradient_norm() == pytest.approx(float(dense), rel=1e-5)

    def test_masters_of_bf16_weights_start_from_the_exact_values_of_the_file(self, tiny_bert: Path) -> None:
        exact, _ = loaded(tiny_bert)
        model, _ = loaded(tiny_bert)
        full = {name: value.detach() for name, value in model.named_parameters()}
        model.encoder.compute_in(torch.bfloat16)
        full = {name: full[name] for name, value in model.named_parameters() if value.dtype == torch.bfloat16}
        optimizer = Optimizer(model, config(), lr=1e-2, steps=STEPS, full=full)

        assert full
        for name, master in optimizer.weights().items():
            assert master.dtype == torch.float32
            assert torch.equal(master, exact.state_dict()[name]), name

    def test_weights_that_lie_transposed_in_memory_train_as_others_do(self, tiny_bert: Path) -> None:
        plain, _ = loaded(tiny_bert)
        strided, _ = loaded(tiny_bert)
        for value in strided.parameters():  # as files of torch.save may hold them
            if value.ndim == 2 and value is not strided.encoder.embeddings.word.weight:
                value.data = value.data.t().contiguous().t()
        optimizers = [new_optimizer(model, config()) for model in (plain, strided)]
        for step, (rows, targets) in zip(range(1, 6), batches(), strict=False):
            for model, optimizer in zip((plain, strided), optimizers, strict=True):
                our_step(model, optimizer, rows, targets, step, noisy=False, clip=1.0)

        for name, value in plain.state_dict().items():
            assert torch.allclose(strided.state_dict()[name], value, rtol=0, atol=1e-5), name

    def test_bf16_weights_follow_their_masters(self, tiny_bert: Path) -> None:
        model, _ = loaded(tiny_bert)
        full = {name: value.detach() for name, value in model.named_parameters()}
        model.encoder.compute_in(torch.bfloat16)
        full = {name: full[name] for name, value in model.named_parameters() if value.dtype == torch.bfloat16}
        optimizer = Optimizer(model, config(lr=1e-5), lr=1e-5, steps=STEPS, full=full)
        before = {name: value.clone() for name, value in optimizer.weights().items()}
        for step, (rows, targets) in zip(range(1, 4), batches(), strict=False):
            our_step(model, optimizer, rows, targets, step, noisy=False, clip=1.0)

        for name, master in optimizer.weights().items():
            # Steps far smaller than a bf16 can tell apart are kept in the master, and the weight is its rounding.
            assert not torch.equal(master, before[name]), name
            assert torch.equal(master.to(model.state_dict()[name].dtype), model.state_dict()[name]), name


class TestFreeze:
    @pytest.mark.parametrize(
        ("what", "frozen"),
        [
            ("none", ()),
            ("embeddings", ("encoder.embeddings.",)),
            ("1", ("encoder.embeddings.", "encoder.layers.0.")),
            ("2", ("encoder.embeddings.", "encoder.layers.")),
            ("encoder", ("encoder.",)),
        ],
    )
    def test_what_is_frozen_has_no_gradient_and_everything_else_has(
        self, tiny_bert: Path, what: str, frozen: tuple[str, ...]
    ) -> None:
        model, _ = loaded(tiny_bert)
        freeze(model, what, train_positions=True)

        for name, value in model.named_parameters():
            assert value.requires_grad == (not name.startswith(frozen) if frozen else True), name

    def test_positions_can_be_left_untrained_alone(self, tiny_bert: Path) -> None:
        model, _ = loaded(tiny_bert)
        freeze(model, "none", train_positions=False)

        assert [name for name, value in model.named_parameters() if not value.requires_grad] == [
            "encoder.embeddings.position.weight"
        ]
