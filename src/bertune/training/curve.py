"""The learning curve: what fewer training rows reach, and what twice as many would bring."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bertune.config import Config
from bertune.data.tasks import Task
from bertune.errors import ConfigError
from bertune.evaluate.growth import at, fit_growth
from bertune.evaluate.learning import plot_growth
from bertune.evaluate.metrics import METRICS
from bertune.evaluate.resample import Scores, draws_for, percentiles, resamples
from bertune.files import write_json
from bertune.training.listen import Listener, Silent
from bertune.training.outcome import Outcome
from bertune.training.run import Result
from bertune.training.several import run_each

SHARES = (0.125, 0.25, 0.5, 1.0)


@dataclass(frozen=True)
class LearningCurve:
    """curve: what run/learning-curve.json holds; the trainings are results of their own in run/curve/."""

    out: Path
    task: Task
    curve: dict[str, Any]


def learning_curve(
    config: Config, *, out: str | Path, shares: Sequence[float] = SHARES, repeats: int = 2, source: Any = None,
    resume: bool = False, overwrite: bool = False, listener: Listener | None = None,
) -> LearningCurve:
    """Train on growing shares of the training rows, each `repeats` times with other rows and another seed.

    Every training is measured on the same test rows. In `out` lies then no model of its own, but
    run/learning-curve.json and .png, and each training as a result in run/curve/. Raises what `run` raises.
    """
    out = Path(out)
    shares = sorted({float(f"{share:g}") for share in shares})  # as they are told, and as folders are named
    if len(shares) < 3:
        raise ConfigError("--shares: a curve takes at least 3 different shares, for example 0.25,0.5,1.")
    if shares[0] <= 0 or shares[-1] > 1:
        wrong = shares[0] if shares[0] <= 0 else shares[-1]
        raise ConfigError(f"--shares: {wrong:g} is not a share; they lie above 0 and end with 1 at most.")
    if repeats < 1:
        raise ConfigError(f"--repeats {repeats}: takes at least 1.")
    if config.data.share != 1:
        raise ConfigError(f"data.share {config.data.share:g}: the curve sets it; leave it out.")
    if config.data.test is None and (config.data.valid is not None or not config.data.hold_out):
        raise ConfigError("The learning curve is measured on test rows, and there are none. Pass --test.")
    seed = config.train.seed
    # The largest first: it is what fails, if one does.
    order = [(share, number) for share in reversed(shares) for number in range(repeats)]
    variants: dict[str, dict[str, Any]] = {
        f"{share:g}-{number}": {
            "data": {"share": share, "share_seed": number if share < 1 else 0}, "train": {"seed": seed + number}
        }
        for share, number in order
    }
    results = run_each(
        variants, config, out=out, folder="curve", title="Share", source=source, resume=resume, overwrite=overwrite,
        listener=listener or Silent(),
    )
    by_share = {
        share: [result for (of, _), result in zip(order, results, strict=True) if of == share] for share in shares
    }
    curve = growth(by_share)
    write_json(out / "run" / "learning-curve.json", curve)
    plot_growth(curve, out / "run" / "learning-curve.png")
    return LearningCurve(out, results[0].task, curve)


def growth(results: dict[float, list[Result]]) -> dict[str, Any]:
    """The curve through the results of each share, and the end of it that nobody has seen.

    {"metric", "repeats", "points": [{"share", "rows", "value", "values", "low", "high", "baselines"}],
    "fit": {"floor", "factor", "power"}, "twice": {"rows", "value", "low", "high", "now", "gain": {"difference", "low",
    "high"}}}. Intervals are of 95 %, over the rows of the test split and, with two repeats or more, over the luck of
    rows and seed; `now` is what the fit says of the largest share, and `gain` is against that.
    """
    first = next(iter(results.values()))[0]
    name = first.metrics["metric"]
    sign = 1.0 if METRICS[name].higher_is_better else -1.0
    outcomes = {share: [Outcome.read(result.out, "test") for result in found] for share, found in results.items()}
    task = first.task
    scores = [[outcome.scores(task.labels) for outcome in found] for found in outcomes.values()]
    groups = next(iter(outcomes.values()))[0].groups
    values, drawn = _measured(scores, name, groups)
    rows = np.array([found[0].metrics["train"]["rows"] for found in results.values()], np.float64)
    means = values.mean(axis=1)
    limits = [percentiles(drawn[:, place]) or (None, None) for place in range(len(rows))]
    points = []
    for place, (share, found) in enumerate(results.items()):
        baselines = {
            baseline: float(np.mean([result.metrics["baselines"][baseline]["test"][name] for result in found]))
            for baseline, splits in found[0].metrics["baselines"].items() if splits["test"].get(name) is not None
        }
        points.append({
            "share": share, "rows": int(rows[place]), "value": float(means[place]), "values": values[place].tolist(),
            "low": limits[place][0], "high": limits[place][1], "baselines": baselines,
        })  # fmt: skip
    curve: dict[str, Any] = {"metric": name, "repeats": values.shape[1], "points": points}
    known = np.isfinite(drawn).all(axis=1)
    # What grows is turned into what falls: the distance to 1, the best that such metrics can be.
    error = (lambda value: 1 - value) if sign > 0 else (lambda value: value)
    weights = 1 / np.maximum(drawn[known].var(axis=0), 1e-8)
    whole = fit_growth(rows, error(means)[None], weights)
    each = fit_growth(rows, error(drawn[known]), weights)
    last, twice = float(rows[-1]), 2 * float(rows[-1])
    value, low_high = float(error(at(whole, twice))[0]), percentiles(error(at(each, twice)))
    gains = at(each, last) - at(each, twice)  # of the error: a fall, whichever way the metric goes
    gain, gain_limits = float((at(whole, last) - at(whole, twice))[0]), percentiles(gains)
    now = float(error(at(whole, last))[0])
    assert low_high is not None and gain_limits is not None
    curve["fit"] = dict(zip(("floor", "factor", "power"), whole[0].tolist(), strict=True))
    curve["twice"] = {
        "rows": int(twice), "value": value, "now": now, "low": low_high[0], "high": low_high[1],
        "gain": {"difference": gain, "low": gain_limits[0], "high": gain_limits[1]},
    }
    return curve


def _measured(
    scores: list[list[Scores]], metric: str, groups: Sequence[object] | None
) -> tuple[np.ndarray, np.ndarray]:
    """The metric of each training, [sizes, repeats], and its mean over repeats under draws of rows and repeats,
    [draws, sizes]."""
    one = np.ones((1, scores[0][0].rows))
    values = np.array([[score(one, [metric])[metric][0] for score in found] for found in scores])
    count = draws_for(scores[0][0].rows, scores[0][0].width)
    random = np.random.default_rng(0)
    parts = []
    for weights in resamples(scores[0][0].rows, draws=count, groups=groups):
        drawn = np.stack([[score(weights, [metric])[metric] for score in found] for found in scores])  # [s, r, draws]
        repeats = drawn.shape[1]
        picked = random.integers(0, repeats, drawn.shape)
        mean = drawn.mean(axis=1)
        # A mean of r values drawn from themselves varies too little, by (r - 1) / r.
        wider = np.sqrt(repeats / (repeats - 1)) if repeats > 1 else 0.0
        apart = np.take_along_axis(drawn, picked, axis=1).mean(axis=1) - mean
        parts.append((mean + wider * apart).T)
    return values, np.concatenate(parts)


def in_words(curve: dict[str, Any]) -> str:
    """What twice the data would bring, in a sentence."""
    twice, last = curve["twice"], curve["points"][-1]
    gain = twice["gain"]
    told = (
        f"With {last['rows']:,} training rows {curve['metric']} on test is {last['value']:.4f} ({last['low']:.4f} to "
        f"{last['high']:.4f}). The power law through all points says {twice['now']:.4f} for as many, and for twice as "
        f"many {twice['value']:.4f} ({twice['low']:.4f} to {twice['high']:.4f}): "
    )
    better = f"a gain of {gain['difference']:.4f} ({gain['low']:.4f} to {gain['high']:.4f})."
    if gain["low"] < 0.1 * max(gain["difference"], 1e-4):
        return told + f"{better} Whether more rows like these would help is not sure."
    return told + better
