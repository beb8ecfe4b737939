"""Options come from config.py alone; a file, --set and flags overrule each other in this order."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import bertune
from bertune.commands.evaluate import KEYS, Evaluate
from bertune.commands.opening import DEFAULTS
from bertune.commands.options import configured, flags_of
from bertune.commands.train import Train
from bertune.config import Config
from bertune.errors import ConfigError
from bertune.settings import read_yaml


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    path = tmp_path / "recipe.yaml"
    path.write_text("data: {encoding: latin-1}\ntrain: {lr: 0.1, epochs: 1, clip: null}\n", encoding="utf-8")
    return str(path)


def silent(text: str) -> None:
    raise AssertionError(f"nothing was to be said: {text}")


def test_flags_overrule_settings_and_settings_the_file(recipe: str) -> None:
    command = Train(config=recipe, settings=["train.epochs=2", "train.lr=0.2", "train.seed=5"])
    command.train_lr = "3e-1"  # type: ignore[attr-defined]
    train = configured(command, Config(), say=silent).train
    assert (train.lr, train.epochs, train.seed, train.clip) == (0.3, 2, 5, None)


def test_a_path_from_python_is_its_text() -> None:
    data = Config().updated({"data": {"plan": Path("plan.yaml"), "files": [Path("a.csv"), "b.csv"], "valid": 0.1}}).data
    assert (data.plan, data.files, data.valid) == ("plan.yaml", ["a.csv", "b.csv"], 0.1)


def test_later_settings_overrule_earlier_ones() -> None:
    command = Train(settings=["train.seed=1", "train.seed=2", "data.text=[a, b]"])
    config = configured(command, Config(), say=silent)
    assert (config.train.seed, config.data.text) == (2, ["a", "b"])


def test_a_list_is_repeated_or_comes_between_commas() -> None:
    command = Train()
    command.data_text = ["a,b", "c"]  # type: ignore[attr-defined]
    command.data_labels = 'yes, no,"maybe, maybe not"'  # type: ignore[attr-defined]
    data = configured(command, Config(), say=silent).data
    assert data.text == ["a,b", "c"]
    assert data.labels == ["yes", "no", "maybe, maybe not"]


def test_a_list_may_be_one_value_and_hold_numbers() -> None:
    settings = ["data.text=TITLE", "data.labels=a,b,c", "data.label=[2020, 2021]", "data.drop_label=-"]
    data = configured(Train(settings=settings), Config(), say=silent).data
    assert (data.text, data.labels, data.label) == (["TITLE"], ["a", "b", "c"], ["2020", "2021"])
    assert data.drop_label == ["-"]
    assert configured(Train(settings=[*settings, "data.text="]), Config(), say=silent).data.text == []
    with pytest.raises(ConfigError, match=r"'data\.labels' cannot be \[True, False\]: unquoted yes, no"):
        configured(Train(settings=["data.labels=[yes, no]"]), Config(), say=silent)


@pytest.mark.parametrize(("written", "meant"), [("no", "no"), ("yes", "yes"), ("'no'", "no"), ("auto", "auto")])
def test_yes_and_no_may_stand_without_quotes_where_they_are_choices(written: str, meant: str, tmp_path: Path) -> None:
    config = configured(Train(settings=[f"train.compile={written}", f"data.header={written}"]), Config(), say=silent)
    assert (config.train.compile, config.data.header) == (meant, meant)
    with pytest.raises(ConfigError, match=r"'train\.kernels' cannot be False"):
        configured(Train(settings=["train.kernels=no"]), Config(), say=silent)


@pytest.mark.parametrize("mark", ["|", "-", ";", ",", "#", ">", "?", ":", "/"])
def test_a_mark_that_means_something_to_yaml_is_itself(mark: str) -> None:
    assert configured(Train(settings=[f"data.label_sep={mark}"]), Config(), say=silent).data.label_sep == mark


@pytest.mark.parametrize("name", ["2024-13-01", "2024-02-30", "2024-12-01"])
def test_a_name_that_looks_like_a_date_is_itself(name: str) -> None:
    assert configured(Train(settings=[f"data.group={name}"]), Config(), say=silent).data.group == name


def test_a_file_with_a_date_that_is_none_is_not_readable(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("model: {revision: 2024-02-30}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=re.escape(f"{path}: not readable as YAML: day is out of range")):
        Config.load(path)


def test_a_name_that_stands_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("train: {lr: 0.1}\nmodel: {name: bert}\ntrain: {epochs: 2}\n", encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        Config.load(path)
    assert str(caught.value) == (
        f"{path} line 3: 'train' stands there twice, first in line 1; make one of the two, or rename one."
    )
    path.write_text("rows: [{a: 1,\n a: 2}]", encoding="utf-8")
    with pytest.raises(ConfigError, match="line 2: 'a' stands there twice"):
        read_yaml(path)
    path.write_text("rows: {yes: 1, 'yes': 2,\n true: 3}", encoding="utf-8")
    with pytest.raises(ConfigError, match="line 2: 'true' stands there twice, first in line 1"):
        read_yaml(path)
    with pytest.raises(ConfigError, match="--set train line 1: 'lr' stands there twice"):
        configured(Train(settings=["train={lr: 1, lr: 2}"]), Config(), say=silent)


def test_a_name_overrules_what_is_merged_and_an_anchor_may_be_used_again(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("a: &a {x: 1, y: 2}\nb: {<<: *a, x: 3}\nc: *a\nd: [{x: 1}, {x: 2}]\n", encoding="utf-8")
    both = {"x": 1, "y": 2}
    assert read_yaml(path) == {"a": both, "b": {"x": 3, "y": 2}, "c": both, "d": [{"x": 1}, {"x": 2}]}


@pytest.mark.parametrize(("text", "said"), [
    ("tasks: &t {a: {data: *t}}", " line 1: what & names here holds itself, as an *; write out what is meant."),
    ("train: &t\n  <<: *t", " line 1: what & names here holds itself, as an *; write out what is meant."),
    ("[" * 3000, ": brackets or levels are nested too deeply to be read; take some away."),
])  # fmt: skip
def test_a_file_without_an_end_or_a_bottom_is_refused(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "tasks.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        read_yaml(path)
    assert str(caught.value) == f"{path}{said}"


def test_a_setting_of_thousands_of_brackets_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^--set train\.lr: brackets or levels are nested too deeply"):
        configured(Train(settings=["train.lr=" + "[" * 2500]), Config(), say=silent)


@pytest.mark.parametrize("name", ["data.label_names", "data.files", "data.labels", "cache.folder", "model.name"])
def test_no_option_takes_a_nul(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        configured(Train(settings=[f'{name}="a\\0b"']), Config(), say=silent)
    assert str(caught.value) == (
        f"--set {name}=\"a\\0b\": '{name}' cannot be 'a\\x00b': a NUL character is in it, which no option takes; "
        "write it without."
    )
    with pytest.raises(ConfigError, match=r"'data\.files' cannot be .*: a NUL"):
        Config().updated({"data": {"files": ["a.csv", Path("a\0b")]}})


def test_a_split_is_a_fraction_or_a_file() -> None:
    command = Train()
    command.data_valid, command.data_test = "0.2", "dev.tsv"  # type: ignore[attr-defined]
    data = configured(command, Config(), say=silent).data
    assert (data.valid, data.test) == (0.2, "dev.tsv")


def test_of_a_shared_file_a_command_takes_what_concerns_it(recipe: str) -> None:
    said: list[str] = []
    config = configured(Evaluate(folder="m", files=["f"], config=recipe), DEFAULTS, keys=KEYS, say=said.append)
    assert config.data.encoding == "latin-1"
    assert config.train.lr is None
    assert said == [f"{recipe}: train.lr, train.epochs, train.clip: no effect here."]


def test_a_file_is_checked_whole(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("train: {epochs: none}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=re.escape(f"{path}: 'train.epochs' cannot be 'none'")):
        configured(Evaluate(folder="m", files=["f"], config=str(path)), DEFAULTS, keys=KEYS, say=silent)


def test_a_setting_must_be_able_to_matter() -> None:
    with pytest.raises(ConfigError, match=r"--set train\.lr=1: has no effect here; what has is "):
        configured(Evaluate(folder="m", files=["f"], settings=["train.lr=1"]), DEFAULTS, keys=KEYS, say=silent)


def test_every_flag_is_declared_once_and_reaches_its_field() -> None:
    flags = flags_of()
    assert len({flag.name for flag in flags}) == len(flags)
    for flag in flags:
        assert flag.name.startswith("--") and flag.metavar and flag.help(None).endswith(".")
        assert hasattr(Train(), flag.attribute)


@pytest.mark.parametrize("settings", [["train.lr=1"], "train.lr=1", {1: 1}])
def test_settings_from_python_are_options_by_name(settings: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="settings: expected options by their dotted names"):
        bertune.train("rows.csv", out=tmp_path / "run", settings=settings)
