"""The Python door: the same training and the same model as on the command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bertune.config import Config
from bertune.errors import ConfigError
from bertune.settings import by_name

if TYPE_CHECKING:
    from bertune.multitaskconfig import MultiConfig
    from bertune.ship.predict import Predictor
    from bertune.ship.tasks import TaskPredictors
    from bertune.training.checkup import Checkup
    from bertune.training.curve import LearningCurve
    from bertune.training.folds import CrossValidation
    from bertune.training.listen import Listener
    from bertune.training.lr_range import LrRange
    from bertune.training.multitask import Joint
    from bertune.training.pretrain import Pretrained
    from bertune.training.run import Result

Names = str | Sequence[str] | None


def train(
    data: Any, *, out: str | Path, text: Names = None, text_pair: Names = None, label: Names = None,
    valid: str | Path | float | None = None, test: str | Path | float | None = None, model: str | Path | None = None,
    epochs: int | None = None, batch_size: int | None = None, lr: float | None = None, seed: int | None = None,
    seeds: int | None = None, keep: str = "best", config: Config | str | Path | None = None,
    settings: Mapping[str, Any] | None = None, resume: bool = False, overwrite: bool = False,
    listener: Listener | None = None,
) -> Result:
    """Train on `data` and leave the result in the folder `out`.

    data: a file name, several, or a glob; or a pandas, polars or Arrow frame, a list of dicts, or a dict of columns.
    text, text_pair, label: column names, found by themselves where their names are common. valid, test: a file or a
    fraction; with neither, 80/10/10. model: folder, archive, preset or hub name. config: a Config or YAML file;
    settings: anything else by its dotted name, for example {"model.pooling": "mean", "train.schedule": "cosine"}.
    Arguments given here win over `settings`, and these over `config`. seeds: train with that many seeds, from `seed`
    on; keep: of them the "best" on the validation rows, their "soup" (one model, weights averaged) or their
    "ensemble"; `metrics["seeds"]` tells how far they lie apart.

    Raises InputError for what cannot be used (before `out` is touched), TrainingError, and Interrupted on Ctrl-C.
    """
    from bertune.training.run import run

    chosen, source = _configured(
        data, config, settings, text=text, text_pair=text_pair, label=label, valid=valid, test=test, model=model,
        place="train()", more={"train": {"epochs": epochs, "batch_size": batch_size, "lr": lr, "seed": seed}},
    )  # fmt: skip
    if seeds is not None:
        from bertune.training.seeds import train_seeds

        result = train_seeds(
            chosen, out=out, seeds=seeds, keep=keep, source=source, resume=resume, overwrite=overwrite,
            listener=listener,
        )  # fmt: skip
    elif keep != "best":
        raise ConfigError(f"train(keep={keep!r}): says what is kept of several seeds; pass seeds with it.")
    else:
        result = run(chosen, out=out, source=source, resume=resume, overwrite=overwrite, listener=listener)
    if chosen.report.page:
        from bertune.report.write import keep_page
        from bertune.training.listen import Silent

        keep_page(result.out, chosen, source=source, say=(listener or Silent()).say)
    return result


def pretrain(
    data: Any, *, out: str | Path, text: Names = None, model: str | Path | None = None, objective: str | None = None,
    epochs: int | None = None, lr: float | None = None, seed: int | None = None,
    config: Config | str | Path | None = None, settings: Mapping[str, Any] | None = None, resume: bool = False,
    overwrite: bool = False, listener: Listener | None = None,
) -> Pretrained:
    """Pre-train an encoder further on texts without labels, and leave it, a folder for `model`, in `out`.

    data: as for `train`; files need not have the same columns. objective: mlm, nsp or both. Others by their dotted
    names, for example {"pretrain.whole_word": True}, {"pretrain.from_scratch": "mini"} for a new encoder. The result's
    `metrics` has `before` and `held_out`: perplexity and accuracy on documents that it was not trained on.

    Raises InputError for what cannot be used (before `out` is touched), TrainingError, and Interrupted on Ctrl-C.
    """
    from bertune.training.pretrain import pretrain as run

    chosen, source = _configured(
        data, config, settings, text=text, text_pair=None, label=None, valid=None, test=None, model=model,
        place="pretrain()",
        more={"pretrain": {"objective": objective, "epochs": epochs, "lr": lr}, "train": {"seed": seed}},
    )  # fmt: skip
    result = run(chosen, out=out, source=source, resume=resume, overwrite=overwrite, listener=listener)
    if chosen.report.page:
        from bertune.report.write import keep_pretraining_page
        from bertune.training.listen import Silent

        keep_pretraining_page(result.out, say=(listener or Silent()).say)
    return result


def multitask(
    tasks: Mapping[str, Any] | str | Path | MultiConfig, *, out: str | Path, data: Mapping[str, Any] | None = None,
    resume: bool = False, overwrite: bool = False, listener: Listener | None = None,
) -> Joint:
    """Train one encoder on several tasks, each with a head of its own, and leave the results in `out`.

    tasks: a YAML file as for `bertune multitask`, or a mapping as one holds. data: frames, lists of dicts or dicts of
    columns by task, in place of the files named there. The result's `metrics` has a section a task in `tasks`.

    Raises InputError for what cannot be used (before `out` is touched), TrainingError, and Interrupted on Ctrl-C.
    """
    from bertune.multitaskconfig import MultiConfig
    from bertune.training.multitask import multitask as run

    if isinstance(tasks, str | Path):
        config = MultiConfig.load(tasks)
    else:
        config = tasks if isinstance(tasks, MultiConfig) else MultiConfig.parse(tasks)
    result = run(config, out=out, sources=data, resume=resume, overwrite=overwrite, listener=listener)
    if any(config.task(name).report.page for name in config.names):
        from bertune.report.write import keep_pages
        from bertune.training.listen import Silent

        keep_pages(result.out, config, sources=data or {}, say=(listener or Silent()).say)
    return result


def cross_validate(
    data: Any, *, out: str | Path, folds: int = 5, text: Names = None, text_pair: Names = None, label: Names = None,
    valid: str | Path | float | None = None, model: str | Path | None = None, epochs: int | None = None,
    batch_size: int | None = None, lr: float | None = None, seed: int | None = None,
    config: Config | str | Path | None = None, settings: Mapping[str, Any] | None = None,
    resume: bool = False, overwrite: bool = False, listener: Listener | None = None,
) -> CrossValidation:
    """Train `folds` models on `data`, each tested on the rows that the others trained on; arguments as for `train`.

    The result's `metrics` has `out_of_fold` (all rows, each answered by a model that has not seen it), `intervals`,
    `mean` and `sd` over the folds. Each fold is a result of its own in run/folds/ of `out`.
    """
    from bertune.training.folds import cross_validate as run_folds

    chosen, source = _configured(
        data, config, settings, text=text, text_pair=text_pair, label=label, valid=valid, test=None, model=model,
        place="cross_validate()",
        more={"train": {"epochs": epochs, "batch_size": batch_size, "lr": lr, "seed": seed}},
    )  # fmt: skip
    return run_folds(
        chosen, out=out, folds=folds, source=source, resume=resume, overwrite=overwrite, listener=listener
    )


def learning_curve(
    data: Any, *, out: str | Path, shares: Sequence[float] = (0.125, 0.25, 0.5, 1.0), repeats: int = 2,
    text: Names = None, text_pair: Names = None, label: Names = None, valid: str | Path | float | None = None,
    test: str | Path | float | None = None, model: str | Path | None = None, epochs: int | None = None,
    batch_size: int | None = None, lr: float | None = None, seed: int | None = None,
    config: Config | str | Path | None = None, settings: Mapping[str, Any] | None = None,
    resume: bool = False, overwrite: bool = False, listener: Listener | None = None,
) -> LearningCurve:
    """Train on growing `shares` of the training rows, each `repeats` times; other arguments as for `train`.

    The result's `curve` has `points` (metric and 95 % interval on the same test rows for each share) and `twice`: what
    a power law through them says of twice the rows, with its interval.
    """
    from bertune.training.curve import learning_curve as run_curve

    chosen, source = _configured(
        data, config, settings, text=text, text_pair=text_pair, label=label, valid=valid, test=test, model=model,
        place="learning_curve()",
        more={"train": {"epochs": epochs, "batch_size": batch_size, "lr": lr, "seed": seed}},
    )  # fmt: skip
    return run_curve(
        chosen, out=out, shares=shares, repeats=repeats, source=source, resume=resume, overwrite=overwrite,
        listener=listener,
    )  # fmt: skip


def lr_range(
    data: Any, *, out: str | Path, steps: int = 120, lowest: float = 1e-6, highest: float = 1e-1, text: Names = None,
    text_pair: Names = None, label: Names = None, valid: str | Path | float | None = None,
    test: str | Path | float | None = None, model: str | Path | None = None, batch_size: int | None = None,
    seed: int | None = None, config: Config | str | Path | None = None, settings: Mapping[str, Any] | None = None,
    overwrite: bool = False, listener: Listener | None = None,
) -> LrRange:
    """Train for `steps` steps while the learning rate rises from `lowest` to `highest`; other arguments as for `train`.

    The result's `found` has `points` (rate, loss, smoothed loss), `lowest`, `suggestion` (a tenth of the rate with the
    lowest smoothed loss) and `diverged` (where the loss runs away). The picture is run/lr-range.png in `out`.
    """
    from bertune.report.rates import keep_range
    from bertune.training.lr_range import lr_range as run_range

    chosen, source = _configured(
        data, config, settings, text=text, text_pair=text_pair, label=label, valid=valid, test=test, model=model,
        place="lr_range()", more={"train": {"batch_size": batch_size, "seed": seed}},
    )  # fmt: skip
    result = run_range(
        chosen, out=out, steps=steps, lowest=lowest, highest=highest, source=source, overwrite=overwrite,
        listener=listener,
    )  # fmt: skip
    keep_range(result.found, Path(out) / "run")
    return result


def load(
    folder: str | Path, *, device: str = "auto", precision: str = "fp32", threads: int | None = None
) -> Predictor | TaskPredictors:
    """Open a result of `train`, see `Predictor` for what it answers; or one of `multitask`, which has `.tasks` and
    `.predict(rows, task=NAME)`, and is a mapping of names to predictors. Raises ModelError."""
    from bertune.folder import joint_tasks
    from bertune.ship.predict import Predictor

    if joint_tasks(folder):
        from bertune.ship.tasks import TaskPredictors

        return TaskPredictors.load(folder, device=device, precision=precision, threads=threads)

    return Predictor.load(folder, device=device, precision=precision, threads=threads)


def check(
    data: Any, *, text: Names = None, text_pair: Names = None, label: Names = None,
    valid: str | Path | float | None = None, test: str | Path | float | None = None, model: str | Path | None = None,
    label_errors: str = "frozen", config: Config | str | Path | None = None,
    settings: Mapping[str, Any] | None = None, listener: Listener | None = None,
) -> Checkup:
    """Look the data over as `train` would read it, with the same arguments.

    The result has `findings` (kind, severity, count, message, advice, rows), `doubts` (rows whose label is probably
    wrong, the likeliest first; None for label_errors="none"), and `plan().write(path)` for `train(..., settings=
    {"data.plan": path})`. Nothing is raised for what is found; InputError for what cannot be read.
    """
    from bertune.training.checkup import check as check_data

    chosen, source = _configured(
        data, config, settings, text=text, text_pair=text_pair, label=label, valid=valid, test=test, model=model,
        place="check()", more={"check": {"label_errors": label_errors}},
    )  # fmt: skip
    return check_data(chosen, source=source, listener=listener)


def compare(
    first: str | Path, *others: str | Path, split: str = "test", metric: str = "auto", seed: int = 0
) -> list[dict[str, Any]]:
    """Whether each of `others` is better than `first`, results of `train` that were measured on the same rows.

    A dict each: `judgement` (better, worse or noise, by `metric`), `metrics` (both values, the difference with its 95 %
    interval, and p, for every metric), `p` with its `test` (McNemar's exact one for accuracy, else paired permutation;
    Holm's where there are several), `only_first` and `only_second` (the rows that one alone gets right).
    Raises ModelError for a folder that is no result, DataError where rows or labels are not the same.
    """
    from bertune.training.outcome import compare_runs

    return compare_runs([first, *others], split=split, metric=metric, seed=seed)


def _configured(
    data: Any, config: Config | str | Path | None, settings: Mapping[str, Any] | None, *, text: Names,
    text_pair: Names, label: Names, valid: str | Path | float | None, test: str | Path | float | None,
    model: str | Path | None, place: str, more: dict[str, dict[str, Any]],
) -> tuple[Config, Any]:
    """The configuration that the arguments of a call make, and the data where it is in memory."""
    base = config if isinstance(config, Config) else Config.load(config) if config is not None else Config()
    for values in by_name(settings):
        base = base.updated(values, place="settings")
    files, source = _files(data)
    given: dict[str, dict[str, Any]] = {
        "data": {"files": files, "text": _names(text), "text_pair": _names(text_pair), "label": _names(label),
                 "valid": str(valid) if isinstance(valid, Path) else valid,
                 "test": str(test) if isinstance(test, Path) else test},
        "model": {"name": None if model is None else str(model)},
        **more,
    }
    chosen = {
        section: {name: value for name, value in values.items() if value is not None}
        for section, values in given.items()
    }
    return base.updated(chosen, place=place), source


def _names(names: Names) -> list[str] | None:
    if names is None:
        return None
    return [names] if isinstance(names, str) else list(names)


def _files(data: Any) -> tuple[list[str] | None, Any]:
    """(files, None) for paths, (None, data) for data in memory."""
    if isinstance(data, str | Path):
        return [str(data)], None
    if isinstance(data, list | tuple) and data and all(isinstance(item, str | Path) for item in data):
        return [str(item) for item in data], None
    return None, data
