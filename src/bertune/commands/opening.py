"""A trained model for `evaluate` and `predict`: opened as asked, and its columns looked for in new files."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bertune.config import Config, DataConfig
from bertune.errors import ConfigError

if TYPE_CHECKING:
    from bertune.data.tasks import Task
    from bertune.evaluate.rule import Rule
    from bertune.ship.predict import Predictor

MACHINE = ("train.device", "train.precision", "train.threads", "train.seed")
SEED = {"train.seed": "Seed for encoders that transformers runs; others draw nothing here. Default: 0."}
# Answers are those of transformers unless bf16 is asked for.
DEFAULTS = Config().updated({"train": {"precision": "fp32"}})


def open_predictor(folder: str, config: Config) -> Predictor:
    """The model in `folder`, on the machine that `config` says."""
    import torch

    from bertune.ship.predict import Predictor

    machine = config.train
    torch.manual_seed(machine.seed)  # our own encoder draws nothing; one run by transformers might
    return Predictor.load(folder, device=machine.device, precision=machine.precision, threads=machine.threads)


def trained_task(folder: str) -> Task:
    """The task of the model in `folder`; its files are verified when it is opened."""
    from bertune.bundle import Bundle

    return Bundle.read(folder, verify=False).task


def trained_rule(folder: str) -> Rule:
    """How the model in `folder` decides."""
    from bertune.bundle import Bundle

    return Bundle.read(folder, verify=False).decision


def with_model_columns(data: DataConfig, task: Task, *, label: bool) -> DataConfig:
    """`data` with the model's own columns where none are named, so that a header is known by them."""
    if data.text_pair and not task.is_pair:
        raise ConfigError(f"--text-pair {data.text_pair[0]}: the model reads one text, not pairs; leave it out.")
    columns = {
        "text": data.text or list(task.text),
        "text_pair": data.text_pair or list(task.text_pair),
        "label": (data.label or list(task.label)) if label else [],
    }
    return data.model_copy(update=columns)
