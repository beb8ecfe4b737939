"""The training loop: what a step computes does not depend on how it is cut into pieces, nor on when it runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bertune.config import TrainConfig
from bertune.data.batch import Batch
from bertune.data.ragged import Encoded
from bertune.errors import BertuneError, TrainingError
from bertune.model.classifier import ClassifierModel
from bertune.model.infer import infer_logits
from bertune.model.losses import Loss, make_loss
from bertune.training import loop
from bertune.training.loop import Course, Step, training_steps
from bertune.training.optim import Optimizer
from tiny_models import batch_of
from tiny_runs import VOCABULARY

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
ROWS = 21
TARGETS = np.arange(ROWS) % 3


def encoded() -> Encoded:
    """Rows of 3 to 12 tokens."""
    random = np.random.default_rng(0)
    lengths = random.integers(3, 13, ROWS)
    ids = random.integers(5, len(VOCABULARY), int(lengths.sum())).astype(np.int32)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return Encoded(ids, np.zeros(len(ids), np.uint8), offsets, lengths.astype(np.int32))


class Training:
    """A tiny model, its optimizer and its course."""

    def __init__(self, folder: Path, *, dropout: float | None = None, settings: dict[str, Any] | None = None,
                 **course: Any) -> None:  # fmt: skip
        values = {"token_budget": 4096, "batch_size": 8, "steps": 6, "clip": None, "seed": 0} | course
        config = TrainConfig.model_validate({"warmup": 0.0, "schedule": "constant"} | (settings or {}))
        self.model = model_of(folder, dropout)
        self.optimizer = Optimizer(self.model, config, lr=1e-3, steps=values["steps"], full={})
        loss = make_loss("single", config, TARGETS, 3, CPU)
        running = np.zeros((ROWS, 3), np.float32)
        self.course = Course(encoded=encoded(), targets=TARGETS, loss=loss, running=running, **values)
        self.said: list[str] = []

    def steps(self, *, start: int = 0) -> list[Step]:
        return list(training_steps(self.model, self.optimizer, self.course, start=start, say=self.said.append))

    def weights(self) -> dict[str, Tensor]:
        self.optimizer.finish(self.course.steps)
        return {name: value.clone() for name, value in self.model.state_dict().items()}


def model_of(folder: Path, dropout: float | None) -> ClassifierModel:
    from bertune.model.heads import decide_head
    from bertune.model.load import load_model, read_config

    head = decide_head(
        read_config(folder), pooling="auto", head="auto", num_labels=3, head_hidden=7, head_dropout=dropout
    )
    return load_model(folder, head=head, dropout=dropout)[0]


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, right[name]) for name, value in left.items())


class TestMicroBatches:
    def test_the_gradient_of_a_step_does_not_depend_on_the_token_budget(self, tiny_bert: Path) -> None:
        def gradients(budget: int) -> tuple[float, float, Tensor]:
            training = Training(tiny_bert, dropout=0.0, token_budget=budget, batch_size=ROWS, steps=1)
            found: list[Tensor] = []
            training.optimizer.apply = lambda step: found.extend(  # type: ignore[method-assign]
                grad.flatten().clone() for grad in training.optimizer.grads if grad is not None
            )
            step = training.steps()[0]
            return step.loss, step.norm, torch.cat(found)

        loss, norm, wanted = gradients(4096)
        for budget in (1, 30):
            found = gradients(budget)
            assert found[0] == pytest.approx(loss, rel=1e-5)
            assert found[1] == pytest.approx(norm, rel=1e-4)
            assert torch.allclose(found[2], wanted, rtol=1e-3, atol=1e-6)

    def test_a_small_budget_really_makes_several_passes(self, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        passes: list[int] = []
        forward = loop._logits
        monkeypatch.setattr(loop, "_logits", lambda *args: passes.append(len(args[2])) or forward(*args))
        Training(tiny_bert, token_budget=30, batch_size=ROWS, steps=1).steps()

        assert len(passes) > 3
        assert sum(passes) == ROWS

    def test_the_loss_is_the_mean_over_all_rows_of_the_step(self, tiny_bert: Path) -> None:
        training = Training(tiny_bert, dropout=0.0, token_budget=30, batch_size=ROWS, steps=1)
        data = encoded()
        rows = [data.ids[data.offsets[row] : data.offsets[row + 1]].tolist() for row in range(ROWS)]
        with torch.no_grad():
            logits = training.model(training.model.inputs(batch_of(rows)))
            wanted = torch.nn.functional.cross_entropy(logits, torch.from_numpy(TARGETS)).item()

        assert training.steps()[0].loss == pytest.approx(wanted, rel=1e-5)
        assert np.allclose(training.course.running, logits.numpy(), atol=1e-5)


class TestOrder:
    def test_the_last_step_of_an_epoch_takes_the_rows_that_are_left(self, tiny_bert: Path) -> None:
        steps = Training(tiny_bert).steps()

        assert [step.number for step in steps] == [1, 2, 3, 4, 5, 6]
        assert [step.rows for step in steps] == [8, 8, 5, 8, 8, 5]
        assert sum(step.tokens for step in steps) == 2 * int(encoded().offsets[-1])
        assert all(0 <= step.wasted < step.pairs for step in steps)

    def test_every_row_is_seen_once_an_epoch_in_another_order_each_time(
        self, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen: list[list[int]] = []
        forward = loop._logits
        monkeypatch.setattr(loop, "_logits", lambda *args: seen.append(args[2].rows.tolist()) or forward(*args))
        Training(tiny_bert).steps()
        first, second = ([row for rows in part for row in rows] for part in (seen[:3], seen[3:]))

        assert sorted(first) == sorted(second) == list(range(ROWS))
        assert first != second

    def test_a_loop_started_in_the_middle_does_what_the_whole_one_does_there(self, tiny_bert: Path) -> None:
        whole, halved = Training(tiny_bert), Training(tiny_bert)
        wanted = whole.steps()
        halved.course.steps = 4
        halved.steps()
        halved.course.steps = 6
        found = halved.steps(start=4)

        assert [(step.number, step.loss, step.norm) for step in found] == [
            (step.number, step.loss, step.norm) for step in wanted[4:]
        ]
        assert same(whole.weights(), halved.weights())

    def test_seeds_give_other_weights_and_the_same_seed_the_same(self, tiny_bert: Path) -> None:
        weights = []
        for seed in (0, 0, 1):
            training = Training(tiny_bert, seed=seed)
            training.steps()
            weights.append(training.weights())

        assert same(weights[0], weights[1])
        assert not same(weights[0], weights[2])


class TestNoise:
    def test_training_uses_dropout_and_the_same_rows_get_other_masks_every_step(self, tiny_bert: Path) -> None:
        training = Training(tiny_bert, dropout=0.5, batch_size=ROWS, steps=4)
        training.optimizer.apply = lambda step: training.optimizer.forget()  # type: ignore[method-assign]
        losses = [step.loss for step in training.steps()]

        assert len(set(losses)) == 4


class TestMemory:
    """Running out of memory is simulated: the error is the one that a GPU raises."""

    def out_of_memory(
        self, monkeypatch: pytest.MonkeyPatch, fits: Callable[[Course, int], bool]
    ) -> None:
        backward = loop._backward

        def limited(*args: Any) -> float:
            course, batches, number = args[2], args[3], args[4]
            if not fits(course, number):
                for batch in batches[:1]:  # some gradients are there already
                    backward(*args[:3], [batch], *args[4:])
                raise torch.cuda.OutOfMemoryError("no room")
            return backward(*args)

        monkeypatch.setattr(loop, "_backward", limited)

    def test_the_token_budget_is_halved_until_a_step_fits_and_the_step_counts_once(
        self, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        wanted = Training(tiny_bert, token_budget=32)
        wanted.steps()
        self.out_of_memory(monkeypatch, lambda course, number: course.token_budget <= 32)
        training = Training(tiny_bert, token_budget=128)
        steps = training.steps()

        assert len(steps) == 6
        assert training.course.token_budget == 32
        assert [text for text in training.said if "out of GPU memory" in text] == [
            "Step 1: out of GPU memory; going on with 64 tokens at once.",
            "Step 1: out of GPU memory; going on with 32 tokens at once.",
        ]
        assert same(training.weights(), wanted.weights())

    def test_a_row_that_does_not_fit_by_itself_ends_the_run_with_advice(
        self, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.out_of_memory(monkeypatch, lambda course, number: False)

        with pytest.raises(TrainingError, match=r"Step 1: the GPU has no room for even one row of 1\d tokens.*--max-l"):
            Training(tiny_bert, token_budget=128).steps()


    def test_measuring_halves_its_batches_until_they_fit(self, tiny_bert: Path) -> None:
        training = Training(tiny_bert)
        model, encoded = training.model, training.course.encoded
        wanted = infer_logits(model, encoded, budget=64)
        sizes: list[int] = []

        def limited(batch: Batch) -> Tensor:
            if batch.tokens > 40:
                raise torch.cuda.OutOfMemoryError("no room")
            sizes.append(len(batch))
            return model(model.inputs(batch))

        assert np.allclose(infer_logits(model, encoded, budget=4096, forward=limited), wanted, atol=1e-5)
        assert sum(sizes) == len(encoded) and max(sizes) > 1

    def test_measuring_a_row_that_does_not_fit_by_itself_ends_with_advice(self, tiny_bert: Path) -> None:
        def never(batch: Batch) -> Tensor:
            raise torch.cuda.OutOfMemoryError("no room")

        training = Training(tiny_bert)
        with pytest.raises(BertuneError, match=r"The GPU has no room for one row of \d+ tokens. Lower --max-length"):
            infer_logits(training.model, training.course.encoded, budget=64, forward=never)


class TestDivergence:
    @pytest.mark.parametrize("what", ["loss", "gradient"])
    def test_a_step_that_is_not_finite_changes_no_weight(
        self, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch, what: str
    ) -> None:
        training = Training(tiny_bert)
        before: dict[str, Tensor] = {}
        usual, calls = training.course.loss, []

        class Broken(Loss):
            def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
                calls.append(1)
                value = usual(logits, targets)
                if len(calls) < 4:
                    return value
                # sqrt has an infinite slope at 0: a finite loss whose gradient is not
                return value * torch.nan if what == "loss" else value + (logits - logits.detach()).sum().abs().sqrt()

        training.course.loss = Broken("single")
        with pytest.raises(TrainingError, match=f"Step 4: the {what} is no longer a finite number.*--lr.*0.001"):
            for step in training_steps(
                training.model, training.optimizer, training.course, start=0, say=training.said.append
            ):
                training.optimizer.finish(step.number)
                before = {name: value.clone() for name, value in training.model.state_dict().items()}

        assert same(before, training.model.state_dict())
        assert all(value.grad is None for value in training.model.parameters())
