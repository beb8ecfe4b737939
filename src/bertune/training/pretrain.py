"""The spine of pre-training: from texts without labels to an encoder with its heads in a folder.

`pretrain` is the command; `begin_stage` and `pretrain_stage` are what `train --pretrain-on` does first. Both go the
same way: a corpus is surveyed and tokenised, a plan settled, the loop run, and a folder written for transformers, too.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bertune.config import PRETRAINING_KEYS, Config
from bertune.data.corpus import Corpus
from bertune.data.documents import Survey, TextSource, survey
from bertune.data.tokens import Tokenizer
from bertune.errors import ConfigError, DataError, listed
from bertune.evaluate.curves import plot_pretraining
from bertune.files import disk_full, write_atomic, write_json
from bertune.folder import PRETRAINED, check_model_stays, check_output, prepare_output, read_record
from bertune.hub import Source
from bertune.model.hubconfig import read_config, read_source
from bertune.model.lowrank import foundations, is_adapter
from bertune.model.pretraining import check_objective, load_pretraining, save_pretraining
from bertune.model.shared import is_shared
from bertune.model.source import open_source
from bertune.paths import cache_settings
from bertune.training import checkpoint
from bertune.training.finish import GOOD, base_model, keep_good, versions
from bertune.training.listen import Listener, Silent
from bertune.training.loop import Diverged
from bertune.training.opening import check_fit
from bertune.training.prepare import Prepared
from bertune.training.pretrain_data import (
    check_known,
    described,
    sources_of,
    stage_sources,
    tokenized,
    training_sequences,
)
from bertune.training.pretrain_fit import PretrainFit, settle_pretraining, stage_options, tokens_at_once
from bertune.training.run import check_machine, resumable, settle_machine, warn_of_others
from bertune.training.scratch import scratch_config, start_from_scratch

START = "start"  # in run/: the folder of a new vocabulary and random weights
_STAGE_ONLY = ("from_scratch", "vocab_size", "cased", "layers", "hidden", "heads", "ffn", "positions", "initialization")


@dataclass(frozen=True)
class Pretrained:
    """A finished pre-training. metrics: what run/metrics.json holds."""

    out: Path
    metrics: dict[str, Any]


@dataclass(frozen=True)
class Start:
    """Where a pre-training begins: the texts, and the folder of the model; None where it is made of them first."""

    sources: list[TextSource]
    found: Survey
    folder: Path | None
    base: Source | None


@dataclass(frozen=True)
class Stage:
    """The pre-training of a training: its configuration and its start, None where it is complete."""

    config: Config
    start: Start | None


def pretrain(
    config: Config, *, out: str | Path, source: Any = None, resume: bool = False, overwrite: bool = False,
    listener: Listener | None = None,
) -> Pretrained:
    """Pre-train as `config.pretrain` says on the texts of `config.data.files`, and leave the encoder in `out`.

    source: texts in memory (a frame, a list of dicts, a dict of columns) in place of the files, a document a row.
    Raises InputError for anything wrong with the input, before `out` is touched; TrainingError; Interrupted.
    """
    out, listener = Path(out), listener or Silent()
    others = [change.split()[0] for change in Config().changes(config)]
    others = [name for name in others if name not in PRETRAINING_KEYS]
    if others:
        raise ConfigError(f"{others[0]}: has no effect on a pre-training; its options are in the section pretrain.")
    check_options(config)
    with cache_settings(config.cache.folder, config.cache.limit):
        check_output(out, resume=resume, overwrite=overwrite, by="pretrain", inputs=config.read_files())
        if resume and is_pretrained(out):
            listener.say(f"{out} holds a complete pre-training already; nothing to do.")
            record = out / "run" / "config.yaml"
            warn_of_others(out, Config.load(record).changes(Config().updated(_relevant(config))))
            return Pretrained(out, pretraining_metrics(out))
        if source is None and not config.data.files:
            raise ConfigError("TEXT is missing: name one or more files, for example bertune pretrain books.txt.gz.")
        folder, base = _model(config, out, overwrite=overwrite)
        sources = sources_of(config, source)
        start = _survey(sources, config, folder, base, listener)
        check_machine(config, resume=resume)
        prepare_output(out, resume=resume, overwrite=overwrite, by="pretrain")
        return _run(config, out, start, listener, resume=resume)


def begin_stage(
    config: Config, prepared: Prepared, out: Path, *, folder: Path, base: Source, resume: bool, listener: Listener
) -> Stage | None:
    """What `pretrain_stage` needs to begin, or None where no pre-training is asked for; nothing is written.

    Raises InputError for all that can be wrong with its options, the model and the texts.
    """
    check_stage(config)
    if not config.pretrain.on:
        return None
    check_options(config)
    stage = config.updated({"model": {"freeze": "none", "train_positions": True}, "pretrain": {"on": []}})
    if resume and is_pretrained(out):
        return Stage(stage, None)
    return Stage(stage, _survey(stage_sources(config, prepared), stage, folder, base, listener))


def pretrain_stage(stage: Stage, out: Path, listener: Listener) -> Pretrained:
    """The pre-training that a training begins with, in a folder of its own; it goes on where it was stopped."""
    if stage.start is None:
        listener.say(f"{out} holds the pre-trained encoder already.")
        return Pretrained(out, pretraining_metrics(out))
    prepare_output(out, resume=out.exists(), by="pretrain")
    return _run(stage.config, out, stage.start, listener, resume=True)


def check_stage(config: Config) -> None:
    """Raise ConfigError for options of a pre-training that a training would not use, or could not."""
    options, plain = config.pretrain, Config().pretrain
    changed = [name for name in type(options).model_fields if getattr(options, name) != getattr(plain, name)]
    if changed and not options.on:
        raise ConfigError(
            f"pretrain.{changed[0]} {getattr(options, changed[0])}: needs --pretrain-on FILE, or --pretrain-on train "
            "for the training texts alone."
        )
    scratch = [name for name in changed if name in _STAGE_ONLY]
    if scratch:
        raise ConfigError(
            f"pretrain.{scratch[0]} {getattr(options, scratch[0])}: a new vocabulary takes a run of its own. Make one "
            "with bertune pretrain TEXT --from-scratch mini --out DIR, then train with --model DIR."
        )


def check_options(config: Config) -> None:
    """Raise ConfigError for options of a pre-training that contradict one another."""
    options, plain = config.pretrain, Config().pretrain
    if options.mask_share + options.random_share > 1 + 1e-9:
        raise ConfigError(
            f"pretrain.mask_share {options.mask_share:g} and pretrain.random_share {options.random_share:g}: are "
            "together at most 1; make one of them smaller."
        )
    if options.tokens is not None and options.tokens < 2 * options.max_length:
        raise ConfigError(
            f"pretrain.tokens {options.tokens}: a step takes at least two sequences of pretrain.max_length "
            f"{options.max_length}. Pass {2 * options.max_length} or more, or shorter sequences."
        )
    if not options.held_out and options.evaluations != plain.evaluations:
        raise ConfigError(
            f"pretrain.evaluations {options.evaluations}: with pretrain.held_out 0 nothing is measured. Leave one of "
            "them out."
        )
    if options.objective == "nsp":
        for name in ("masking", "mask_share", "random_share", "whole_word"):
            if getattr(options, name) != getattr(plain, name):
                raise ConfigError(
                    f"pretrain.{name} {getattr(options, name)}: nothing is masked with --objective nsp. Leave one of "
                    "them out."
                )


def is_pretrained(out: Path) -> bool:
    """Whether `out` holds a finished pre-training: metrics.json is written last."""
    return (out / "run" / PRETRAINED).is_file() and (out / "run" / "metrics.json").is_file()


def pretraining_metrics(out: Path) -> dict[str, Any]:
    """run/metrics.json of a finished pre-training."""
    found = read_record(out / "run" / "metrics.json")
    checkpoint.remove(out / "run" / "checkpoints")  # where the run was killed just before doing so
    return found


def _model(config: Config, out: Path, *, overwrite: bool) -> tuple[Path | None, Source | None]:
    """The folder of the model to go on with; None, None where a new one is asked for."""
    options = config.pretrain
    if options.from_scratch is not None:
        if config.model.name != Config().model.name:
            raise ConfigError(
                f"--model {config.model.name} and --from-scratch {options.from_scratch}: one goes on with a model and "
                "the other makes a new one; pass one of them."
            )
        scratch_config(options, options.vocab_size)
        return None, None
    changed = [name for name in _STAGE_ONLY if getattr(options, name) != getattr(Config().pretrain, name)]
    if changed:
        raise ConfigError(f"pretrain.{changed[0]} {getattr(options, changed[0])}: needs --from-scratch.")
    folder, base = open_source(config.model.name, revision=config.model.revision)
    if overwrite:
        check_model_stays(foundations(folder), out)
    return folder, base


def _survey(
    sources: list[TextSource], config: Config, folder: Path | None, base: Source | None, listener: Listener
) -> Start:
    """Check the model against what is asked for, and go through the texts once."""
    options = config.pretrain
    tokenizer = None
    if folder is not None:
        if is_adapter(folder) or is_shared(folder):
            raise ConfigError(
                f"--model {folder}: its encoder lies elsewhere, as of every result of LoRA or of bertune multitask. "
                f"Make a model of its own: bertune convert {folder} OUT, and pass --model OUT."
            )
        encoder, tokenizer = read_config(folder), Tokenizer.load(folder)
        check_objective(encoder, options.objective, config.model.name)
        check_fit(tokenizer, encoder, folder)
        if options.objective != "nsp" and tokenizer.mask_id is None:
            raise ConfigError(
                f"--model {config.model.name}: its tokenizer has no mask token, such as [MASK], to learn with. Name it "
                "in tokenizer_config.json, or choose another model."
            )
        if options.max_length > encoder.longest_input:
            raise ConfigError(
                f"pretrain.max_length {options.max_length}: this encoder reads at most {encoder.longest_input} tokens. "
                f"Choose {encoder.longest_input} or less, or another --model."
            )
        load_pretraining(folder, objective=options.objective, seed=config.train.seed)  # raises where it cannot be
    with listener.work("Reading the corpus", 0) as advance:
        found = survey(sources, sentences=options.objective != "mlm", advance=advance)
    if options.objective != "mlm" and (found.documents < 2 or not found.longer):
        raise DataError(
            f"--objective {options.objective}: next sentences take at least two documents, one of them with two "
            f"sentences or more; found in {listed([source.name for source in sources], 3)}: {found.documents:,}, "
            f"{found.longer:,} of them that long. Add texts, see --documents for what a document is, or pass "
            "--objective mlm."
        )
    if tokenizer is not None:
        check_known(sources, tokenizer, masks=options.objective != "nsp")
    listener.say(
        f"Corpus: {found.documents:,} document{'' if found.documents == 1 else 's'}, {found.characters:,} characters, "
        f"from {described(sources)}."
    )
    return Start(sources, found, folder, base)


def _run(config: Config, out: Path, start: Start, listener: Listener, *, resume: bool) -> Pretrained:
    options, run_folder, say = config.pretrain, out / "run", listener.say
    with disk_full(f"a file in {out}", kept="What was written before it is whole."), resumable():
        _keep_record(config, run_folder, start.found, resume=resume)
        folder = start.folder or _made(config, run_folder / START, start.sources, say)
        tokenizer = Tokenizer.load(folder)
        corpus = tokenized(start.sources, start.found, tokenizer, config, run_folder, listener)
        train, held = training_sequences(corpus, tokenizer, config, say)
        model, report = load_pretraining(
            folder, objective=options.objective, dropout=config.model.dropout, seed=config.train.seed
        )
        say(report.sentence())
        tokens = int(train.turn(0).lengths.sum())
        encoder = read_config(folder)
        plan = settle_pretraining(config, tokens=tokens, rows=len(train), encoder=encoder, new=report.new)
        say(plan.sentence())
        stage = config.model_copy(update={"train": stage_options(config)})
        machine = settle_machine(stage, out, plan, resume=resume, tokens=tokens_at_once(encoder))
        machine.use()
        say(machine.sentence())
        fit = PretrainFit(model, train, held, stage, plan, machine, folder=run_folder, listener=listener)
        try:
            progress = fit.run(resume=resume)
        except Diverged as error:
            kept = keep_good(
                fit.good_step, run_folder, lambda place: _write(fit, place, folder, tokenizer), use="--model takes"
            )
            raise Diverged(f"{error} {kept}") from None
        metrics = _finish(fit, out, config, start, folder, tokenizer, corpus)
        metrics |= {
            "steps": progress.step, "tokens": progress.tokens, "seconds": progress.seconds,
            "tokens_per_second": progress.tokens / max(progress.seconds, 1e-9), "new_weights": report.new,
        }  # fmt: skip
        shutil.rmtree(run_folder / GOOD, ignore_errors=True)
        write_json(run_folder / "metrics.json", metrics)
        checkpoint.remove(fit.folder)
        shutil.rmtree(run_folder / "corpora", ignore_errors=True)
    return Pretrained(out, metrics)


def _keep_record(config: Config, run_folder: Path, found: Survey, *, resume: bool) -> None:
    """Write what the run depends on; a resumed one must have the same options and texts."""
    import yaml

    path, state = run_folder / "config.yaml", run_folder / "data.json"
    if resume and path.is_file():
        changed = Config.load(path).changes(Config().updated(_relevant(config)))
        if changed:
            raise ConfigError(
                f"--resume: the run in {run_folder.parent} was started with other options: {listed(changed, 4)}. "
                "Pass the same ones, or --overwrite to start anew."
            )
        if state.is_file() and read_record(state, "texts")["texts"] != found.digest:
            raise ConfigError(
                f"--resume: the texts are not those that the run in {run_folder.parent} was started with. "
                "Bring the old files back, or pass --overwrite to start anew."
            )
    write_json(state, {"texts": found.digest, "documents": found.documents, "characters": found.characters})
    write_atomic(path, yaml.safe_dump(_relevant(config), sort_keys=False, allow_unicode=True))


def _relevant(config: Config) -> dict[str, Any]:
    """The options that a pre-training depends on, as nested plain values."""
    record = config.record()
    kept: dict[str, Any] = {}
    for key in PRETRAINING_KEYS:
        section, name = key.split(".")
        if section in record:
            kept.setdefault(section, {})[name] = record[section][name]
    return kept


def _made(config: Config, folder: Path, sources: list[TextSource], say: Callable[[str], None]) -> Path:
    """The new model of this run; it may be there from before the run was stopped."""
    options = config.pretrain
    if not (folder / "config.json").is_file():
        size = start_from_scratch(folder, sources, options, seed=config.train.seed)
        cased = "cased" if options.cased else "uncased"
        begins = ", with heads that look at the neighbors of a token" if options.initialization == "neighbors" else ""
        say(
            f"New vocabulary: {size:,} pieces of words, {cased}. New encoder: {options.from_scratch}, random weights"
            f"{begins}."
        )
    return folder


def _finish(
    fit: PretrainFit, out: Path, config: Config, start: Start, folder: Path, tokenizer: Tokenizer, corpus: Corpus
) -> dict[str, Any]:
    """Write the encoder with its heads, measure it as it was saved, in fp32, and draw the curve."""
    run_folder, history = out / "run", fit.progress.history
    staging = run_folder / "result"  # to know the names first: what bertune wrote can be told from what it did not
    staging.mkdir(exist_ok=True)
    _write(fit, staging, folder, tokenizer)
    names = sorted(path.name for path in staging.iterdir())
    base = None if start.base is None else base_model(config.model.name, config.model.revision, start.base, folder)
    record = {"files": names, "objective": config.pretrain.objective, "encoder": fit.model.encoder.config.arch}
    record["base_model"] = None if base is None else base.model_dump()
    write_json(run_folder / PRETRAINED, record)
    for name in sorted(names, key=lambda name: name == "config.json"):  # which makes it a model folder
        (staging / name).replace(out / name)
    staging.rmdir()
    metrics: dict[str, Any] = {"objective": config.pretrain.objective}
    metrics["corpus"] = {"documents": len(corpus), "tokens": corpus.tokens, "characters": start.found.characters}
    if fit.held is not None:
        before = next((record["metrics"] for record in history if record["kind"] == "eval"), None)
        metrics |= {"before": before, "held_out": fit.measure(fit.held)}
        plot_pretraining(history, run_folder / "curves.png")
    return metrics | {"versions": versions()}


def _write(fit: PretrainFit, place: Path, folder: Path, tokenizer: Tokenizer) -> None:
    """The encoder with its heads as a model folder."""
    save_pretraining(place, fit.model, read_source(folder))
    tokenizer.save(place)
