"""The spine: from a table to a tested model in a folder. Each stage is one call; the order below is the whole story."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bertune.bundle import Bundle
from bertune.config import Config
from bertune.data.tasks import Task
from bertune.data.tokens import Tokenizer
from bertune.errors import ConfigError, Interrupted, listed
from bertune.evaluate.metrics import check_metric, evaluate, metric_value
from bertune.files import disk_full, to_json, write_atomic, write_json
from bertune.folder import check_model_stays, check_output, prepare_output, read_record
from bertune.model.encoder import EncoderConfig
from bertune.model.load import read_config
from bertune.model.lowrank import foundations
from bertune.model.machine import CPU_TOKENS, Machine, check_device, check_kernels, choose_machine
from bertune.model.source import open_source
from bertune.paths import cache_settings
from bertune.ship.predict import Predictor
from bertune.training import checkpoint
from bertune.training.check import check_used
from bertune.training.checkup import Checkup, look_over
from bertune.training.compatible import check_base, check_compatible, check_depth, check_dropout
from bertune.training.features import first_trained_layer
from bertune.training.finish import PRETRAIN, finish, keep_good, write_model
from bertune.training.fit import Fit
from bertune.training.listen import Listener, Silent
from bertune.training.longest import choose_long_text
from bertune.training.loop import Diverged
from bertune.training.opening import check_fit, load, settle_length, settle_long_text
from bertune.training.outcome import read_metrics
from bertune.training.prepare import Prepared, keep_apart, read_splits, tokenize, write_split_rows
from bertune.training.promise import check_enough
from bertune.training.settle import Load, Plan, duration, estimate, settle

log = logging.getLogger("bertune")

LONG_TEXT = "long_text.json"  # in run/: what --long-text auto tried


@dataclass(frozen=True)
class Result:
    """A finished run. metrics: what run/metrics.json holds."""

    out: Path
    task: Task
    metrics: dict[str, Any]

    def predictor(self) -> Predictor:
        """The trained model, ready to answer."""
        return Predictor.load(self.out)


def run(
    config: Config, *, out: str | Path, source: Any = None, resume: bool = False, overwrite: bool = False,
    listener: Listener | None = None, ready: Callable[[], None] | None = None,
) -> Result:
    """Train as configured and leave the result in `out`.

    source: data in memory (a frame, a list of dicts, a dict of columns) in place of the configured files; ready: called
    when all that can be wrong with the input has been checked, just before anything is written.
    Raises InputError for anything wrong with the input, before `out` is touched; TrainingError; Interrupted.
    """
    with cache_settings(config.cache.folder, config.cache.limit):
        return _run(config, Path(out), source, listener or Silent(), resume=resume, overwrite=overwrite, ready=ready)


def _run(
    config: Config, out: Path, source: Any, listener: Listener, *, resume: bool, overwrite: bool,
    ready: Callable[[], None] | None,
) -> Result:
    from bertune.training.pretrain import begin_stage, pretrain_stage  # which goes by parts of this file

    say = listener.say
    check_output(out, resume=resume, overwrite=overwrite, inputs=config.read_files())
    if resume and is_complete(out):
        config, _ = settle_auto(config, out, resume=True, choose=lambda: (config, {}))
        return complete(out, config, say)

    folder, base = open_source(config.model.name, revision=config.model.revision)
    if overwrite:
        check_model_stays(foundations(folder), out)
    encoder = read_config(folder)
    tokenizer = Tokenizer.load(folder)
    check_fit(tokenizer, encoder, folder)
    prepared = read_splits(source, config.data, say)
    metric = check_metric(config.train.metric, prepared.task.kind)
    check_defined(metric, prepared)
    check_used(config, prepared.task.kind, prepared.splits)
    check_freeze(config, encoder)
    check_compatible(config, encoder)
    check_base(config, folder)
    stage = begin_stage(
        config, prepared, out / "run" / PRETRAIN, folder=folder, base=base, resume=resume, listener=listener
    )
    if config.decide.coverage is not None or config.decide.accuracy is not None:
        prepared = keep_apart(prepared, config.data)
        sizes = (len(prepared.splits[name]) for name in ("conformal", "valid"))
        say("Of the validation rows {:,} are kept for what is promised, and {:,} choose.".format(*sizes))
        check_enough(config.decide, prepared.task.kind, len(prepared.splits["conformal"]))
    check_columns(config, prepared)
    max_length = settle_length(config, encoder, prepared.task, tokenizer)
    config, tried = settle_auto(
        config, out, resume=resume, choose=lambda: choose_long_text(
            config, folder, prepared, tokenizer, metric=metric, listener=listener
        )
    )
    reading: dict[str, Any] = {
        "max_length": max_length, "truncation": config.model.truncation,
        "long_text": settle_long_text(config, prepared.task, tokenizer, max_length),
    }  # fmt: skip
    tokenize(prepared, tokenizer, **reading, say=say)
    looked = resume and (out / "run" / "check.json").is_file()
    checkup = Checkup() if looked else look_over(config, prepared, folder, tokenizer, listener)
    model, new_head = load(config, folder, prepared.task, say)
    check_depth(config, encoder, model.depth)
    check_dropout(config, model)
    check_machine(config, resume=resume)

    if ready is not None:
        ready()
    prepare_output(out, resume=resume, overwrite=overwrite)
    with disk_full(f"a file in {out}", kept="What was written before it is whole."), resumable():
        keep_record(config, out, prepared, resume=resume)
        if tried:
            write_json(out / "run" / LONG_TEXT, tried)
        if stage is not None:
            done = pretrain_stage(stage, out / "run" / PRETRAIN, listener).out
            model, new_head = load(config, folder, prepared.task, say, stage=done)
        plan = settle(
            config.train, rows=len(prepared.train), encoder=encoder, new_head=new_head, lora=bool(config.model.lora)
        )
        say(plan.sentence())
        machine = settle_machine(config, out, plan, resume=resume)
        machine.use()
        say(machine.sentence())
        checkup.write(out / "run")
        fit = Fit(model, prepared, config, plan, machine, metric=metric, folder=out / "run", listener=listener)
        say(forecast(fit))
        try:
            fit.run(resume=resume)
        except Diverged as error:
            kept = keep_good(fit.good_step, out / "run", lambda place: write_model(
                fit.trained(), place, base=base, folder=folder, tokenizer=tokenizer, reading=reading
            ))  # fmt: skip
            raise Diverged(f"{error} {kept}") from None
        metrics = finish(fit.trained(), out=out, base=base, folder=folder, tokenizer=tokenizer, reading=reading)
    return Result(out, prepared.task, metrics)


def settle_auto(
    config: Config, out: Path, *, resume: bool, choose: Callable[[], tuple[Config, dict[str, Any]]]
) -> tuple[Config, dict[str, Any]]:
    """The configuration with --long-text auto made into what a resumed run has chosen before, or `choose` chooses now;
    and what was tried."""
    if "auto" not in (config.model.long_text, config.model.long_text_pair):
        return config, {}
    record = out / "run" / "config.yaml"
    if not (resume and record.is_file()):
        return choose()
    before = Config.load(record).model
    names = ("long_text", "long_text_pair", "join", "chunk_overlap", "max_chunks", "truncation")
    return config.updated({"model": {name: getattr(before, name) for name in names}}), {}


def is_complete(out: Path) -> bool:
    """Whether `out` holds a finished run: metrics.json is written last."""
    return (out / "bertune.json").is_file() and (out / "run" / "metrics.json").is_file()


def complete(out: Path, config: Config, say: Callable[[str], None]) -> Result:
    """The finished run in `out`, as it is; options that `config` has otherwise are named, for they change nothing."""
    say(f"{out} holds a complete run already; nothing to do.")
    record = out / "run" / "config.yaml"
    warn_of_others(out, Config.load(record).changes(config) if record.is_file() else [])
    checkpoint.remove(out / "run" / "checkpoints")  # where the run was killed just before doing so
    return Result(out, Bundle.read(out).task, read_metrics(out))


def warn_of_others(out: Path, changed: list[str]) -> None:
    """Name the options that a complete run in `out` was not made with."""
    if changed:
        log.warning(
            "--resume: the run in %s is complete, so other options are not applied: %s. Pass --overwrite to train "
            "anew with them, or another --out.", out, listed(changed, 4),
        )  # fmt: skip


@contextmanager
def resumable() -> Iterator[None]:
    """Ctrl-C where no step is being trained: while frozen layers run, or the result is written and measured."""
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(
            "Stopped; what was saved before is whole, and the rest is done again. "
            "Go on with the same command and --resume."
        ) from None


def check_defined(metric: str, prepared: Prepared) -> None:
    """Raise ConfigError where the validation rows leave the metric undefined, rather than after the first epoch."""
    task, split = prepared.task, prepared.splits.get("valid")
    if split is not None:
        blank = np.zeros((len(split), task.num_labels), dtype=np.float32)
        metric_value(metric, evaluate(task.kind, task.labels, blank, split.targets))


def check_columns(config: Config, prepared: Prepared) -> None:
    """Raise DataError where a split lacks a column of --slice, rather than at the end."""
    for split in prepared.splits.values():
        for name in config.report.slices:
            split.table.column(name)


def check_freeze(config: Config, encoder: EncoderConfig) -> None:
    """Raise ConfigError where this encoder has no such part to freeze."""
    freeze = config.model.freeze
    if encoder.arch == "adapter" and (freeze not in ("none", "encoder") or not config.model.train_positions):
        raise ConfigError(
            f"--freeze {freeze}, train_positions {config.model.train_positions}: an encoder outside the family is "
            "trained whole or not at all. Pass none or encoder, and leave train_positions on."
        )
    if freeze.isdigit() and int(freeze) > encoder.layers:
        raise ConfigError(
            f"--freeze {freeze}: this encoder has {encoder.layers} layers. "
            f"Pass --freeze {encoder.layers} or less, or --freeze encoder."
        )


def check_machine(config: Config, *, resume: bool) -> None:
    """Raise ConfigError where what a new run would compute on cannot be had; a resumed one has its own."""
    if not resume:
        choose_machine(config.train, long_run=False)


def settle_machine(
    config: Config, out: Path, plan: Plan, *, resume: bool, tokens: int = CPU_TOKENS
) -> Machine:
    """What the run computes on, see `choose_machine`; a resumed run keeps what it began with."""
    path = out / "run" / "machine.yaml"
    if resume and path.is_file():
        names = [field.name for field in fields(Machine) if field.default is MISSING]
        machine = Machine(**read_record(path, *names))  # JSON is YAML
        check_device(machine.device)
        check_kernels(machine, out)
        return machine
    machine = choose_machine(config.train, long_run=plan.steps >= 2000, tokens=tokens)
    write_atomic(path, to_json(machine.to_dict(), indent=2) + "\n")  # JSON is YAML
    return machine


def keep_record(config: Config, out: Path, prepared: Prepared, *, resume: bool) -> None:
    """Write the configuration and the rows of each split; a resumed run must have the same ones."""
    path = out / "run" / "config.yaml"
    if resume and path.is_file():
        changed = Config.load(path).changes(config)
        if changed:
            raise ConfigError(
                f"--resume: the run in {out} was started with other options: {listed(changed, 4)}. "
                "Pass the same ones, or --overwrite to start anew."
            )
    record = {
        "rows": {name: len(split) for name, split in prepared.splits.items()}, "data": fingerprint(prepared),
        "train": prepared.train.tokens.fingerprint(),  # by which `explain` knows the training rows again
    }  # fmt: skip
    state = out / "run" / "data.json"
    if resume and state.is_file() and read_record(state) != record:
        raise ConfigError(
            f"--resume: the data is not what the run in {out} was started with. "
            "Bring the old files back, or pass --overwrite to start anew."
        )
    write_json(state, record)
    write_atomic(path, config.to_yaml())
    write_split_rows(prepared, out / "run" / "splits.csv")


def fingerprint(prepared: Prepared) -> str:
    """SHA-256 over the tokens and targets of every split."""
    import hashlib

    digest = hashlib.sha256()
    for name, split in prepared.splits.items():
        digest.update(name.encode())
        for array in (split.tokens.ids, split.tokens.types, split.tokens.offsets, split.targets):
            digest.update(array.tobytes())
    return digest.hexdigest()


def forecast(fit: Fit) -> str:
    """One line about the time and memory that training will take."""
    encoder, prepared, machine = fit.model.encoder.config, fit.prepared, fit.machine
    weights = list(fit.model.parameters())
    trained = sum(value.numel() for value in weights if value.requires_grad)
    tokens = {name: int(split.tokens.offsets[-1]) for name, split in prepared.splits.items()}
    work = Load(
        tokens=tokens["train"], rows=len(prepared.train), labels=prepared.task.num_labels, trained=trained,
        frozen=sum(value.numel() for value in weights) - trained,
        frozen_layers=first_trained_layer(fit.config.model.freeze, encoder.layers),
        once=sum(count for name, count in tokens.items() if fit.is_visited(name)),
    )  # fmt: skip
    seconds, memory = estimate(
        encoder, work, plan=fit.plan, token_budget=min(machine.token_budget, work.tokens),
        dtype_bytes=2 if machine.precision == "bf16" else 4, flops=product_speed(encoder, machine),
    )
    return f"Estimate: about {duration(seconds)} of training and {memory / 1e9:.1f} GB of memory."


def product_speed(encoder: EncoderConfig, machine: Machine) -> float:
    """Operations a second that a matrix product of the encoder's shape reaches here, measured in some 50 ms."""
    rows = 1024
    left = torch.zeros(rows, encoder.hidden, dtype=machine.dtype, device=machine.torch_device)
    right = torch.zeros(encoder.hidden, encoder.ffn, dtype=machine.dtype, device=machine.torch_device)
    best = float("inf")
    for _ in range(5):
        begin = time.perf_counter()
        (left @ right).sum().item()
        best = min(best, time.perf_counter() - begin)
    return 2 * rows * encoder.hidden * encoder.ffn / best
