"""Techniques of training that this encoder does not allow, or that cannot go together: an error before any work."""

from __future__ import annotations

from pathlib import Path

from bertune.config import Config, ModelConfig, TrainConfig
from bertune.errors import ConfigError
from bertune.model.classifier import ClassifierModel
from bertune.model.encoder import EncoderConfig
from bertune.model.heads import chosen_layers, depth_read
from bertune.model.lowrank import is_adapter
from bertune.model.shared import is_shared
from bertune.training.features import first_trained_layer

# Options without an effect unless another one has some value; all of them stand in TrainConfig or ModelConfig.
NEEDS = {
    "train.layer_decay_on": ("train.layer_decay", "--layer-decay, for example --layer-decay 0.95"),
    "train.ema_decay": ("train.average=ema", "--average ema"),
    "train.swa_start": ("train.average=swa", "--average swa"),
    "train.average_every": ("train.average", "--average ema or swa"),
    "train.adversarial_steps": ("train.adversarial", "--adversarial freelb"),
    "train.adversarial_lr": ("train.adversarial", "--adversarial freelb"),
    "train.adversarial_norm": ("train.adversarial", "--adversarial freelb"),
    "train.adversarial_start": ("train.adversarial", "--adversarial freelb"),
    "model.lora_alpha": ("model.lora", "--lora RANK"),
    "model.lora_targets": ("model.lora", "--lora RANK"),
}
FLAGS = {
    "train.layer_decay": "--layer-decay", "train.unfreeze": "--unfreeze", "train.mixout": "--mixout",
    "train.adversarial": "--adversarial", "model.reinit_layers": "--reinit-layers", "model.lora": "--lora",
    "train.r_drop": "--r-drop", "train.average": "--average", "model.freeze": "--freeze",
    "train.weight_decay": "--weight-decay", "model.dropout": "--dropout",
}  # fmt: skip
# What cannot go together, and why.
PAIRS = (
    ("train.unfreeze", "model.freeze", "each says by itself what is trained"),
    ("model.lora", "model.freeze", "LoRA leaves the encoder's own weights as they are anyhow"),
    ("model.lora", "train.unfreeze", "LoRA leaves the encoder's own weights as they are"),
    ("model.lora", "train.mixout", "LoRA leaves the encoder's own weights as they are, so there is nothing to mix"),
    ("model.lora", "model.reinit_layers", "LoRA would leave the new weights as they were drawn"),
    ("model.lora", "model.train_positions", "LoRA leaves the position embeddings as they are anyhow"),
    ("model.freeze", "model.train_positions", "what is frozen has the position embeddings in it"),
    ("model.lora", "train.average", "the mean of products is not the product of means, which LoRA would save"),
    ("train.adversarial", "train.r_drop", "both take several passes a step, for reasons of their own"),
)


def changed(config: Config, key: str) -> bool:
    """Whether an option is not what it is by default; `key` may name the value that counts: train.average=ema."""
    key, _, wanted = key.partition("=")
    section, name = key.split(".")
    value = getattr(getattr(config, section), name)
    sections: dict[str, type[ModelConfig] | type[TrainConfig]] = {"model": ModelConfig, "train": TrainConfig}
    return bool(value == wanted if wanted else value != sections[section].model_fields[name].default)


def told(config: Config, key: str) -> str:
    """`--lora 8`"""
    section, name = key.split(".")
    value = getattr(getattr(config, section), name)
    shown = f"{value:g}" if isinstance(value, float) else ",".join(value) if isinstance(value, list) else value
    return f"{FLAGS.get(key, key)} {shown}"


def check_compatible(config: Config, encoder: EncoderConfig, *, shared: bool = False) -> None:
    """Raise ConfigError for techniques that contradict one another, or that this encoder has no use for.

    shared: other tasks have the encoder, too, and may read other layers; see `check_depth`.
    """
    for key, (needed, how) in NEEDS.items():
        if changed(config, key) and not changed(config, needed):
            raise ConfigError(f"{told(config, key)}: has no effect by itself. Pass {how} with it, or leave it out.")
    for one, other, why in PAIRS:
        if changed(config, one) and changed(config, other):
            raise ConfigError(
                f"{told(config, one)} and {told(config, other)}: {why}. Leave one of them out."
            )
    inside = ("train.layer_decay", "train.unfreeze", "train.mixout", "train.adversarial", "model.reinit_layers",
              "model.lora")  # fmt: skip
    for key in inside:
        if encoder.arch == "adapter" and changed(config, key):
            raise ConfigError(
                f"{told(config, key)}: an encoder outside the family is trained as a whole, without a look inside. "
                "Leave it out."
            )
    start = first_trained_layer(config.model.freeze, encoder.layers)
    read = chosen_layers(config.model.layers, encoder)
    if not shared:
        check_depth(config, encoder, depth_read(read, encoder.layers))
    if config.train.optimizer == "adam" and config.train.weight_decay and changed(config, "train.weight_decay"):
        raise ConfigError(
            f"{told(config, 'train.weight_decay')}: the plain Adam decays no weights. Pass --optimizer adamw, or leave "
            "it out."
        )
    if start and changed(config, "train.adversarial"):
        raise ConfigError(
            f"{told(config, 'train.adversarial')}: with --freeze {config.model.freeze} training starts above the "
            "embeddings, which it would move. Leave one of them out."
        )
    check_reinit(config, encoder, start)


