"""Typed configuration: one place declares an option; YAML, `--set a.b=c`, the command line and Python all read it here.

A field's `description` is its help text, and `json_schema_extra={"flag": ...}` gives it a command-line flag of its own;
a field without a flag is reached with `--set section.name=value`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator

from bertune.dataconfig import DataConfig, ReadConfig
from bertune.errors import ConfigError
from bertune.longtext import MOST_CHUNKS, WAYS, check_way
from bertune.paths import size_in_bytes
from bertune.pretrainconfig import PretrainConfig
from bertune.sections import Section, flag
from bertune.settings import merge, read_yaml, sentence

__all__ = [
    "PRETRAINING_KEYS", "CacheConfig", "CheckConfig", "Config", "DataConfig", "DecideConfig", "ModelConfig",
    "PretrainConfig", "ReadConfig", "ReportConfig", "TrainConfig",
]  # fmt: skip

# The options that a pre-training depends on; the others have no effect on it.
PRETRAINING_KEYS = (
    "data.files", "data.text", *(f"data.{name}" for name in ("format", "header", "columns", "encoding", "quoting")),
    "model.name", "model.revision", "model.dropout", "cache.folder", "cache.limit",
    *(f"pretrain.{name}" for name in PretrainConfig.model_fields if name != "on"),
    *(f"train.{name}" for name in ("seed", "device", "precision", "threads", "token_budget", "kernels", "compile",
                                   "checkpoint_minutes", "checkpoint_steps")),
)  # fmt: skip

Decay = Annotated[float, Field(ge=0, lt=1)]


class CheckConfig(Section):
    """The look at the data before training."""

    enabled: bool = Field(True, description="Look the data over before training, and say what was found.")
    strict: bool = Field(False, description="What would be a warning ends the run.")
    label_errors: Literal["none", "frozen", "tuned"] = Field(
        "none",
        description="Doubt labels by models that have not seen the row: over the encoder as it is (frozen), or "
        "trained anew for each fold (tuned), which takes as many trainings.",
        json_schema_extra=flag("--label-errors", group="Check"),
    )
    folds: int = Field(5, ge=2, description="Folds of --label-errors.")


class ModelConfig(Section):
    """The encoder, its head, and how text is cut for it."""

    name: str = Field(
        "mini",
        description="Folder, archive, preset (see `bertune models`) or hub name.",
        json_schema_extra=flag("--model", group="Model", metavar="MODEL"),
    )
    revision: str | None = Field(
        None, description="Hub revision.", json_schema_extra=flag("--revision", group="Model")
    )
    pooling: Literal["auto", "cls", "mean", "max", "attention"] = Field(
        "auto",
        description="What the head reads of the tokens: the first, their mean or maximum, or a learned weighted mean; "
        "auto: what transformers does for the architecture.",
        json_schema_extra=flag("--pooling", group="Layers"),
    )
    layers: str = Field(
        "last",
        description="Layers whose states the head reads: last, all, first-N, last-N, or one by its number from 0.",
        json_schema_extra=flag("--layers", group="Layers", metavar="last|all|first-N|last-N|K"),
    )
    combine: Literal["auto", "concat", "mean", "max", "mix"] = Field(
        "auto",
        description="How several layers become one; mix: a learned weighted mean; auto: mean.",
        json_schema_extra=flag("--combine", group="Layers"),
    )
    head: Literal["auto", "linear", "mlp"] = Field(
        "auto",
        description="Layers after pooling; auto: what transformers has for the architecture.",
        json_schema_extra=flag("--head", group="Model"),
    )
    head_hidden: int = Field(50, ge=1, description="Width of the mlp head.")
    head_dropout: float | None = Field(None, ge=0, lt=1, description="Dropout of the head; by default the model's own.")
    dropout: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="Dropout inside the encoder; by default the model's own.",
        json_schema_extra=flag("--dropout", group="Model"),
    )
    max_length: int | None = Field(
        None,
        ge=4,
        description="Longest input in tokens, special ones included; by default 256, or the most the model reads.",
        json_schema_extra=flag("--max-length", group="Model"),
    )
    truncation: Literal["longest-first", "only-second", "head"] = Field(
        "longest-first",
        description="What a too long row loses: the end of its longer side, of its second side, or of the whole.",
        json_schema_extra=flag("--truncation", group="Model"),
    )
    long_text: str = Field(
        "head",
        description="What is read of a text that does not fit: head (its beginning), tail (its end), head+tail (128 "
        "tokens of the beginning, then the end), N+tail, hierarchical (all of it, in chunks), or auto, which tries "
        "these on the validation rows.",
        json_schema_extra=flag(
            "--long-text", group="Long texts", metavar="head|tail|head+tail|N+tail|hierarchical|auto"
        ),
    )
    long_text_pair: str | None = Field(
        None,
        description="The same for the second side of a pair; by default as --long-text, beside chunks head.",
        json_schema_extra=flag("--long-text-pair", group="Long texts", metavar="head|tail|head+tail|..."),
    )
    join: Literal["auto", "mean", "max", "attention"] = Field(
        "auto",
        description="How the chunks of a hierarchical text become one; attention: a learned weighted mean; auto: mean.",
        json_schema_extra=flag("--join", group="Long texts"),
    )
    chunk_overlap: int = Field(
        0,
        ge=0,
        description="Tokens that neighbouring chunks share.",
        json_schema_extra=flag("--chunk-overlap", group="Long texts"),
    )
    max_chunks: int = Field(MOST_CHUNKS, ge=1, description="Chunks of a text; what lies behind them is cut.")
    freeze: str = Field(
        "none",
        description="What is not trained: none, encoder, embeddings, or a number of lowest layers (with embeddings).",
        json_schema_extra=flag("--freeze", group="Model", metavar="none|encoder|embeddings|K"),
    )
    train_positions: bool = Field(True, description="Train the position embeddings (the book's program does not).")
    reinit_layers: int = Field(
        0,
        ge=0,
        description="Start with new weights in so many top layers, and in BERT's pooler.",
        json_schema_extra=flag("--reinit-layers", group="Regularisation", metavar="K"),
    )
    lora: int = Field(
        0,
        ge=0,
        description="Train the head and, in place of the encoder, matrices of this rank beside its own (LoRA); 0: off.",
        json_schema_extra=flag("--lora", group="Regularisation", metavar="RANK"),
    )
    lora_alpha: float = Field(16.0, gt=0, description="LoRA's matrices count alpha / rank times.")
    lora_targets: list[Literal["query", "key", "value", "out", "up", "down"]] = Field(
        ["query", "value"],
        min_length=1,
        description="Products of each layer that LoRA's matrices stand beside: query, key, value, out, up, down.",
        json_schema_extra={"metavar": "A,B,C"},
    )

    @field_validator("layers", mode="before")
    @classmethod
    def _which_layers(cls, value: object) -> object:
        value = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
        if not isinstance(value, str) or not re.fullmatch("last|all|(first-|last-)?[0-9]+", value):
            raise ValueError("expected last, all, first-N, last-N, or the number of a layer from 0")
        return value

    @field_validator("long_text", "long_text_pair")
    @classmethod
    def _a_way(cls, value: str | None) -> str | None:
        if value is not None and value != "auto":
            try:
                check_way(value)
            except ConfigError:
                raise ValueError(f"expected one of {', '.join(WAYS)}, auto") from None
        return value

    @field_validator("freeze", mode="before")
    @classmethod
    def _part_or_layers(cls, value: object) -> object:
        if isinstance(value, int) and not isinstance(value, bool):
            value = str(value)
        if not isinstance(value, str) or not re.fullmatch("none|encoder|embeddings|[0-9]+", value):
            raise ValueError("expected none, encoder, embeddings, or a number of layers")
        return value


class TrainConfig(Section):
    """Optimisation, and the machine it runs on. None means: chosen from the data and the model, and said."""

    epochs: int | None = Field(
        None,
        ge=1,
        description="Passes over the training rows; by default more for small data.",
        json_schema_extra=flag("--epochs", group="Training"),
    )
    max_steps: int | None = Field(None, ge=1, description="Stop after this many optimizer steps.")
    batch_size: int | None = Field(
        None,
        ge=1,
        description="Examples per optimizer step.",
        json_schema_extra=flag("--batch-size", group="Training"),
    )
    lr: float | None = Field(
        None,
        gt=0,
        description="Peak learning rate of the encoder.",
        json_schema_extra=flag("--lr", group="Learning rates"),
    )
    head_lr: float | None = Field(
        None,
        gt=0,
        description="Peak learning rate of the head; by default ten times --lr if it is new, else --lr.",
        json_schema_extra=flag("--head-lr", group="Learning rates"),
    )
    layer_decay: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Each layer learns at this many times the rate of the layer above it; 1: all alike.",
        json_schema_extra=flag("--layer-decay", group="Learning rates"),
    )
    layer_decay_on: Literal["all", "encoder"] = Field(
        "all",
        description="all: --layer-decay goes on to the embeddings; encoder: they keep --lr, as in Sun et al. 2019.",
        json_schema_extra=flag("--layer-decay-on", group="Learning rates"),
    )
    unfreeze: float | Literal["none", "epoch"] = Field(
        "none",
        description="Gradual unfreezing from the top: a layer more each epoch, or evenly over this share of all steps.",
        json_schema_extra=flag("--unfreeze", group="Learning rates", metavar="none|epoch|SHARE"),
    )
    optimizer: Literal["adamw", "adam", "bert-adam"] = Field(
        "adamw",
        description="Optimizer; bert-adam: adamw without the correction of its moments, to reproduce old results only.",
        json_schema_extra=flag("--optimizer", group="Training"),
    )
    betas: tuple[Decay, Decay] = Field((0.9, 0.999), description="Decay of the first and second moments.")
    eps: float = Field(1e-8, gt=0, description="Added to the root of the second moment.")
    weight_decay: float = Field(
        0.01,
        ge=0,
        description="Decoupled weight decay (not of adam; not on biases and norms).",
        json_schema_extra=flag("--weight-decay", group="Regularisation"),
    )
    schedule: Literal["linear", "cosine", "constant", "slanted-triangular"] = Field(
        "linear",
        description="Learning rate after the warm-up; slanted-triangular: from and to 1/32 of the peak.",
        json_schema_extra=flag("--schedule", group="Learning rates"),
    )
    warmup: float = Field(
        0.1,
        ge=0,
        lt=1,
        description="Share of all steps that the warm-up takes.",
        json_schema_extra=flag("--warmup", group="Learning rates"),
    )
    clip: float | None = Field(1.0, gt=0, description="Largest gradient norm; null: no clipping.")
    loss: Literal["auto", "focal", "asymmetric", "distribution-balanced"] = Field(
        "auto",
        description="auto: cross-entropy or binary cross-entropy on logits; the last two are for any number of labels "
        "a row, some of them rare.",
        json_schema_extra=flag("--loss", group="Training"),
    )
    focal_gamma: float = Field(2.0, ge=0, description="Focusing parameter of the focal loss.")
    negative_gamma: float = Field(4.0, ge=0, description="Focusing parameter of absent labels in the asymmetric loss.")
    negative_margin: float = Field(
        0.05, ge=0, lt=1, description="Probability of an absent label from which the asymmetric loss begins."
    )
    class_weights: Literal["none", "balanced"] = Field(
        "none",
        description="balanced: classes weigh by 1/share (multi-label: positive weights).",
        json_schema_extra=flag("--class-weights", group="Training"),
    )
    label_smoothing: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Share of the target that is spread evenly, over all labels or over there and not there.",
        json_schema_extra=flag("--label-smoothing", group="Regularisation"),
    )
    r_drop: float = Field(
        0.0,
        ge=0,
        description="R-Drop: how much two passes with different dropout have to agree; 0: one pass.",
        json_schema_extra=flag("--r-drop", group="Regularisation", metavar="ALPHA"),
    )
    adversarial: Literal["none", "freelb"] = Field(
        "none",
        description="freelb: train on token embeddings that are moved so as to mislead the model.",
        json_schema_extra=flag("--adversarial", group="Regularisation"),
    )
    adversarial_steps: int = Field(3, ge=2, description="Passes of freelb; each but the first after an ascent.")
    adversarial_lr: float = Field(0.1, gt=0, description="Norm of an ascent of freelb, over all tokens of a row.")
    adversarial_norm: float = Field(0.3, gt=0, description="Largest norm of what freelb adds to a row.")
    adversarial_start: float = Field(0.1, ge=0, description="Size of what freelb adds at random before the first pass.")
    mixout: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Share of the encoder's weights that are those of the pretrained model, drawn anew at every step.",
        json_schema_extra=flag("--mixout", group="Regularisation", metavar="P"),
    )
    average: Literal["none", "ema", "swa"] = Field(
        "none",
        description="Weights that are measured and kept: a moving average (ema), or the mean of the last steps (swa).",
        json_schema_extra=flag("--average", group="Regularisation"),
    )
    ema_decay: float = Field(0.999, gt=0, lt=1, description="What is left of a step in ema one step later.")
    swa_start: float = Field(0.5, ge=0, lt=1, description="Share of all steps after which swa begins.")
    average_every: int = Field(10, ge=1, description="Steps from one look of ema or swa at the weights to the next.")
    label_prior: Literal["none", "balanced"] = Field(
        "none",
        description="balanced: log of the training label shares is added to the logits inside the loss.",
        json_schema_extra=flag("--label-prior", group="Training"),
    )
    metric: str = Field(
        "auto",
        description="What chooses the best epoch; auto: accuracy or micro_f1.",
        json_schema_extra=flag("--metric", group="Training"),
    )
    patience: int | None = Field(
        None,
        ge=1,
        description="Stop after this many evaluations without a better metric.",
        json_schema_extra=flag("--patience", group="Training"),
    )
    select_best: bool = Field(True, description="Keep the weights of the best evaluation; otherwise the last.")
    evals_per_epoch: int = Field(1, ge=1, description="Evaluations on the validation split per epoch.")
    evaluate_test: bool = Field(
        False, description="Also measure the test split after each epoch, for the curve only; it chooses nothing."
    )
    seed: int = Field(
        0,
        ge=0,
        lt=2**32,
        description="Seed of initialisation, order and dropout.",
        json_schema_extra=flag("--seed", group="Training"),
    )
    device: Literal["auto", "cpu", "cuda", "mps"] = Field(
        "auto", description="Where to compute.", json_schema_extra=flag("--device", group="Machine")
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="auto: bf16 where it is faster.", json_schema_extra=flag("--precision", group="Machine")
    )
    threads: int | None = Field(
        None,
        ge=1,
        description="CPU threads; by default all cores.",
        json_schema_extra=flag("--threads", group="Machine"),
    )
    token_budget: int | None = Field(
        None,
        ge=1,
        description="Tokens computed at once; forms micro-batches only.",
        json_schema_extra=flag("--token-budget", group="Machine"),
    )
    kernels: Literal["auto", "compiled", "torch"] = Field(
        "auto", description="compiled: bertune's own, for bf16 on a CPU; auto: these where they were built."
    )
    compile: Literal["auto", "yes", "no"] = Field("auto", description="torch.compile on cuda; auto: for long runs.")
    checkpoint_minutes: float = Field(
        5.0, ge=0, description="Time between checkpoints; saving changes nothing about the result."
    )
    checkpoint_steps: int | None = Field(None, ge=1, description="Steps between checkpoints, instead of minutes.")

    @field_validator("unfreeze", mode="before")
    @classmethod
    def _share_or_name(cls, value: object) -> object:
        if value in ("none", "epoch"):
            return value
        try:
            number = float(str(value))
        except ValueError:
            raise ValueError("expected none, epoch, or a share of all steps") from None
        if not 0 < number <= 1:
            raise ValueError("a share of all steps lies above 0 and ends with 1")
        return number


class DecideConfig(Section):
    """How logits become answers; what is open here is chosen on the validation rows, and kept with the model."""

    calibration: Literal["auto", "none"] = Field(
        "auto", description="auto: temperatures, and a bias a label, where they lower the log loss of other rows."
    )
    threshold: float | Literal["auto", "half", "global", "label"] = Field(
        "auto",
        description="Where a label of several begins: half, global (one for all), label (one each), or a probability; "
        "auto: the simplest of them that is clearly not worse out of fold.",
        json_schema_extra=flag("--threshold", group="Decision", metavar="auto|half|global|label|P"),
    )
    objective: Literal["auto", "micro_f1", "macro_f1", "sample_f1", "subset_accuracy", "hamming_loss"] = Field(
        "auto", description="What thresholds are chosen for; auto: --metric where it is one of these, else micro_f1."
    )
    precision: float | None = Field(
        None, gt=0, lt=1, description="Give a label only where it was right this often on the validation rows."
    )
    miss_cost: float = Field(1.0, gt=0, description="What a label that is missed costs, a false one costing 1.")
    min_labels: int = Field(0, ge=0, description="Labels that a row gets at least.")
    max_labels: int | None = Field(None, ge=1, description="Labels that a row gets at most.")
    coverage: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Also give sets of labels that hold the right one this often; half of the validation rows are kept "
        "for it.",
        json_schema_extra=flag("--coverage", group="Decision", metavar="P"),
    )
    accuracy: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Ask a person where answers are not right this often; half of the validation rows are kept for it.",
        json_schema_extra=flag("--accuracy", group="Decision", metavar="P"),
    )

    @field_validator("threshold", mode="before")
    @classmethod
    def _number_or_name(cls, value: object) -> object:
        if value in ("auto", "half", "global", "label"):
            return value
        try:
            number = float(str(value))
        except ValueError:
            raise ValueError("expected auto, half, global, label, or a probability") from None
        if not 0 < number < 1:
            raise ValueError("a threshold lies between 0 and 1")
        return number


class ReportConfig(Section):
    """What is measured beside the result."""

    baselines: bool = Field(
        True, description="Also measure TF-IDF with a linear model, and always the same answer, on the same rows."
    )
    slices: list[str] = Field(
        [],
        description="Column by whose values the rows are measured apart; length and truncation always are.",
        json_schema_extra=flag("--slice", group="Report", metavar="COLUMN"),
    )
    page: bool = Field(
        True, description="Draw run/report.html and its figures when training ends; bertune report does so later."
    )


class CacheConfig(Section):
    """Where encoded texts, downloads and converted models are kept. No result depends on it."""

    folder: str | None = Field(None, description="Cache folder; by default BERTUNE_CACHE, else the platform's place.")
    limit: str | None = Field(
        None, description="Most that the cache takes, such as 20GB; 0 switches it off. By default BERTUNE_CACHE_LIMIT."
    )

    @field_validator("limit", mode="before")
    @classmethod
    def _size(cls, value: object) -> object:
        if value is None:
            return None
        size_in_bytes(str(value))
        return str(value)


class Config(Section):
    """Everything a run depends on; `run/config.yaml` is one of these and reruns the run."""

    data: DataConfig = Field(default_factory=DataConfig)
    check: CheckConfig = Field(default_factory=CheckConfig)
    model: ModelConfig = Field(default_factory=ModelConfig)
    pretrain: PretrainConfig = Field(default_factory=PretrainConfig)
    train: TrainConfig = Field(default_factory=TrainConfig)
    decide: DecideConfig = Field(default_factory=DecideConfig)
    report: ReportConfig = Field(default_factory=ReportConfig)
    cache: CacheConfig = Field(default_factory=CacheConfig)

    @classmethod
    def load(cls, path: str | Path) -> Config:
        """Read a YAML file; errors are `ConfigError` with the file and the option."""
        return cls().updated(read_yaml(path), place=str(path))

    def updated(self, values: dict[str, Any], *, place: str = "options") -> Config:
        """A copy with nested `values` laid over it, validated; `place` is named in errors."""
        merged = self.model_dump()
        merge(merged, values, place)
        try:
            return Config.model_validate(merged)
        except ValidationError as error:
            raise ConfigError(sentence(error, place)) from None

    def record(self) -> dict[str, Any]:
        """The sections that a result depends on, as plain values."""
        return self.model_dump(mode="json", exclude={"cache"})

    def changes(self, other: Config) -> list[str]:
        """What a result of `other` would be made with differently: `train.lr (was 0.1, now 0.2)`."""
        before, now = self.record(), other.record()
        return [
            f"{section}.{name} (was {before[section][name]!r}, now {value!r})"
            for section, values in now.items() for name, value in values.items() if before[section][name] != value
        ]  # fmt: skip

    def to_yaml(self) -> str:
        import yaml

        return yaml.safe_dump(self.record(), sort_keys=False, allow_unicode=True)
