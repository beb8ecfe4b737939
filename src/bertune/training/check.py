"""Options that would change nothing in the run at hand: an error, so that nobody believes they did something."""

from __future__ import annotations

from collections.abc import Collection

from bertune.config import CheckConfig, Config, DecideConfig, ModelConfig, TrainConfig
from bertune.errors import ConfigError
from bertune.evaluate.thresholds import BY_LABEL


def check_used(config: Config, kind: str, splits: Collection[str]) -> None:
    """Raise ConfigError for an option that needs another one, another kind of task or a split that is not there."""
    model, train = config.model, config.train
    if train.label_smoothing and train.loss != "auto":
        raise ConfigError(
            f"--label-smoothing {train.label_smoothing:g}: belongs to cross-entropy, and --loss {train.loss} has "
            "targets of its own. Leave it out, or pass --loss auto."
        )
    if kind == "single" and train.loss in ("asymmetric", "distribution-balanced"):
        raise ConfigError(
            f"--loss {train.loss}: belongs to a task with any number of labels a row. Pass auto or focal, or "
            "--label-prior balanced for rare labels."
        )
    if train.loss == "distribution-balanced" and "balanced" in (train.class_weights, train.label_prior):
        name = "--class-weights" if train.class_weights == "balanced" else "--label-prior"
        raise ConfigError(f"{name} balanced: the distribution-balanced loss weighs labels by itself; leave it out.")
    for name in ("negative_gamma", "negative_margin"):
        if train.loss != "asymmetric" and getattr(train, name) != TrainConfig.model_fields[name].default:
            raise ConfigError(f"train.{name} {getattr(train, name):g}: needs --loss asymmetric.")
    if train.loss != "focal" and train.focal_gamma != TrainConfig.model_fields["focal_gamma"].default:
        raise ConfigError(f"train.focal_gamma {train.focal_gamma:g}: needs --loss focal.")
    if model.head != "mlp" and model.head_hidden != ModelConfig.model_fields["head_hidden"].default:
        raise ConfigError(f"model.head_hidden {model.head_hidden}: needs --head mlp.")
    if config.check.label_errors == "none" and config.check.folds != CheckConfig.model_fields["folds"].default:
        raise ConfigError(f"check.folds {config.check.folds}: needs --label-errors frozen or tuned.")
    check_decision(config.decide, kind, splits)
    check_seeds(config)
    if train.patience is not None and "valid" not in splits:
        raise ConfigError(
            f"--patience {train.patience}: there are no validation rows to stop by. Leave it out, or pass --valid FILE "
            "or a fraction."
        )
    if train.evaluate_test and "test" not in splits:
        raise ConfigError(
            "train.evaluate_test: there are no test rows to measure. Leave it out, or pass --test FILE or a fraction."
        )
    if train.evals_per_epoch > 1 and "valid" not in splits and not train.evaluate_test:
        raise ConfigError(
            f"train.evals_per_epoch {train.evals_per_epoch}: there are no validation rows to measure. Leave it out, or "
            "pass --valid FILE or a fraction."
        )


def check_seeds(config: Config) -> None:
    """Raise ConfigError for a seed that nothing is drawn with."""
    data, decide = config.data, config.decide
    if data.share_seed and data.share == 1:
        raise ConfigError(
            f"data.share_seed {data.share_seed}: draws the rows of data.share, and that takes all. Leave it out."
        )
    promised = decide.coverage is not None or decide.accuracy is not None  # by a drawn half of the validation rows
    if data.split_seed and not (promised or data.fold or any(data.fractions().values())):
        raise ConfigError(
            f"--split-seed {data.split_seed}: no rows are drawn for a split here. Leave it out, or pass --valid or "
            "--test as a fraction."
        )


def check_decision(decide: DecideConfig, kind: str, splits: Collection[str]) -> None:
    """Raise ConfigError for a part of the decision rule that has no meaning here, or that another part decides."""
    default = DecideConfig()
    changed = [name for name in DecideConfig.model_fields if getattr(decide, name) != getattr(default, name)]
    of_several = [name for name in changed if name not in ("calibration", "coverage", "accuracy")]
    if kind == "single" and of_several:
        raise ConfigError(
            f"decide.{of_several[0]} {getattr(decide, of_several[0])}: belongs to a task with any number of labels a "
            "row; of one label a row the likeliest is given. Leave it out."
        )
    for name in ("coverage", "accuracy"):
        if name in changed and "valid" not in splits:
            raise ConfigError(f"--{name}: needs validation rows, and there are none. Pass --valid FILE or a fraction.")
    ways = [name for name in ("threshold", "precision", "miss_cost") if name in changed]
    if len(ways) > 1:
        raise ConfigError(f"decide.{ways[0]} and decide.{ways[1]} each say where a label begins; pass one of them.")
    if decide.objective != "auto" and (isinstance(decide.threshold, float) or {"precision", "miss_cost"} & set(ways)):
        raise ConfigError(f"decide.objective {decide.objective}: has no effect with decide.{ways[0]}; leave it out.")
    if decide.threshold == "label" and decide.objective not in ("auto", *BY_LABEL):
        raise ConfigError(
            f"--threshold label with decide.objective {decide.objective}: thresholds of single labels can be chosen "
            f"for {' and '.join(BY_LABEL)}. Pass --threshold global."
        )
    if decide.max_labels is not None and decide.min_labels > decide.max_labels:
        raise ConfigError(f"decide.min_labels {decide.min_labels} is above decide.max_labels {decide.max_labels}.")
    chosen = decide.threshold in ("global", "label") or decide.precision is not None
    if chosen and "valid" not in splits:
        name = "decide.precision" if decide.precision is not None else f"--threshold {decide.threshold}"
        raise ConfigError(f"{name}: is chosen on validation rows, and there are none. Pass --valid FILE or a fraction.")
