"""After training: the result folder is written, opened again, and judged as a user would use it."""

from __future__ import annotations

import platform
import shutil
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from bertune import __version__
from bertune.bundle import BaseModelInfo, Bundle, HeadSpec, keep_rule, write_bundle
from bertune.data.batch import split_by_budget
from bertune.data.splits import groups_of
from bertune.data.tasks import Task
from bertune.data.tokens import Encoded, Tokenizer
from bertune.evaluate.card import CardInfo, model_card
from bertune.evaluate.curves import plot_curves
from bertune.evaluate.rule import Rule
from bertune.evaluate.tables import result_columns, verdict
from bertune.files import atomic_path, sha256_of, write_atomic, write_json
from bertune.folder import read_record
from bertune.hub import Source, weight_files
from bertune.model.attention import count_pairs
from bertune.model.encoder import padding_share
from bertune.model.load import opens_in_transformers, read_source, save_config, save_model
from bertune.model.lowrank import Base, save_adapter, weights_digest
from bertune.model.shared import save_head
from bertune.presets import PRESETS
from bertune.pretrainconfig import WITHIN_TASK
from bertune.ship.predict import Predictor
from bertune.training import checkpoint
from bertune.training.judge import decide_how, measure, results
from bertune.training.outcome import predictions_file
from bertune.training.promise import kept_promises, promise
from bertune.training.standing import standing
from bertune.training.summary import train_metrics

if TYPE_CHECKING:
    from collections.abc import Callable

    from bertune.config import Config, TrainConfig
    from bertune.ship.torch_backend import EnsembleBackend, TorchBackend
    from bertune.training.listen import Listener
    from bertune.training.prepare import Prepared, Split
    from bertune.training.state import Trained

PACKAGES = ("torch", "tokenizers", "numpy", "polars", "scikit-learn")  # whose versions a result may depend on
HEADS = {"own": "that of the architecture", "mlp": "linear, ReLU, linear"}  # kinds of heads in plainer words
CARD = "card.json"  # in run/
PRETRAIN = "pretrain"  # in run/: the pre-training that a training began with
GOOD = "last-good"  # in run/: the last good weights of a training that diverged


def finish(
    trained: Trained, *, out: Path, base: Source, folder: Path, tokenizer: Tokenizer, reading: dict[str, Any]
) -> dict[str, Any]:
    """Write the bundle, measure valid and test with it, and write everything in run/; returns the metrics.

    reading: how texts became tokens, see `Bundle.reading`.
    """
    bundle = write_model(trained, out, base=base, folder=folder, tokenizer=tokenizer, reading=reading)
    config, metric, machine = trained.config, trained.metric, trained.machine
    metrics: dict[str, Any] = {"metric": metric, "train": train_metrics(trained)}
    bundle, judged = judge(
        out, bundle, config, trained.prepared, metric=metric, listener=trained.listener, threads=machine.threads,
        device=machine.device,
    )  # fmt: skip
    metrics |= judged
    metrics["truncation"] = {
        name: asdict(split.tokens.truncation()) for name, split in trained.prepared.splits.items()
    }
    if config.pretrain.on:
        metrics["pretrain"] = read_record(out / "run" / PRETRAIN / "run" / "metrics.json")
    metrics["versions"] = versions()
    write_card(out, card_info(trained, bundle, base, metrics, out))
    plot_curves(trained.progress.history, out / "run" / "curves.png", metric=metric)
    shutil.rmtree(out / "run" / GOOD, ignore_errors=True)  # of an earlier attempt that diverged
    write_json(out / "run" / "metrics.json", metrics)
    checkpoint.remove(trained.folder)
    return metrics


def judge(
    out: Path, bundle: Bundle, config: Config, prepared: Prepared, *, metric: str, listener: Listener,
    threads: int | None = None, device: str = "auto",
) -> tuple[Bundle, dict[str, Any]]:
    """Measure the bundle in `out` on valid and test as a user would have it answer, and give it its decision rule.

    Writes run/predictions-*.parquet; returns the bundle with its rule, and what metrics.json tells of it.
    """
    predictor = Predictor.load(out, threads=threads, device=device, precision=config.train.measure_precision)
    backend = cast("TorchBackend | EnsembleBackend", predictor.backend)
    task = prepared.task
    splits = {name: split for name, split in prepared.splits.items() if name in ("valid", "test")}
    measured = {name: measure(predictor, split, listener) for name, split in splits.items()}
    logits = {name: found[0] for name, found in measured.items()}
    column, valid = config.data.group, splits.get("valid")
    groups = groups_of(valid.table, column) if column and valid else None
    rule, how = decide_how(config.decide, task, splits, logits, metric=metric, groups=groups, say=listener.say)
    held = prepared.splits.get("conformal")
    if held is not None:
        rule = promise(config.decide, task, rule, held, measure(predictor, held, listener)[0])
    how |= kept_promises(config.decide, task, rule, splits, logits, held, say=listener.say)
    bundle = keep_rule(out, bundle, rule)
    metrics: dict[str, Any] = {}
    for name, split in splits.items():
        metrics[name] = results(rule, task, logits[name], split.targets) | measured[name][1]
        metrics[name]["padding_share"] = evaluation_padding(split.tokens, backend)
        write_predictions(task, rule, split, logits[name], predictions_file(out, name), group=column)
    if splits:
        metrics |= how | standing(config, prepared, logits, rule, listener, metric=metric)
        metrics["measured_in"] = backend.machine.precision
    return bundle, metrics


