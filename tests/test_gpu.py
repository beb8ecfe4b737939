"""What only a GPU can show: flash attention against the processor's, the same bits twice, and whole runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import bertune
from bertune.config import TrainConfig
from bertune.model.encoder import Inputs, inputs_of
from bertune.model.losses import make_loss
from bertune.model.machine import choose_machine
from bertune.training.loop import Course, training_steps
from bertune.training.optim import Optimizer
from shell import call, write_rows
from test_loop import ROWS, TARGETS, encoded, model_of, same
from tiny_models import batch_of, load_model, random_rows, tiny
from tiny_runs import make_tiny_bert, topic_rows

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that torch can use")

GPU = torch.device("cuda")
LENGTHS = [40, 31, 12, 3, 1]


def inputs(dtype: torch.dtype, device: torch.device = GPU) -> Inputs:
    return inputs_of(batch_of(random_rows(LENGTHS)), device=device, dtype=dtype)


@pytest.mark.parametrize("case", ["bert", "roberta", "distilbert", "electra with small embeddings", "modernbert"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_states_and_gradients_are_those_of_the_processor(case: str, dtype: torch.dtype, tmp_path: Path) -> None:
    tiny(case, head="SequenceClassification").save_pretrained(tmp_path)
    found = []
    for device, kind in ((torch.device("cpu"), torch.float32), (GPU, dtype)):
        model, _ = load_model(tmp_path)
        model.to(device).encoder.compute_in(kind)
        logits = model(inputs(kind, device))
        torch.nn.functional.cross_entropy(logits, torch.tensor([0, 2, 1, 1, 0], device=device)).backward()
        gradients = [value.grad.float().flatten().cpu() for value in model.parameters() if value.grad is not None]
        found.append((logits.detach().cpu(), torch.cat(gradients)))
    limit = 0.06 if dtype == torch.bfloat16 else 1e-4
    for exact, close in zip(*found, strict=True):
        assert (close - exact).norm() / exact.norm() < limit


class Run:
    """A short training on the GPU, compiled or not."""

    def __init__(self, folder: Path, *, precision: str, compiled: bool, steps: int = 6) -> None:
        config = TrainConfig.model_validate(
            {"warmup": 0.0, "schedule": "constant", "precision": precision, "compile": "yes" if compiled else "no"}
        )
        self.machine = choose_machine(config, long_run=False)
        self.machine.use()
        self.model = model_of(folder, 0.1).to(GPU)
        full = {name: value.detach() for name, value in self.model.named_parameters()}
        self.model.encoder.compute_in(self.machine.dtype)
        if compiled:
            for layer in self.model.encoder.layers:
                layer.compile(dynamic=True)
        self.optimizer = Optimizer(self.model, config, lr=1e-3, steps=6, full=full)
        loss = make_loss("single", config, TARGETS, 3, GPU)
        running = np.zeros((ROWS, 3), np.float32)
        self.course = Course(
            encoded=encoded(), targets=TARGETS, loss=loss, running=running, batch_size=8, steps=steps,
            token_budget=60, clip=1.0, seed=0,
        )

    def go(self, start: int = 0) -> list[tuple[float, float]]:
        with self.machine.repeatable():
            steps = list(training_steps(self.model, self.optimizer, self.course, start=start, say=print))
        return [(step.loss, step.norm) for step in steps]

    def weights(self) -> dict[str, torch.Tensor]:
        return {name: value.clone() for name, value in self.optimizer.weights().items()}


@pytest.fixture
def wide_bert(tmp_path: Path) -> Path:
    return make_tiny_bert(tmp_path / "wide", hidden=64, heads=2, ffn=128)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("compiled", [False, True])
def test_the_same_seed_gives_the_same_weights_bit_for_bit(wide_bert: Path, precision: str, compiled: bool) -> None:
    runs = [Run(wide_bert, precision=precision, compiled=compiled) for _ in range(2)]
    losses = [run.go() for run in runs]

    assert losses[0] == losses[1]
    assert same(runs[0].weights(), runs[1].weights())


def test_a_run_that_stops_and_goes_on_ends_with_the_same_weights(wide_bert: Path) -> None:
    whole, halved = Run(wide_bert, precision="bf16", compiled=False), Run(wide_bert, precision="bf16", compiled=False)
    wanted = whole.go()
    halved.course.steps = 3
    found = halved.go()
    weights, state = halved.optimizer.weights(), halved.optimizer.state()
    again = Run(wide_bert, precision="bf16", compiled=False)
    again.optimizer.load_state(weights, state)
    found += again.go(start=3)

    assert found == wanted
    assert same(whole.weights(), again.weights())


def test_dropout_differs_from_step_to_step(wide_bert: Path) -> None:
    run = Run(wide_bert, precision="bf16", compiled=False)
    run.course.batch_size = ROWS
    run.optimizer.apply = lambda step: run.optimizer.forget()  # type: ignore[method-assign]

    assert len({loss for loss, _ in run.go()}) == 6


def test_a_whole_run_answers_on_the_processor_what_it_answers_on_the_gpu(wide_bert: Path, tmp_path: Path) -> None:
    table = write_rows(tmp_path / "rows.csv", topic_rows(300))
    line = ["train", table, "--model", wide_bert, "--out", tmp_path / "run", "--lr", "3e-3", "--epochs", "4"]
    done = call(*line, "--device", "cuda", "--json")
    assert done.code == 0, done.err
    assert "Machine: cuda" in done.err
    texts = [row["text"] for row in topic_rows(40, seed=1)]
    there = bertune.load(tmp_path / "run", device="cuda").logits(texts)
    here = bertune.load(tmp_path / "run", device="cpu").logits(texts)

    assert np.abs(there - here).max() < 0.1 * np.abs(here).max()
