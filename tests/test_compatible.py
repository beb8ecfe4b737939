"""Techniques that cannot go together, or that would do nothing, are refused before anything is written."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from bertune.config import TrainConfig
from bertune.errors import ConfigError
from bertune.training.compatible import FLAGS, NEEDS, PAIRS, changed
from shell import call
from technique_runs import train
from tiny_runs import multi_rows

pytestmark = pytest.mark.usefixtures("one_thread", "no_pictures")

REFUSED = [
    ({"train__unfreeze": "epoch", "model__freeze": "1"},
     "--unfreeze epoch and --freeze 1: each says by itself what is trained. Leave one of them out."),
    ({"model__lora": 4, "model__freeze": "embeddings"},
     "--lora 4 and --freeze embeddings: LoRA leaves the encoder's own weights as they are anyhow. Leave one of them "
     "out."),
    ({"model__lora": 4, "train__unfreeze": 0.5},
     "--lora 4 and --unfreeze 0.5: LoRA leaves the encoder's own weights as they are. Leave one of them out."),
    ({"model__lora": 4, "train__mixout": 0.5},
     "--lora 4 and --mixout 0.5: LoRA leaves the encoder's own weights as they are, so there is nothing to mix. Leave "
     "one of them out."),
    ({"model__lora": 4, "model__reinit_layers": 1},
     "--lora 4 and --reinit-layers 1: LoRA would leave the new weights as they were drawn. Leave one of them out."),
    ({"model__lora": 4, "train__average": "ema"},
     "--lora 4 and --average ema: the mean of products is not the product of means, which LoRA would save. Leave one "
     "of them out."),
    ({"train__adversarial": "freelb", "train__r_drop": 1.0},
     "--adversarial freelb and --r-drop 1: both take several passes a step, for reasons of their own. Leave one of "
     "them out."),
    ({"train__adversarial": "freelb", "model__freeze": "1"},
     "--adversarial freelb: with --freeze 1 training starts above the embeddings, which it would move. Leave one of "
     "them out."),
    ({"train__layer_decay": 0.9, "model__freeze": "encoder"},
     "--layer-decay 0.9: no layer is trained with --freeze encoder. Leave one of them out."),
    ({"train__mixout": 0.9, "model__freeze": "2"},
     "--mixout 0.9: no layer is trained with --freeze 2. Leave one of them out."),
    ({"train__mixout": 0.9, "model__freeze": "1", "model__layers": "0"},
     "--mixout 0.9: no layer is trained with --freeze 1. Leave one of them out."),
    ({"model__dropout": 0.3, "model__freeze": "encoder"},
     "--dropout 0.3: no layer is trained with --freeze encoder. Leave one of them out."),
    ({"train__weight_decay": 0.5, "train__optimizer": "adam"},
     "--weight-decay 0.5: the plain Adam decays no weights. Pass --optimizer adamw, or leave it out."),
    ({"model__reinit_layers": 3},
     "--reinit-layers 3: this encoder has 2 layers. Pass so many or less."),
    ({"model__reinit_layers": 2, "model__freeze": "1"},
     "--reinit-layers 2: --freeze 1 would leave new weights as they were drawn. Leave one of them out."),
    ({"model__reinit_layers": 1, "model__layers": "0"},
     "--reinit-layers 1: the head reads 1 of 2 layers, and none of the 1 top ones. Leave it out, or read others with "
     "--layers."),
    ({"model__train_positions": False, "model__lora": 2},
     "--lora 2 and model.train_positions False: LoRA leaves the position embeddings as they are anyhow. Leave one of "
     "them out."),
    ({"model__train_positions": False, "model__freeze": "embeddings"},
     "--freeze embeddings and model.train_positions False: what is frozen has the position embeddings in it. Leave one "
     "of them out."),
    ({"train__layer_decay": 0.5, "model__freeze": "1"},
     "--layer-decay 0.5: one layer is trained, the top one, and its rate is the full one. Leave it out."),
    ({"train__layer_decay": 0.5, "model__layers": "0", "model__freeze": "embeddings"},
     "--layer-decay 0.5: one layer is trained, the top one, and its rate is the full one. Leave it out."),
    ({"train__layer_decay": 0.5, "train__layer_decay_on": "encoder", "model__layers": "0"},
     "--layer-decay 0.5: one layer is trained, the top one, and its rate is the full one. Leave it out."),
    ({"model__lora": 4, "pretrain__on": ["train"]},
     "--lora 4 and --pretrain-on: LoRA keeps what stands beside another model, which has to be there later. Run "
     "bertune pretrain first, then train with --model and --lora."),
    ({"train__layer_decay_on": "encoder"},
     "train.layer_decay_on encoder: has no effect by itself. Pass --layer-decay, for example --layer-decay 0.95 with "
     "it, or leave it out."),
    ({"train__average": "swa", "train__ema_decay": 0.9},
     "train.ema_decay 0.9: has no effect by itself. Pass --average ema with it, or leave it out."),
    ({"model__lora_targets": ["query", "up"]},
     "model.lora_targets query,up: has no effect by itself. Pass --lora RANK with it, or leave it out."),
    ({"train__adversarial_steps": 2},
     "train.adversarial_steps 2: has no effect by itself. Pass --adversarial freelb with it, or leave it out."),
]  # fmt: skip


@pytest.mark.parametrize(("settings", "message"), REFUSED, ids=[" ".join(case[0]) for case in REFUSED])
def test_what_cannot_go_together_is_refused_before_the_output_is_touched(
    tmp_path: Path, tiny_bert: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        train(tmp_path / "out", tiny_bert, **settings)

    assert str(caught.value) == message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("settings", "message"), [
    ({"model__reinit_layers": 1}, "the head reads 1 of 2 layers"),
    ({"train__mixout": 0.5, "model__freeze": "1"}, "no layer is trained with --freeze 1"),
    ({"train__layer_decay": 0.5, "train__layer_decay_on": "encoder"}, "one layer is trained"),
])  # fmt: skip
def test_the_layers_that_an_earlier_head_reads_count_too(
    tmp_path: Path, tiny_bert: Path, settings: dict[str, Any], message: str
) -> None:
    earlier = train(tmp_path / "earlier", tiny_bert, model__layers="0").out
    with pytest.raises(ConfigError, match=message):
        train(tmp_path / "out", earlier, **settings)

    assert not (tmp_path / "out").exists()


def test_every_rule_has_its_case() -> None:
    def key(name: str) -> str:
        return name.replace("__", ".")

    given = [{key(name) for name in settings} for settings, _ in REFUSED]
    assert all(any({one, other} <= case for case in given) for one, other, _ in PAIRS)
    assert {need.partition("=")[0] for need, _ in NEEDS.values()} <= {*FLAGS}


def test_the_ends_of_what_is_allowed_are_allowed(tmp_path: Path, tiny_bert: Path) -> None:
    allowed: dict[str, dict[str, Any]] = {
        "a": {"model__reinit_layers": 1, "model__freeze": "1"},
        "b": {"train__layer_decay": 0.9, "train__mixout": 0.1, "model__freeze": "embeddings"},
        "e": {"train__layer_decay": 0.9, "model__layers": "0"},
        "c": {"train__adversarial": "freelb", "model__freeze": "embeddings"},
        "d": {"model__lora": 2, "train__layer_decay": 0.9, "train__r_drop": 1.0},
    }
    for name, settings in allowed.items():
        result = train(tmp_path / name, tiny_bert, train__max_steps=2, **settings)
        used = yaml.safe_load((result.out / "run/config.yaml").read_text(encoding="utf-8"))

        for key, value in settings.items():
            section, _, option = key.partition("__")
            assert used[section][option] == value
        assert result.metrics["train"]["steps"] == 2


def test_many_techniques_go_together(tmp_path: Path, tiny_bert: Path) -> None:
    result = train(
        tmp_path / "out", tiny_bert, rows=multi_rows(60), train__layer_decay=0.9, train__unfreeze=0.5,
        train__mixout=0.3, train__average="ema", train__r_drop=1.0, train__label_smoothing=0.1,
        model__reinit_layers=1, train__schedule="slanted-triangular", train__optimizer="bert-adam",
        train__precision="bf16",
    )  # fmt: skip
    card = (result.out / "README.md").read_text(encoding="utf-8")

    for told in ("layer-wise decay", "gradual unfreezing", "new top layers", "mixout", "weights averaged", "R-Drop"):
        assert told in card, told


@pytest.mark.parametrize(("value", "message"), [
    ("often", "expected none, epoch, or a share of all steps"), ("0", "a share of all steps lies above 0"),
    ("1.5", "a share of all steps lies above 0"),
])  # fmt: skip
def test_what_unfreezing_takes_is_said(tmp_path: Path, tiny_bert: Path, value: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        train(tmp_path / "out", tiny_bert, train__unfreeze=value)


def test_the_options_stand_in_the_help_under_their_groups() -> None:
    shown = call("train", "--help").out
    groups = {
        "Learning rates": ("--lr", "--head-lr", "--layer-decay", "--layer-decay-on", "--unfreeze", "--schedule",
                           "--warmup"),
        "Regularisation": ("--reinit-layers", "--lora", "--weight-decay", "--label-smoothing", "--r-drop",
                           "--adversarial", "--mixout", "--average"),
    }  # fmt: skip
    for group, flags in groups.items():
        panel = shown.partition(f"─ {group} ─")[2].partition("╰")[0]
        for flag in flags:
            assert f"{flag} " in panel, (group, flag)


def test_every_option_of_a_training_is_in_its_help() -> None:
    from bertune.commands.options import SECTIONS
    from bertune.training.pretrain import _STAGE_ONLY

    shown = re.sub(r"[\s│]+", "", call("train", "--help").out)
    for section in ("model", "train", "pretrain"):
        for name, field in SECTIONS[section].model_fields.items():
            declared: Any = field.json_schema_extra or {}
            own = declared.get("flag") if declared.get("command") is None else None
            if section != "pretrain" or name not in _STAGE_ONLY:
                assert (own or f"{section}.{name}") in shown, name


def test_every_option_of_these_groups_is_in_the_document_of_techniques() -> None:
    from bertune.commands.options import flags_of

    text = (Path(__file__).parents[1] / "docs" / "techniques.md").read_text(encoding="utf-8")
    groups = ("Layers", "Long texts", "Learning rates", "Regularisation", "Pre-training")
    flags = [flag for flag in flags_of() if flag.declared["group"] in groups or flag.name == "--freeze"]
    keys = {flag.key for flag in flags}
    names = [flag.name for flag in flags] + [key for key in NEEDS if key not in keys] + ["bert-adam", "bertune lr"]
    assert len(flags) > 20
    assert [name for name in names if name not in text] == []


def test_nothing_is_switched_on_by_itself() -> None:
    config = TrainConfig()

    assert (config.layer_decay, config.unfreeze, config.r_drop, config.mixout) == (1.0, "none", 0.0, 0.0)
    assert (config.average, config.adversarial, config.label_smoothing) == ("none", "none", 0.0)
    from bertune.config import Config

    assert not any(changed(Config(), key) for key in FLAGS)
