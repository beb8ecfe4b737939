"""The section of the configuration about the optimisation, and the machine it runs on; see config.py."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from bertune.sections import Section, flag

Decay = Annotated[float, Field(ge=0, lt=1)]


class TrainConfig(Section):
    """Optimisation, and the machine it runs on. None means: chosen from the data and the model, and said."""

    epochs: int | None = Field(
        None,
        ge=1,
        description="Passes over the training rows; by default more for small data.",
        json_schema_extra=flag("--epochs", group="Training", more="train.max_steps"),
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
        json_schema_extra=flag("--optimizer", group="Training", more="train.betas, train.eps, train.clip"),
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
        json_schema_extra=flag(
            "--loss", group="Training", more="train.focal_gamma, train.negative_gamma, train.negative_margin"
        ),
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
        json_schema_extra=flag(
            "--adversarial", group="Regularisation",
            more="train.adversarial_steps, train.adversarial_lr, train.adversarial_norm, train.adversarial_start",
        ),
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
        json_schema_extra=flag(
            "--average", group="Regularisation", more="train.ema_decay, train.swa_start, train.average_every"
        ),
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
        json_schema_extra=flag(
            "--patience", group="Training", more="train.select_best, train.evals_per_epoch, train.evaluate_test"
        ),
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
        "auto",
        description="Where to compute.",
        json_schema_extra=flag(
            "--device", group="Machine",
            more="train.kernels, train.compile, train.checkpoint_minutes, train.checkpoint_steps",
        ),
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="auto: bf16 where it is faster.", json_schema_extra=flag("--precision", group="Machine")
    )
    measure_precision: Literal["auto", "fp32", "bf16"] = Field(
        "fp32",
        description="Of the last measuring, which decisions are made by; fp32, as predictions have it, or as above.",
        json_schema_extra=flag("--measure-precision", group="Machine"),
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
