"""What is decided before the first step: epochs, batch size, rate, evaluations, and what the run computes on."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bertune.config import TrainConfig
from bertune.errors import ConfigError
from bertune.model import machine
from bertune.model.encoder import EncoderConfig
from bertune.training.settle import Load, duration, estimate, settle


def encoder(hidden: int = 384) -> EncoderConfig:
    return EncoderConfig(
        arch="bert", vocab_size=100, hidden=hidden, layers=6, heads=4, ffn=4 * hidden, max_positions=512
    )


def plan(rows: int, *, hidden: int = 384, new_head: bool = False, lora: bool = False, **values: Any) -> Any:
    return settle(TrainConfig.model_validate(values), rows=rows, encoder=encoder(hidden), new_head=new_head, lora=lora)


class TestDefaults:
    def test_small_data_is_seen_more_often(self) -> None:
        epochs = [plan(rows).epochs for rows in (50, 1_000, 5_000, 20_000, 500_000)]

        assert epochs == sorted(epochs, reverse=True)
        assert epochs[0] > 2 * epochs[-1]
        assert epochs[-1] >= 2

    def test_narrow_encoders_take_larger_steps(self) -> None:
        rates = [plan(1000, hidden=hidden).lr for hidden in (256, 384, 768, 1024)]

        assert rates == sorted(rates, reverse=True)
        assert 1e-5 <= rates[-1] < rates[0] <= 1e-3

    def test_a_new_head_takes_larger_steps_than_the_encoder(self) -> None:
        assert plan(1000, lr=1e-4).head_lr == 1e-4
        assert plan(1000, lr=1e-4, new_head=True).head_lr == pytest.approx(1e-3)
        assert plan(1000, lr=1e-4, head_lr=5e-5, new_head=True).head_lr == 5e-5
        assert plan(1000, lr=1e-4, new_head=True).sentence().endswith("learning rate 0.0001 (head: 0.001).")

    def test_the_matrices_of_lora_take_larger_steps_where_no_rate_is_given(self) -> None:
        for hidden in (384, 768, 1024):
            full, found = (plan(1000, hidden=hidden, new_head=True, lora=lora) for lora in (False, True))
            assert (found.lr, found.head_lr) == (pytest.approx(10 * full.lr), pytest.approx(10 * full.head_lr))
        assert plan(1000, lora=True, new_head=True).sentence().endswith(
            "learning rate 0.001, 10 times the usual one, for LoRA (head: 0.01)."
        )
        assert plan(1000, lora=True, head_lr=1e-3).lr == pytest.approx(1e-3)
        given = plan(1000, lr=1e-4, new_head=True, lora=True)
        assert given == plan(1000, lr=1e-4, new_head=True)

    def test_what_is_given_is_taken(self) -> None:
        found = plan(1000, epochs=7, batch_size=50, lr=3e-4)

        assert (found.epochs, found.batch_size, found.lr, found.steps) == (7, 50, 3e-4, 140)

    def test_the_sentence_says_all_of_it(self) -> None:
        assert plan(1000, epochs=7, batch_size=50, lr=3e-4).sentence() == (
            "Training: 7 epochs of 20 steps (140 in all), 50 examples a step, learning rate 0.0003."
        )
        assert plan(16, epochs=1, batch_size=16, lr=1e-4).sentence() == (
            "Training: 1 epoch of 1 step, 16 examples a step, learning rate 0.0001."
        )
        assert "1 epoch of 20 steps (2 in all)" in plan(1000, epochs=7, batch_size=50, max_steps=2).sentence()


class TestEvaluations:
    def test_they_follow_each_epoch_and_the_last_step(self) -> None:
        assert plan(100, epochs=3, batch_size=10).evaluate_at == (10, 20, 30)

    def test_a_run_cut_short_is_still_measured_at_its_end(self) -> None:
        found = plan(100, epochs=3, batch_size=10, max_steps=14)

        assert (found.steps, found.epochs, found.evaluate_at) == (14, 2, (10, 14))

    def test_several_an_epoch_lie_evenly(self) -> None:
        assert plan(100, epochs=2, batch_size=10, evals_per_epoch=4).evaluate_at == (2, 5, 8, 10, 12, 15, 18, 20)

    def test_more_evaluations_than_steps_mean_one_after_every_step(self) -> None:
        assert plan(20, epochs=2, batch_size=10, evals_per_epoch=50).evaluate_at == (1, 2, 3, 4)

    def test_a_single_row_is_a_step(self) -> None:
        assert plan(1, epochs=2).evaluate_at == (1, 2)


class TestEstimate:
    def of(self, **changes: int) -> tuple[float, int]:
        load = Load(**({"tokens": 20_000, "rows": 1000, "labels": 3, "trained": 10**7} | changes))
        return estimate(encoder(), load, plan=plan(1000, epochs=4), token_budget=4096, dtype_bytes=2, flops=1e12)

    def test_time_and_memory_grow_with_what_they_depend_on(self) -> None:
        assert self.of(tokens=40_000)[0] == pytest.approx(2 * self.of()[0])
        assert self.of(trained=10**8)[1] - self.of()[1] > 12 * 9 * 10**7

    def test_frozen_layers_run_forward_and_once(self) -> None:
        half = self.of(frozen_layers=3, once=20_000)
        # Of 4 epochs, 3 layers x 3 passes (forward, and backward twice as long) remain, and 3 layers run once.
        assert half[0] == pytest.approx(self.of()[0] * (4 * 3 * 3 + 3) / (4 * 3 * 6))
        assert half[1] < self.of()[1]  # nothing is kept for the way back

        whole = self.of(frozen_layers=6, once=20_000)
        assert whole[0] == pytest.approx(self.of()[0] / 12)

    def test_a_frozen_weight_has_neither_gradient_nor_moments(self) -> None:
        assert self.of()[1] - self.of(trained=10**6, frozen=9 * 10**6)[1] == 12 * 9 * 10**6

    @pytest.mark.parametrize(
        ("seconds", "text"), [(0.2, "1 s"), (45, "45 s"), (89, "89 s"), (700, "12 min"), (12_000, "3 h 20 min")]
    )
    def test_durations_are_told_in_words(self, seconds: float, text: str) -> None:
        assert duration(seconds) == text


class TestMachine:
    @pytest.fixture(autouse=True)
    def no_gpu(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)

    def chosen(self, **values: Any) -> machine.Machine:
        return machine.choose_machine(TrainConfig.model_validate(values), long_run=False)

    @pytest.mark.parametrize(
        ("features", "precision"),
        [
            ({"amx_bf16": True, "avx512_bf16": True}, "bf16"),
            ({"amx_bf16": False, "avx512_bf16": True}, "bf16"),
            ({"avx2": True, "avx512_f": True}, "fp32"),
            ({}, "fp32"),
        ],
        ids=["AMX", "AVX-512 bf16", "AVX2", "another processor"],
    )
    def test_bf16_is_used_where_the_processor_has_it(
        self, monkeypatch: pytest.MonkeyPatch, features: dict[str, bool], precision: str
    ) -> None:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: features)

        assert self.chosen().precision == precision
        assert self.chosen(precision="fp32").precision == "fp32"
        assert self.chosen(precision="bf16").dtype == torch.bfloat16

    @pytest.mark.parametrize("device", ["cuda", "mps"])
    def test_a_device_that_is_not_there_is_an_error_that_names_those_that_are(self, device: str) -> None:
        with pytest.raises(ConfigError, match=f"--device {device}: not available here; available: cpu"):
            self.chosen(device=device)

    def test_the_processor_is_taken_where_there_is_nothing_else(self) -> None:
        found = self.chosen()

        assert found.device == "cpu"
        assert found.threads >= 1
        assert not found.compile

    def test_what_is_given_is_taken_and_survives_being_written_down(self) -> None:
        found = self.chosen(threads=3, token_budget=1234, precision="fp32")

        assert (found.threads, found.token_budget, found.precision) == (3, 1234, "fp32")
        assert machine.Machine(**found.to_dict()) == found  # type: ignore[arg-type]
        for words in ("3 threads", "fp32", "1,234 tokens at once"):
            assert words in found.sentence()