def check_depth(config: Config, encoder: EncoderConfig, depth: int) -> None:
    """Raise ConfigError for what would change nothing where the head reads the lowest `depth` layers: as --layers says,
    or as the head of an earlier result does, which is known when it is loaded."""
    freeze, count = config.model.freeze, config.model.reinit_layers
    start = first_trained_layer(freeze, encoder.layers)
    for key in ("train.layer_decay", "train.mixout", *(() if config.pretrain.on else ("model.dropout",))):
        if start >= depth and changed(config, key):
            raise ConfigError(
                f"{told(config, key)}: no layer is trained with --freeze {freeze}. Leave one of them out."
            )
    # Unfrozen embeddings have a factor of their own, but in the paper's form.
    alone = start == depth - 1 and (freeze != "none" or config.train.layer_decay_on == "encoder")
    if alone and changed(config, "train.layer_decay"):
        raise ConfigError(
            f"{told(config, 'train.layer_decay')}: one layer is trained, the top one, and its rate is the full one. "
            "Leave it out."
        )
    if count and depth <= encoder.layers - count:
        raise ConfigError(
            f"--reinit-layers {count}: the head reads {depth} of {encoder.layers} layers, and none of the {count} top "
            "ones. Leave it out, or read others with --layers."
        )


def check_reinit(config: Config, encoder: EncoderConfig, start: int) -> None:
    """Raise ConfigError where new weights would be more than the encoder has, or would never be trained."""
    count = config.model.reinit_layers
    if count > encoder.layers:
        raise ConfigError(f"--reinit-layers {count}: this encoder has {encoder.layers} layers. Pass so many or less.")
    if count and start > encoder.layers - count:
        raise ConfigError(
            f"--reinit-layers {count}: --freeze {config.model.freeze} would leave new weights as they were drawn. "
            "Leave one of them out."
        )


def check_base(config: Config, folder: Path) -> None:
    """Raise ConfigError where LoRA would stand beside matrices that stand beside others, or beside weights that this
    run makes; `folder`: the encoder."""
    if config.model.lora and config.pretrain.on:
        raise ConfigError(
            f"--lora {config.model.lora} and --pretrain-on: LoRA keeps what stands beside another model, which has to "
            "be there later. Run bertune pretrain first, then train with --model and --lora."
        )
    if config.model.lora and is_adapter(folder):
        raise ConfigError(
            f"--lora {config.model.lora}: {folder} was itself trained with LoRA, beside another model. Merge it first: "
            f"bertune convert {folder} OUT, and pass --model OUT."
        )
    if config.model.lora and is_shared(folder):
        raise ConfigError(
            f"--lora {config.model.lora}: {folder} is a task of bertune multitask, whose encoder lies beside it. Make "
            f"a model of its own: bertune convert {folder} OUT, and pass --model OUT."
        )


def check_dropout(config: Config, model: ClassifierModel) -> None:
    """Raise ConfigError for R-Drop where two passes could not differ."""
    encoder, start = model.encoder.config, first_trained_layer(config.model.freeze, model.encoder.config.layers)
    frozen = start >= model.depth  # layers that are not trained drop nothing, see `loop.Course`
    inside = [encoder.attention_dropout, encoder.ffn_dropout, 0.0 if start else encoder.embedding_dropout or 0.0]
    if encoder.arch != "modernbert":
        inside.append(encoder.dropout)
    if config.train.r_drop and not model.head.config.dropout and (frozen or not any(inside)):
        raise ConfigError(
            f"--r-drop {config.train.r_drop:g}: compares two passes with different dropout, and what is trained here "
            "has none. Pass --dropout, for example --dropout 0.1, or leave it out."
        )
