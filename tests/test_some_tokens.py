"""States of a few tokens alone are those of the whole, with the same masks and gradients."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bertune.model import kernels
from bertune.model.classifier import ClassifierModel
from bertune.model.noise import Noise
from tiny_models import CASES, batch_of, loaded, random_rows, tiny

pytestmark = pytest.mark.usefixtures("one_thread")
BATCH = batch_of(random_rows([60, 57, 31, 12, 3, 1]))
# First tokens and others, not in order; as many as the rows are, and as many as no other lines of the batch.
CHOSEN = [[0, 60, 5, 140, 163, 62, 117], [3, 59, 61, 120, 149, 163], [118], list(range(164))]


def _step(model: ClassifierModel, chosen: list[int], *, alone: bool) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The states, and the gradients of a sum that weighs them unequally."""
    model.zero_grad()
    places, noise = torch.tensor(chosen), Noise(torch.device("cpu"))
    noise.seek(0, 1, BATCH)
    inputs = model.inputs(BATCH)
    states = model.encoder(inputs, noise=noise, **({"only": places} if alone else {}))
    states = states if alone else states.index_select(0, places)
    weights = torch.randn(states.shape, generator=torch.Generator().manual_seed(0))
    (states.float() * weights).sum().backward()
    grads = {name: value.grad.float() for name, value in model.encoder.named_parameters() if value.grad is not None}
    return states.detach().float(), grads


def _encoder(case: str, folder: Path, dtype: torch.dtype, how: str) -> ClassifierModel:
    tiny(case).save_pretrained(folder)
    model, _ = loaded(folder)
    model.encoder.compute_in(dtype, kernels=how)
    return model


@pytest.mark.parametrize("chosen", CHOSEN, ids=len)
@pytest.mark.parametrize("case", CASES)
def test_a_few_tokens_have_the_states_and_gradients_of_the_whole(case: str, chosen: list[int], tmp_path: Path) -> None:
    model = _encoder(case, tmp_path, torch.float32, "torch")
    (whole, expected), (few, found) = (_step(model, chosen, alone=alone) for alone in (False, True))
    torch.testing.assert_close(few, whole, atol=1e-5, rtol=1e-5)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-4 * float(1 + value.abs().max()), rtol=0, msg=name)


@pytest.mark.skipif(kernels.library() is None, reason="kernels were not built: no C compiler at installation")
@pytest.mark.parametrize("chosen", CHOSEN, ids=len)
def test_so_they_have_with_compiled_kernels(chosen: list[int], tmp_path: Path) -> None:
    model = _encoder("bert", tmp_path, torch.bfloat16, "compiled")
    (whole, expected), (few, found) = (_step(model, chosen, alone=alone) for alone in (False, True))
    assert torch.equal(few, whole)
    for name, value in expected.items():
        assert (found[name] - value).norm() <= 0.02 * value.norm() + 1e-4, name


def test_after_a_few_tokens_come_all_again() -> None:
    noise = Noise(torch.device("cpu"))
    noise.seek(0, 1, BATCH)
    noise.ask(torch.tensor(CHOSEN[1]))
    assert torch.equal(noise.keys(len(CHOSEN[1])), noise.tokens[CHOSEN[1]]), "not the first tokens of the six rows"
    noise.seek(0, 2, BATCH)
    assert torch.equal(noise.keys(len(CHOSEN[1])), noise.first)
