"""The spine of a joint training: from a file of tasks to one encoder with a tested head for each of them.

    OUT/encoder/       the encoder, once         OUT/tasks/NAME/    a result a task, see model/shared.py
    OUT/alone/NAME/    with then_alone: a result a task, fine-tuned further without the others
    OUT/run/           config.yaml, history.jsonl, metrics.json of all of them together
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bertune.bundle import Bundle
from bertune.config import Config
from bertune.data.tokens import Tokenizer
from bertune.errors import ConfigError, DataError, listed
from bertune.evaluate.metrics import check_metric
from bertune.files import disk_full, write_atomic, write_json
from bertune.folder import MULTITASK, check_model_stays, check_output, prepare_output, read_record
from bertune.hub import Source
from bertune.model.classifier import ClassifierModel
from bertune.model.encoder import EncoderConfig
from bertune.model.load import encoder_config, read_config, read_source
from bertune.model.lowrank import foundations
from bertune.model.multi import MultiModel
from bertune.model.shared import ENCODER, save_encoder
from bertune.model.source import open_source
from bertune.multitaskconfig import MultiConfig
from bertune.paths import cache_settings
from bertune.training import checkpoint
from bertune.training.check import check_used
from bertune.training.checkup import UNCHECKED, Checkup, look_over
from bertune.training.compatible import check_compatible, check_depth, check_dropout
from bertune.training.finish import GOOD, finish, keep_good, versions, write_model
from bertune.training.listen import Listener, Silent
from bertune.training.loop import Diverged
from bertune.training.multitask_fit import METRIC, MultiFit, Part, chances, score, settle_joint, turns
from bertune.training.opening import check_fit, load, settle_length, settle_long_text
from bertune.training.prepare import keep_apart, read_splits, tokenize
from bertune.training.promise import check_enough
from bertune.training.run import (
    check_columns,
    check_defined,
    check_freeze,
    check_machine,
    keep_record,
    product_speed,
    resumable,
    run,
    settle_machine,
    warn_of_others,
)
from bertune.training.settle import Load, duration, estimate

TASKS, ALONE = "tasks", "alone"  # in OUT
JOINT = "joint.json"  # in run/: what the joint part came to, where each task goes on alone after it
ALONE_MODEL = {"model": {"reinit_layers": 0}}  # of the further training alone, which begins with what was trained


@dataclass(frozen=True)
class Joint:
    """A finished joint training. metrics: what run/metrics.json holds, with a section a task in `tasks`."""

    out: Path
    tasks: tuple[str, ...]
    metrics: dict[str, Any]


def multitask(
    config: MultiConfig, *, out: str | Path, sources: Mapping[str, Any] | None = None, resume: bool = False,
    overwrite: bool = False, listener: Listener | None = None,
) -> Joint:
    """Train all tasks of `config` together and leave the results in `out`.

    sources: data in memory by task, in place of its files. Sun et al. 2019 (arXiv 1905.05583, section 5.5) train so,
    sharing all but the heads, and fine-tune each task further afterwards (`then_alone`).
    Raises InputError for anything wrong with the input, before `out` is touched; TrainingError; Interrupted.
    """
    out, listener = Path(out), listener or Silent()
    cache = config.shared.cache
    with cache_settings(cache.folder, cache.limit):
        return _run(config, out, dict(sources or {}), listener, resume=resume, overwrite=overwrite)


def _run(
    config: MultiConfig, out: Path, sources: dict[str, Any], listener: Listener, *, resume: bool, overwrite: bool
) -> Joint:
    say = listener.say
    config.check()
    unknown = [name for name in sources if name not in config.names]
    if unknown:
        raise ConfigError(f"data is given for '{unknown[0]}', which is no task; tasks: {listed(config.names)}.")
    inputs = [file for name in config.names for file in config.task(name).read_files()]
    check_output(out, resume=resume, overwrite=overwrite, by="multitask", inputs=inputs)
    if resume and is_joint(out):
        other = _changes(config, out)
        if (out / "run" / "metrics.json").is_file():
            say(f"{out} holds a complete joint training already; nothing to do.")
            warn_of_others(out, other)
            checkpoint.remove(out / "run" / "checkpoints")
            metrics = joint_metrics(out)
            return Joint(out, tuple(metrics["tasks"]), metrics)
        if other:
            raise ConfigError(
                f"--resume: the run in {out} was started with other options: {listed(other, 4)}. "
                "Pass the same ones, or --overwrite to start anew."
            )
    earlier, folder, base = open_base(config.shared)
    if overwrite:
        check_model_stays(foundations(folder), out)
    encoder, tokenizer = read_config(folder), Tokenizer.load(folder)
    check_fit(tokenizer, encoder, folder)
    if encoder.arch == "adapter":
        raise ConfigError(
            f"--model {config.shared.model.name}: an encoder outside the family cannot be shared by several tasks. "
            "Choose another --model."
        )
    check_freeze(config.shared, encoder)
    parts, checkups = [], {}
    for name in config.names:
        say(f"Task {name}:")
        looked = resume and (out / TASKS / name / "run" / "check.json").is_file()
        try:
            part = open_part(config, name, sources.get(name), encoder, tokenizer, listener)
            checkups[name] = Checkup() if looked else look_over(part.config, part.prepared, folder, tokenizer, listener)
        except (ConfigError, DataError) as error:
            raise type(error)(f"task {name}: {error}") from None
        parts.append(part)
    models, new_head = load_models(parts, folder, earlier, listener)
    check_depth(config.shared, encoder, max(model.depth for model in models.values()))
    for part in parts:
        check_dropout(part.config, models[part.name])
        if config.options.then_alone:
            try:
                check_depth(part.config.updated(ALONE_MODEL), encoder, models[part.name].depth)
            except ConfigError as error:
                raise ConfigError(f"task {part.name}, alone afterwards: {error}") from None
    check_machine(config.shared, resume=resume)
    plan = settle_joint(config.shared.train, parts, encoder=encoder, new_head=new_head)
    told = turns_sentence(config, parts, steps=plan.steps)
    say(plan.sentence())
    say(told)

    prepare_output(out, resume=resume, overwrite=overwrite, by="multitask")
    with disk_full(f"a file in {out}", kept="What was written before it is whole."), resumable():
        machine = settle_machine(config.shared, out, plan, resume=resume)
        machine.use()
        say(machine.sentence())
        keep_joint_record(config, out, parts, checkups, resume=resume)
        joint = out / "run" / JOINT
        if resume and joint.is_file():
            metrics = read_record(joint)
        else:
            model = MultiModel(models, uncertainty=config.options.uncertainty)
            fit = MultiFit(
                model, parts, config.options, config.shared, plan, machine, folder=out / "run", listener=listener
            )
            say(forecast(fit, encoder))
            metrics = train_jointly(fit, out=out, base=base, folder=folder, tokenizer=tokenizer, resume=resume)
        if config.options.then_alone:
            write_json(joint, metrics)
            metrics[ALONE] = train_alone(parts, sources, out, listener, lr=config.options.alone_lr)
        write_json(out / "run" / "metrics.json", metrics)
        checkpoint.remove(out / "run" / "checkpoints")
    return Joint(out, config.names, metrics)


def turns_sentence(config: MultiConfig, parts: Sequence[Part], *, steps: int) -> str:
    """How many of the steps are of each task. Raises ConfigError for a task that gets none."""
    often = chances(parts, config.options)
    counts = np.bincount(turns(often, steps=steps, seed=config.shared.train.seed), minlength=len(parts))
    for part, count in zip(parts, counts, strict=True):
        if not count:
            raise ConfigError(
                f"task {part.name}: gets none of {steps} steps, so few rows does it have beside the others. Train "
                "longer, or pass --sampling temperature with a high --temperature, which evens their turns."
            )
    told = [f"{part.name} {count:,} ({share:.0%})" for part, count, share in zip(parts, counts, often, strict=True)]
    return f"Steps by task: {listed(told, 12)}."


def train_jointly(
    fit: MultiFit, *, out: Path, base: Source, folder: Path, tokenizer: Tokenizer, resume: bool
) -> dict[str, Any]:
    """The joint part, to the results of all tasks; returns its metrics. A TrainingError after a divergence says where
    the last good weights are."""
    try:
        fit.run(resume=resume)
    except Diverged as error:
        kept = keep_good(fit.good_step, out / "run", lambda place: write_good(
            fit, place, base=base, folder=folder, tokenizer=tokenizer
        ))  # fmt: skip
        raise Diverged(f"{error} {kept}") from None
    metrics = finish_joint(fit, out=out, base=base, folder=folder, tokenizer=tokenizer)
    shutil.rmtree(out / "run" / GOOD, ignore_errors=True)  # of an earlier attempt that diverged
    return metrics


def is_joint(out: Path) -> bool:
    """Whether `out` is the folder of a joint training, finished or not."""
    return (out / "run" / MULTITASK).is_file()


def joint_metrics(out: Path) -> dict[str, Any]:
    """run/metrics.json of a finished joint training."""
    return read_record(out / "run" / "metrics.json")


def open_base(config: Config) -> tuple[Path | None, Path, Source]:
    """The folder of an earlier joint training where --model names one, and folder and source of the encoder."""
    path = Path(config.model.name)
    if not is_joint(path):
        folder, base = open_source(config.model.name, revision=config.model.revision)
        return None, folder, base
    if not (path / "run" / "metrics.json").is_file():
        raise ConfigError(f"--model {path}: a joint training that has not finished. Go on with it first: --resume.")
    folder, base = open_source(path / ENCODER)
    return path, folder, base


def open_part(
    config: MultiConfig, name: str, source: Any, encoder: EncoderConfig, tokenizer: Tokenizer, listener: Listener
) -> Part:
    """One task, read, split and tokenized, as `run` would do it for a training of its own."""
    own, say = config.task(name), listener.say
    if source is None and not own.data.files:
        raise ConfigError("no data; write data: files: FILE under it.")
    prepared = read_splits(source, own.data, say)
    metric = check_metric(own.train.metric, prepared.task.kind)
    check_defined(metric, prepared)
    check_used(own, prepared.task.kind, prepared.splits)
    check_compatible(own, encoder, shared=True)
    if "valid" not in prepared.splits and own.train.select_best:
        raise ConfigError(
            "no validation rows, and the best weights are chosen by those of every task. Give it "
            "data: valid: FILE or a fraction, or keep the last weights with train: select_best: no."
        )
    if own.decide.coverage is not None or own.decide.accuracy is not None:
        prepared = keep_apart(prepared, own.data)
        check_enough(own.decide, prepared.task.kind, len(prepared.splits["conformal"]))
    check_columns(own, prepared)
    max_length = settle_length(own, encoder, prepared.task, tokenizer)
    reading: dict[str, Any] = {
        "max_length": max_length, "truncation": own.model.truncation,
        "long_text": settle_long_text(own, prepared.task, tokenizer, max_length),
    }  # fmt: skip
    tokenize(prepared, tokenizer, **reading, say=say)
    return Part(name, own, prepared, reading, metric, config.options.tasks[name].weight)


def load_models(
    parts: Sequence[Part], folder: Path, earlier: Path | None, listener: Listener
) -> tuple[dict[str, ClassifierModel], bool]:
    """A classifier for each task, and whether any head is new. A task that an earlier joint training had with the same
    kind and labels goes on with its head; tasks that are here no more are named."""
    models, any_new = {}, False
    for part in parts:
        task, own = part.prepared.task, folder
        if earlier is not None and (earlier / TASKS / part.name / "bertune.json").is_file():
            before = Bundle.read(earlier / TASKS / part.name).task
            same = (before.kind, before.labels) == (task.kind, task.labels)
            own = earlier / TASKS / part.name if same else folder
            if not same:
                listener.say(f"Task {part.name} had other labels in {earlier}; it gets a new head.")
        elif earlier is not None:
            listener.say(f"Task {part.name} is new; {earlier} does not have it.")
        models[part.name], new = load(part.config, own, task, lambda text, name=part.name: listener.say(
            f"Task {name}: {text}"
        ))  # fmt: skip
        any_new = any_new or new
    if earlier is not None:
        there = sorted(path.parent.name for path in (earlier / TASKS).glob("*/bertune.json"))
        dropped = [name for name in there if name not in models]
        if dropped:
            listener.say(f"No more among the tasks: {listed(dropped)}.")
    return models, any_new


def keep_joint_record(
    config: MultiConfig, out: Path, parts: Sequence[Part], checkups: Mapping[str, Checkup], *, resume: bool
) -> None:
    """Write the configuration, and for each task what a run of its own would; a resumed run must have the same."""
    write_json(out / "run" / MULTITASK, {"tasks": list(config.names)})
    write_atomic(out / "run" / "config.yaml", config.to_yaml())
    for part in parts:
        folder = out / TASKS / part.name
        prepare_output(folder, resume=True, by="multitask")
        keep_record(part.config, folder, part.prepared, resume=resume)
        checkups[part.name].write(folder / "run")


def _changes(config: MultiConfig, out: Path) -> list[str]:
    """What the run in `out` was started with otherwise."""
    record = out / "run" / "config.yaml"
    return MultiConfig.load(record).changes(config) if record.is_file() else []


def finish_joint(fit: MultiFit, *, out: Path, base: Source, folder: Path, tokenizer: Tokenizer) -> dict[str, Any]:
    """Write the encoder and the result of each task, measured with its own rule; returns the metrics of all."""
    progress = fit.progress
    shared = write_encoder(fit, out / ENCODER, folder=folder, tokenizer=tokenizer)
    tasks: dict[str, Any] = {}
    for name, part in fit.parts.items():
        fit.listener.say(f"Task {name}:")
        place = out / TASKS / name
        tasks[name] = finish(
            fit.trained(name, out=place, shared=shared), out=place, base=base, folder=folder, tokenizer=tokenizer,
            reading=part.reading,
        )  # fmt: skip
    seconds = max(progress.seconds, 1e-9)
    metrics: dict[str, Any] = {
        "metric": METRIC, "tasks": tasks,
        "train": {
            "steps": progress.step, "epochs": fit.plan.epoch(progress.step), "best_step": progress.best and
            progress.best["step"], "seconds": progress.seconds, "examples_per_second": progress.rows / seconds,
            "tokens_per_second": progress.tokens / seconds,
            "steps_by_task": {name: fit.course.done(name, progress.step) for name in fit.parts},
            "tokens_by_task": {name: fit.course.tokens(name, progress.step) for name in fit.parts},
        },
        "versions": versions(),
    }  # fmt: skip
    for split in ("valid", "test"):
        if all(split in found for found in tasks.values()):
            scores = [score(part.metric, tasks[name][split]) for name, part in fit.parts.items()]
            metrics[split] = {METRIC: float(np.mean(scores))}
    uncertainty = fit.model.head.uncertainty
    if uncertainty is not None:
        metrics["log_variances"] = dict(zip(fit.parts, uncertainty.bias.tolist(), strict=True))
    return metrics


def write_encoder(fit: MultiFit, place: Path, *, folder: Path, tokenizer: Tokenizer) -> str:
    """The encoder of all tasks; returns its SHA-256, by which the heads that are written afterwards know it."""
    place.mkdir(exist_ok=True)
    first = next(iter(fit.model.models.values()))
    digest = save_encoder(place, first, encoder_config(first, read_source(folder)))
    tokenizer.save(place)
    return digest


def write_good(fit: MultiFit, place: Path, *, base: Source, folder: Path, tokenizer: Tokenizer) -> None:
    """After a divergence: the last good weights as a joint training leaves them, each task as it is before its rule is
    chosen and it is measured."""
    shared = write_encoder(fit, place / ENCODER, folder=folder, tokenizer=tokenizer)
    for name, part in fit.parts.items():
        target = place / TASKS / name
        target.mkdir(parents=True)
        write_model(
            fit.trained(name, out=target, shared=shared), target, base=base, folder=folder, tokenizer=tokenizer,
            reading=part.reading,
        )
    (place / "run").mkdir()
    write_json(place / "run" / MULTITASK, {"tasks": list(fit.parts)})
    write_json(place / "run" / "metrics.json", {
        "metric": METRIC, "tasks": {}, "train": {"steps": fit.good_step}, "versions": versions(),
    })  # fmt: skip


def train_alone(
    parts: Sequence[Part], sources: dict[str, Any], out: Path, listener: Listener, *, lr: float | None
) -> dict[str, Any]:
    """Fine-tune each task further without the others, from the joint encoder and with its head; their metrics.

    lr: of encoder and head, None: as the section train says. Sun et al. 2019 (arXiv 1905.05583, section 5.5) take a
    lower one.
    """
    found = {}
    rates = {} if lr is None else {"lr": lr, "head_lr": None}  # the head is new no more
    for number, part in enumerate(parts, 1):
        listener.say(f"Task {part.name} alone ({number} of {len(parts)}):")
        config = part.config.updated(
            {"model": {"name": str((out / TASKS / part.name).absolute()), "revision": None}, "check": UNCHECKED,
             "train": rates}
        ).updated(ALONE_MODEL)
        place = out / ALONE / part.name
        result = run(config, out=place, source=sources.get(part.name), resume=True, listener=listener)
        found[part.name] = result.metrics
    return found


def forecast(fit: MultiFit, encoder: EncoderConfig) -> str:
    """One line about the time and memory that training will take."""
    weights, machine = list(fit.model.parameters()), fit.machine
    trained = sum(value.numel() for value in weights if value.requires_grad)
    parts = list(fit.parts.values())
    tokens = sum(int(part.prepared.train.tokens.offsets[-1]) for part in parts)
    work = Load(
        tokens=tokens, rows=sum(part.rows for part in parts),
        labels=max(part.prepared.task.num_labels for part in parts),
        trained=trained, frozen=sum(value.numel() for value in weights) - trained, once=tokens,
    )  # fmt: skip
    seconds, memory = estimate(
        encoder, work, plan=fit.plan, token_budget=min(machine.token_budget, tokens),
        dtype_bytes=2 if machine.precision == "bf16" else 4, flops=product_speed(encoder, machine),
    )
    return f"Estimate: about {duration(seconds)} of training and {memory / 1e9:.1f} GB of memory."
