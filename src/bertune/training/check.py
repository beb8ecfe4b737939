"""Options that would change nothing in the run at hand: an error, so that nobody believes they did something."""

from __future__ import annotations

from collections.abc import Collection

from bertune.config import Config, ModelConfig, TrainConfig
from bertune.errors import ConfigError


def check_used(config: Config, kind: str, splits: Collection[str]) -> None:
    """Raise ConfigError for an option that needs another one, another kind of task or a split that is not there."""
    model, train = config.model, config.train
    if train.label_smoothing and (kind == "multi" or train.loss == "focal"):
        what = "the focal loss" if train.loss == "focal" else "a task with any number of labels a row"
        raise ConfigError(
            f"--label-smoothing {train.label_smoothing:g}: belongs to cross-entropy over one label a row, and this is "
            f"{what}. Leave it out, or choose another --loss or --task."
        )
    if train.loss != "focal" and train.focal_gamma != TrainConfig.model_fields["focal_gamma"].default:
        raise ConfigError(f"train.focal_gamma {train.focal_gamma:g}: needs --loss focal.")
    if model.head != "mlp" and model.head_hidden != ModelConfig.model_fields["head_hidden"].default:
        raise ConfigError(f"model.head_hidden {model.head_hidden}: needs --head mlp.")
    if train.patience is not None and "valid" not in splits:
        raise ConfigError(
            f"--patience {train.patience}: there are no validation rows to stop by. Leave it out, or pass --valid FILE "
            "or a fraction."
        )
