"""--long-text auto: the ways to read long texts, each tried for a while on the validation rows.

Each way trains on the same few thousand rows for one epoch. The simplest way that is not clearly worse than the best
is taken: what a paired bootstrap cannot tell apart is not worth the dearer reading. The test rows have no part in it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from bertune.config import Config
from bertune.data.splits import share_of_rows
from bertune.data.tokens import Tokenizer
from bertune.errors import ConfigError, Interrupted
from bertune.evaluate.metrics import METRICS
from bertune.evaluate.resample import Scores, differences
from bertune.model.infer import infer_logits
from bertune.model.load import read_config
from bertune.model.machine import choose_machine
from bertune.training.fit import Fit
from bertune.training.listen import Listener, Silent
from bertune.training.opening import check_second_side, load, settle_length, settle_long_text
from bertune.training.prepare import Prepared, Split, tokenize
from bertune.training.settle import counted, settle

ROWS = 4000  # that each way trains on
SEEN = 0.01  # share of the rows that has to be cut for the ways to differ
WAYS = ("head", "tail", "head+tail", "hierarchical")  # the simplest first


class _Steps(Silent):
    """Passes on the steps of a training, and nothing of what it says."""

    def __init__(self, listener: Listener) -> None:
        self.begin, self.step, self.end = listener.begin, listener.step, listener.end  # type: ignore[method-assign]


def choose_long_text(
    config: Config, folder: Path, prepared: Prepared, tokenizer: Tokenizer, *, metric: str, listener: Listener
) -> tuple[Config, dict[str, Any]]:
    """The configuration with a way in place of `auto`, and what was tried, for JSON: {"chosen", "rows", "metric",
    "tried": {way: value}}. Raises ConfigError without validation rows."""
    if "valid" not in prepared.splits:
        raise ConfigError(
            "--long-text auto: is chosen on validation rows, and there are none. Pass --valid FILE or a fraction, or "
            "one of head, tail, head+tail, hierarchical."
        )
    check_second_side(config, prepared.task)  # while it still has the name that was given
    head = with_way(config, "head")
    share = _share_cut(head, folder, prepared, tokenizer)
    if share < SEEN:
        listener.say(f"Long texts: {100 * share:.1f} % of the rows do not fit, too few to choose by; head is taken.")
        return head, {"chosen": "head", "share_cut": share, "tried": {}}
    part = _part(prepared, config)
    chunked = "hierarchical" in (config.model.long_text, config.model.long_text_pair)  # which one side at most can be
    ways = [way for way in WAYS if way != "hierarchical" or not chunked]
    whole, tokens = int(prepared.train.tokens.offsets[-1]), 0
    for way in ways:
        _tokenize(with_way(config, way), folder, Prepared(part.task, {"train": part.train}, ""), tokenizer)
        tokens += int(part.train.tokens.offsets[-1])
    # What is chosen is checked and written down before the pre-training, so it cannot wait for its encoder.
    before = ", from the encoder as it is before pre-training," if config.pretrain.on else ""
    listener.say(
        f"Long texts: {100 * share:.0f} % of the rows do not fit. Trying {counted(len(ways), 'way')}{before} for one "
        f"epoch of {counted(len(part.train), 'row')} each; together they read as much as {tokens / whole:.1f} epochs "
        "of the training with head."
    )
    scores: dict[str, Scores] = {}
    for way in ways:
        scores[way] = _try(with_way(config, way), folder, part, tokenizer, metric=metric, listener=listener)
    values = {way: float(found(np.ones((1, found.rows)))[metric][0]) for way, found in scores.items()}
    chosen = _simplest(scores, values, metric)
    told = ", ".join(f"{way} {value:.4f}" for way, value in values.items())
    listener.say(f"Long texts: {metric} on valid {told}; {chosen} is the simplest that is not clearly worse.")
    return with_way(config, chosen), {
        "chosen": chosen, "share_cut": share, "metric": metric, "rows": len(part.train), "tried": values
    }


def with_way(config: Config, way: str) -> Config:
    """The configuration with `way` wherever it says auto. What belongs to chunks alone stays out for other ways, and
    what does not go with them stays out beside them."""
    fields = type(config.model).model_fields
    ways = {name: getattr(config.model, name) for name in ("long_text", "long_text_pair")}
    model: dict[str, Any] = {name: way for name, asked in ways.items() if asked == "auto"}
    if "hierarchical" not in {**ways, **model}.values():
        model |= {name: fields[name].default for name in ("join", "chunk_overlap", "max_chunks")}
    elif way == "hierarchical":
        if len(model) == len(ways):  # one side at most is read in chunks
            model["long_text_pair"] = "head"
        model["truncation"] = fields["truncation"].default
    return config.updated({"model": model})


def _share_cut(config: Config, folder: Path, prepared: Prepared, tokenizer: Tokenizer) -> float:
    """Share of the training rows that do not fit."""
    _tokenize(config, folder, Prepared(prepared.task, {"train": prepared.train}, ""), tokenizer)
    told = prepared.train.tokens.truncation()
    return told.rows_cut / told.rows


def _part(prepared: Prepared, config: Config) -> Prepared:
    """ROWS of the training rows, and the validation rows."""
    train = prepared.train
    rows = share_of_rows(train.targets, prepared.task.kind, share=min(1, ROWS / len(train)), seed=config.train.seed)
    splits = {
        "train": Split("train", train.table.take(rows), train.targets[rows]),
        "valid": replace(prepared.splits["valid"]),
    }
    return Prepared(prepared.task, splits, prepared.rule)


def _try(
    config: Config, folder: Path, part: Prepared, tokenizer: Tokenizer, *, metric: str, listener: Listener
) -> Scores:
    """What one epoch of training makes of the validation rows."""
    quiet = _Steps(listener)
    _tokenize(config, folder, part, tokenizer)
    config = config.updated({"train": {"epochs": 1, "max_steps": None, "patience": None}})
    model, new_head = load(config, folder, part.task, quiet.say)
    plan = settle(
        config.train, rows=len(part.train), encoder=model.encoder.config, new_head=new_head,
        lora=bool(config.model.lora),
    )  # fmt: skip
    machine = choose_machine(config.train, long_run=False)
    machine.use()
    with tempfile.TemporaryDirectory(prefix="bertune-") as place:
        fit = Fit(model, part, config, plan, machine, metric=metric, folder=Path(place), listener=quiet)
        try:
            fit.run(resume=False)
        except Interrupted:
            raise Interrupted(
                "Stopped while --long-text auto was trying; nothing of that is kept, and the same command begins anew."
            ) from None
        valid = part.splits["valid"]
        logits = infer_logits(model, valid.tokens, budget=fit.course.token_budget)
    return Scores(part.task.kind, logits, valid.targets)


def _tokenize(config: Config, folder: Path, prepared: Prepared, tokenizer: Tokenizer) -> None:
    max_length = settle_length(config, read_config(folder), prepared.task, tokenizer)
    silent: Callable[[str], None] = lambda line: None  # noqa: E731
    tokenize(
        prepared, tokenizer, max_length=max_length, truncation=config.model.truncation, say=silent,
        long_text=settle_long_text(config, prepared.task, tokenizer, max_length),
    )  # fmt: skip


def _simplest(scores: dict[str, Scores], values: dict[str, float], metric: str) -> str:
    """The first way whose difference to the best has an interval that reaches 0."""
    sign = 1 if METRICS[metric].higher_is_better else -1
    best = max(values, key=lambda way: sign * values[way])
    for way, found in scores.items():
        apart = differences(found, scores[best], [metric]).get(metric)
        if way == best or apart is None or apart["low"] <= 0 <= apart["high"]:
            return way
    return best
