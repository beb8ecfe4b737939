"""Re-initialised layers: which weights are drawn anew, from what, and that it happens once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bertune.training.opening import reinitialize
from technique_runs import same_bits, stopped_and_resumed, train
from tiny_models import loaded, tiny
from tiny_runs import Told

pytestmark = pytest.mark.usefixtures("one_thread", "no_pictures")


def test_the_top_layer_and_the_pooler_are_new_and_all_else_is_as_it_came(tiny_bert: Path) -> None:
    plain, _ = loaded(tiny_bert)
    model, _ = loaded(tiny_bert)
    told = reinitialize(model, 1, seed=0)

    assert told == "head.dense, layer 1"
    for name, value in plain.named_parameters():
        same = torch.equal(value, dict(model.named_parameters())[name])
        assert same != name.startswith(("encoder.layers.1.", "head.dense.")), name
    layer = model.encoder.layers[1]
    for part in (layer.qkv, layer.out, layer.up, layer.down, model.head.dense):
        assert float(part.weight.detach().std()) == pytest.approx(0.02, rel=0.25)
        assert not part.bias.any()
    assert torch.equal(layer.norm1.weight, torch.ones(16)) and not layer.norm2.bias.any()


def test_new_layers_differ_from_one_another_and_follow_the_seed(tiny_bert: Path) -> None:
    drawn = []
    for seed in (0, 0, 1):
        model, _ = loaded(tiny_bert)
        reinitialize(model, 2, seed=seed)
        drawn.append(model.encoder.layers)

    assert not torch.equal(drawn[0][0].out.weight, drawn[0][1].out.weight)
    assert torch.equal(drawn[0][0].out.weight, drawn[1][0].out.weight)
    assert not torch.equal(drawn[0][0].out.weight, drawn[2][0].out.weight)


def test_of_modernbert_the_dense_layer_and_norm_of_the_head_are_new_too(tmp_path: Path) -> None:
    tiny("modernbert").save_pretrained(tmp_path)
    model, _ = loaded(tmp_path)

    assert reinitialize(model, 2, seed=0) == "head.dense, head.norm, layer 3, layer 4"


def test_a_run_says_it_and_a_resumed_one_does_not_lose_what_it_learned(tmp_path: Path, tiny_bert: Path) -> None:
    told = Told()
    whole = train(tmp_path / "whole", tiny_bert, model__reinit_layers=2, listener=told)
    assert "New weights, too: head.dense, layer 0, layer 1." in told.said

    assert same_bits(stopped_and_resumed(tmp_path / "out", tiny_bert, at=8, model__reinit_layers=2), whole)
