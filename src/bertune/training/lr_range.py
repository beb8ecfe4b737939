"""The learning-rate range test: one short training whose rate rises until the loss runs away.

Smith 2017, Cyclical Learning Rates for Training Neural Networks (arXiv 1506.01186, section 3.3), with a rate that rises
exponentially.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from bertune.config import Config, TrainConfig
from bertune.data.tokens import Tokenizer
from bertune.errors import ConfigError, Interrupted
from bertune.files import disk_full, write_json
from bertune.folder import check_output, prepare_output
from bertune.model.load import read_config
from bertune.model.machine import choose_machine
from bertune.model.source import open_source
from bertune.paths import cache_settings
from bertune.training.check import check_used
from bertune.training.compatible import check_base, check_compatible, check_depth, check_dropout
from bertune.training.features import first_trained_layer
from bertune.training.fit import Fit
from bertune.training.idle import IDLE
from bertune.training.interrupt import Interrupts, Stopped
from bertune.training.listen import Listener, Silent
from bertune.training.loop import Diverged, training_steps
from bertune.training.opening import check_fit, load, settle_length, settle_long_text
from bertune.training.prepare import read_splits, tokenize
from bertune.training.run import check_freeze
from bertune.training.settle import settle

STEPS, LOWEST, HIGHEST = 120, 1e-6, 1e-1
SMOOTHING = 0.9  # what is left of a loss in the smoothed one a step later
BELOW = 10  # times that the suggested rate lies below the one with the lowest loss
FALL = 0.05  # share of the first losses by which the loss has to fall for its lowest point to mean anything
AWAY, FAR = 1.5, 3.0  # times the first losses at which it runs away, and at which the test ends


@dataclass(frozen=True)
class LrRange:
    """found: what run/lr-range.json in `out` holds; see `judged`."""

    out: Path
    found: dict[str, Any]


def lr_range(
    config: Config, *, out: str | Path, steps: int = STEPS, lowest: float = LOWEST, highest: float = HIGHEST,
    source: Any = None, overwrite: bool = False, listener: Listener | None = None,
) -> LrRange:
    """Train for `steps` steps while the rate rises from `lowest` to `highest`, and write run/lr-range.json in `out`.

    The head's rate rises with it, ten times as high where it is new, as in training. What `config` says of schedules,
    averages and how long to train does not matter (see idle.py). No model is kept. Raises InputError
    for anything wrong with the input, before `out` is touched, and Interrupted.
    """
    out, listener = Path(out), listener or Silent()
    if steps < 20:
        raise ConfigError(f"--steps {steps}: a range test takes at least 20.")
    if not 0 < lowest < highest < math.inf:
        raise ConfigError(
            f"--from {lowest:g} --to {highest:g}: the rate rises from a positive one to a higher one, both finite."
        )
    if "auto" in (config.model.long_text, config.model.long_text_pair):
        raise ConfigError(
            "--long-text auto: is chosen by trainings at a rate that is known. Pass one of the ways it would try: "
            "head, tail, head+tail, or hierarchical."
        )
    default = TrainConfig()
    config = config.updated({"train": {name: getattr(default, name) for name in IDLE}})
    check_output(out, overwrite=overwrite, by="lr", inputs=config.read_files())
    with cache_settings(config.cache.folder, config.cache.limit):
        fit = _opened(config, out, lowest * (highest / lowest) ** (np.arange(steps) / (steps - 1)), source, listener)
        prepare_output(out, overwrite=overwrite, by="lr")
        with disk_full(f"a file in {out}", kept="Nothing was trained."):
            found = judged(*_losses(fit, listener), steps=steps)
            found |= {"batch_size": fit.plan.batch_size, "head": fit.plan.head_lr / fit.plan.lr}
            write_json(out / "run" / "lr-range.json", found)
    return LrRange(out, found)


def _opened(config: Config, out: Path, rates: np.ndarray, source: Any, listener: Listener) -> Fit:
    """A training that is ready for its first step, with `rates` in place of a schedule."""
    say = listener.say
    folder, _ = open_source(config.model.name, revision=config.model.revision)
    if config.pretrain.on:
        say("The rates are tested on the encoder as it is before pre-training.")
    encoder, tokenizer = read_config(folder), Tokenizer.load(folder)
    check_fit(tokenizer, encoder, folder)
    prepared = read_splits(source, config.data, say)
    check_used(config, prepared.task.kind, prepared.splits)
    check_freeze(config, encoder)
    check_compatible(config, encoder)
    check_base(config, folder)
    max_length = settle_length(config, encoder, prepared.task, tokenizer)
    prepared = replace(prepared, splits={"train": prepared.train})
    tokenize(
        prepared, tokenizer, max_length=max_length, truncation=config.model.truncation, say=say,
        long_text=settle_long_text(config, prepared.task, tokenizer, max_length),
    )  # fmt: skip
    model, new_head = load(config, folder, prepared.task, say)
    check_depth(config, encoder, model.depth)
    check_dropout(config, model)
    plan = settle(config.train, rows=len(prepared.train), encoder=encoder, new_head=new_head)
    plan = replace(plan, steps=len(rates), evaluate_at=())
    machine = choose_machine(config.train, long_run=False)
    machine.use()
    say(machine.sentence())
    fit = Fit(model, prepared, config, plan, machine, metric="", folder=out / "run", listener=listener, rates=rates)
    fit.course.start = first_trained_layer(config.model.freeze, encoder.layers)
    return fit


def _losses(fit: Fit, listener: Listener) -> tuple[np.ndarray, np.ndarray]:
    """(rates, losses) of the steps that were taken; the last loss is infinite where it was no longer a number."""
    rates: list[float] = []
    losses: list[float] = []
    listener.begin(fit.plan, 0)
    try:
        with Interrupts() as stop, fit.machine.repeatable():
            for step in training_steps(fit.model, fit.optimizer, fit.course, start=0, say=listener.say):
                rates.append(step.lr)
                losses.append(step.loss)
                listener.step(step)
                stop.check()
                if smoothed(np.array(losses))[-1] > FAR * _first(np.array(losses), fit.plan.steps):
                    break
    except Stopped:
        raise Interrupted("Stopped; a range test keeps nothing, and begins anew with --overwrite.") from None
    except Diverged:
        rates.append(float(fit.optimizer.rates[len(rates)]))
        losses.append(math.inf)
    finally:
        listener.end()
    return np.array(rates), np.array(losses)


def smoothed(losses: np.ndarray) -> np.ndarray:
    """The exponential moving average of the losses, divided by the sum of its weights."""
    total, weight, found = 0.0, 0.0, np.empty(len(losses))
    for place, loss in enumerate(losses):
        total, weight = SMOOTHING * total + (1 - SMOOTHING) * loss, SMOOTHING * weight + 1 - SMOOTHING
        found[place] = total / weight
    return found


def _first(losses: np.ndarray, steps: int) -> float:
    """What the loss was before the rate could do anything: the mean of the first tenth of `steps`; NaN: no number."""
    known = losses[: _tenth(steps)]
    known = known[np.isfinite(known)]
    return float(known.mean()) if len(known) else math.nan


def _tenth(steps: int) -> int:
    return max(2, steps // 10)


def judged(rates: np.ndarray, losses: np.ndarray, *, steps: int | None = None) -> dict[str, Any]:
    """What the losses at rising rates say; steps: of the whole test, of which there may be fewer losses.

    {"points": [{"lr", "loss", "smoothed"}], "lowest": {"lr", "loss"} of the smoothed loss after the first tenth of the
    steps, "suggestion": a tenth of that rate, None where the loss did not fall by 5 % of what it was at first,
    "diverged": the first rate from the lowest point on at which it is half as much again as at first, or no number;
    None where there is none}. A loss that is no number is None.
    """
    steps = steps or len(losses)
    line, first = smoothed(losses), _first(losses, steps)
    begin = min(_tenth(steps), len(losses) - 1)  # before it a point is the mean of few batches, or a single one
    place = begin + int(np.argmin(line[begin:]))
    away = np.flatnonzero(~(line[place:] <= AWAY * first))
    fell = line[place] < (1 - FALL) * first
    points = [
        {"lr": float(rate), "loss": float(loss) if math.isfinite(loss) else None,
         "smoothed": float(flat) if math.isfinite(flat) else None}
        for rate, loss, flat in zip(rates, losses, line, strict=True)
    ]  # fmt: skip
    return {
        "points": points, "first": first if math.isfinite(first) else None,
        "lowest": {"lr": float(rates[place]), "loss": points[place]["smoothed"]},
        "suggestion": float(rates[place]) / BELOW if fell else None,
        "diverged": float(rates[place + away[0]]) if len(away) else None,
    }  # fmt: skip


def in_words(found: dict[str, Any]) -> str:
    """What the test says, in two sentences."""
    points, lowest = found["points"], found["lowest"]
    away = (
        f"From {found['diverged']:.2g} on training runs away."
        if found["diverged"] is not None
        else f"Training does not run away up to {points[-1]['lr']:.2g}."
    )
    if found["first"] is None:
        return f"The loss is no number at the lowest rate already, {points[0]['lr']:.2g}; begin lower, with --from."
    if found["suggestion"] is None:
        return f"The loss hardly falls below {found['first']:.3g} at any rate, so that none is suggested. {away}"
    return (
        f"The loss is lowest, {lowest['loss']:.3g}, at a rate of {lowest['lr']:.2g}; a tenth of that is a good first "
        f"choice: --lr {found['suggestion']:.1e}. {away}"
    )