def write_card(out: Path, info: CardInfo) -> None:
    """README.md, and what it says as run/card.json, for whoever makes another result of this one."""
    write_atomic(out / "README.md", model_card(info))
    write_json(out / "run" / CARD, info.to_dict())


def versions() -> dict[str, str]:
    """What the run was made with."""
    return {"bertune": __version__, "python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


def write_model(
    trained: Trained, out: Path, *, base: Source, folder: Path, tokenizer: Tokenizer, reading: dict[str, Any]
) -> Bundle:
    """The model as it is, as a bundle in `out`."""
    model, config, task = trained.model, trained.config, trained.prepared.task
    encoder, head = model.encoder.config, model.head.config
    whole = trained.lora is None and trained.shared is None  # the file of the weights holds all of them
    bundle = Bundle(
        bertune_version=__version__, task=task, activation=task.activation, **reading, encoder=encoder.arch,
        head=HeadSpec(**{name: value for name, value in asdict(head).items() if name in HeadSpec.model_fields}),
        base_model=base_model(config.model.name, config.model.revision, base, folder),
        opens_in_transformers=whole and opens_in_transformers(encoder.arch, head),
    )

    def write_files(staging: Path) -> None:
        if trained.shared is not None:
            save_config(staging, model, read_source(folder), labels=task.labels, problem_type=task.problem_type)
            save_head(staging, model, digest=trained.shared)
        elif trained.lora is None:
            save_model(staging, model, read_source(folder), labels=task.labels, problem_type=task.problem_type)
        else:
            source = read_source(folder)
            save_config(staging, model, source, labels=task.labels, problem_type=task.problem_type)
            digest = weights_digest(folder)
            assert digest is not None  # see check_base
            save_adapter(
                staging, trained.matrices, model, scale=trained.lora.scale, targets=config.model.lora_targets,
                base=Base(bundle.base_model.name, bundle.base_model.revision, digest),
            )
        tokenizer.save(staging)

    return write_bundle(out, bundle, write_files)


def keep_good(
    step: int | None, run_folder: Path, write: Callable[[Path], object], *,
    use: str = "--model and bertune predict take",
) -> str:
    """After a divergence, when the model holds the last good weights, those of `step`, if there are any: `write` puts
    it into the empty folder that it is given. Returns a sentence about that; use: what takes the folder."""
    if step is None:
        return "There are no good weights from before to keep."
    place = run_folder / GOOD
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    write(place)
    return f"The weights of step {step:,} are kept in {place}, which {use}."


def evaluation_padding(tokens: Encoded, backend: TorchBackend | EnsembleBackend) -> float:
    """`padding_share` of an evaluation of all rows."""
    lengths, model = tokens.lengths, backend.model
    runs = split_by_budget(np.arange(len(tokens)), lengths, backend.machine.token_budget)
    counts = [count_pairs(tokens.sequence_lengths(run), padded=model.pads) for run in runs]
    pairs, wasted = sum(count[0] for count in counts), sum(count[1] for count in counts)
    return padding_share(model.encoder.config, tokens=int(lengths.sum()), pairs=pairs, wasted=wasted)


def write_predictions(
    task: Task, rule: Rule, split: Split, logits: np.ndarray, path: Path, *, group: str | None
) -> None:
    """A row each: file, row number, group if there are any, true label(s), prediction, and logit and probability of
    every label."""
    import polars as pl

    table = split.table
    if task.kind == "single":
        truth: list[Any] = [task.labels[number] for number in split.targets]
    else:
        truth = [[task.labels[number] for number in np.flatnonzero(row)] for row in split.targets]
    shares = rule.probabilities(task.kind, logits)
    columns: dict[str, Any] = {
        "file": [Path(table.files[number]).name for number in table.file_index.tolist()],
        "row": table.row_numbers,
        **({"group": list(map(str, groups_of(table, group)))} if group else {}),
        "label": truth,
        "prediction": task.names(rule.decide(task.kind, logits)),
    }
    columns |= {f"prob:{label}": shares[:, place] for place, label in enumerate(task.labels)}
    columns |= {f"logit:{label}": logits[:, place] for place, label in enumerate(task.labels)}
    labels = pl.String() if task.kind == "single" else pl.List(pl.String)  # also where no row has any
    with atomic_path(path) as temporary:
        frame = pl.DataFrame(columns, schema_overrides={"label": labels, "prediction": labels})
        frame.write_parquet(temporary)


def base_model(name: str, revision: str | None, base: Source, folder: Path) -> BaseModelInfo:
    """Where training started, without any path of this machine."""
    files = weight_files({path.name for path in folder.iterdir()})
    shown = Path(name).name if base.kind in ("folder", "archive") and Path(name).exists() else name
    return BaseModelInfo(
        name=shown, title=base.title, licence=base.licence, note=base.note,
        revision=folder.name if base.kind == "hub" else revision,  # the commit, whatever branch or tag was asked for
        sha256=sha256_of(folder / files[0]) if len(files) == 1 else None,
    )


def card_info(trained: Trained, bundle: Bundle, base: Source, metrics: dict[str, Any], out: Path) -> CardInfo:
    """What the model card says."""
    config, splits, plan = trained.config, trained.prepared.splits, trained.plan
    files = [file for split in splits.values() for file in split.table.files]
    preset = PRESETS.get(config.model.name) if base.kind in ("embedded", "hub") else None
    train = config.train
    settings = {
        "epochs": plan.epochs, "batch size": plan.batch_size, "lr": plan.lr, "head lr": plan.head_lr,
        "schedule": train.schedule, "warm-up": train.warmup, "optimizer": train.optimizer,
        "weight decay": train.weight_decay if train.optimizer != "adam" else None, "gradient norm at most": train.clip,
        "pooling": bundle.head.pooling, "layers": layers_read(trained), "chunks joined by": bundle.head.join,
        "head": HEADS.get(bundle.head.kind, bundle.head.kind),
        "dropout": config.model.dropout, "dropout of the head": config.model.head_dropout,
        "loss": loss_name(trained.prepared.task.kind, train), "class weights": train.class_weights,
        "label prior": train.label_prior, "label smoothing": train.label_smoothing or None, **techniques(config),
        "frozen": config.model.freeze, "weights kept": kept_weights(trained), "seed": train.seed,
        "precision": trained.machine.precision,
        "pre-trained further on": pretrained_on(config), **trained.together,
    }
    return CardInfo(
        name=out.resolve().name, version=__version__, task=trained.prepared.task, files=list(dict.fromkeys(files)),
        split_rows={name: len(split) for name, split in splits.items()}, split_rule=trained.prepared.rule,
        results={name: column for name, column in result_columns(metrics).items() if name != "train"},
        verdict=verdict(metrics), settings=settings,
        **bundle.reading,
        chosen_by_valid=train.select_best and trained.progress.best is not None,
        opens_in_transformers=bundle.opens_in_transformers,
        stands_alone=trained.lora is None and trained.shared is None, base_title=base.title or bundle.base_model.name,
        base_repo=preset.repo if preset else bundle.base_model.name if base.kind == "hub" else None,
        base_licence=bundle.base_model.licence, base_note=base.note,
        base_languages=preset.languages if preset else None,
        remarks=[trained.prepared.train.tokens.truncation().sentence()], rule=bundle.decision,
    )


def techniques(config: Config) -> dict[str, str]:
    """What was done beyond plain training, as the card tells it."""
    model, train = config.model, config.train
    lora = f"rank {model.lora}, alpha {model.lora_alpha:g}, beside {', '.join(model.lora_targets)}"
    average = f"ema, {train.ema_decay:g}" if train.average == "ema" else f"swa, after {train.swa_start:g} of all steps"
    found = {
        "layer-wise decay": f"{train.layer_decay:g} ({train.layer_decay_on})" if train.layer_decay != 1 else "",
        "gradual unfreezing": f"{train.unfreeze}" if train.unfreeze != "none" else "",
        "new top layers": f"{model.reinit_layers}" if model.reinit_layers else "",
        "LoRA": lora if model.lora else "",
        "R-Drop": f"{train.r_drop:g}" if train.r_drop else "",
        "adversarial": f"{train.adversarial}, {train.adversarial_steps} passes" if train.adversarial != "none" else "",
        "mixout": f"{train.mixout:g}" if train.mixout else "",
        "weights averaged": average if train.average != "none" else "",
    }
    return {name: text for name, text in found.items() if text}


def pretrained_on(config: Config) -> str | None:
    """On which texts the encoder was pre-trained before, as the card tells it."""
    if not config.pretrain.on:
        return None
    files = [Path(name).name for name in config.pretrain.on if name != WITHIN_TASK]
    return ", ".join(["the training texts", *files])


def loss_name(kind: str, train: TrainConfig) -> str:
    """What was minimised, as the card tells it."""
    if train.loss == "focal":
        return f"focal, gamma {train.focal_gamma:g}"
    if train.loss != "auto":
        return train.loss
    return "cross-entropy" if kind == "single" else "binary cross-entropy"


def layers_read(trained: Trained) -> str | None:
    """Which layers the head reads, where that is not the last alone."""
    layers = list(map(str, trained.model.head.config.layers))
    combined = f", {trained.model.head.config.combine}" if len(layers) > 1 else ""
    return f"{', '.join(layers)} of 0 to {trained.model.encoder.config.layers - 1}{combined}" if layers else None


def kept_weights(trained: Trained) -> str:
    """Which of the weights of a run became the result."""
    best = trained.progress.best
    if best is None or not trained.config.train.select_best:
        return f"those of the last step, {trained.progress.step:,}"
    if trained.together:
        return f"those of step {best['step']:,} of all tasks, the best mean over them on their valid splits"
    return f"those of step {best['step']:,}, the best {trained.metric} on the valid split"
