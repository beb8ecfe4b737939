"""The recipes that the project ships."""

from __future__ import annotations

from pathlib import Path

import pytest

from bertune.config import Config
from bertune.hub import PRESETS

FOLDER = Path(__file__).resolve().parents[1] / "recipes"
TASKS = FOLDER / "multi-task.yaml"  # of a form of its own
RECIPES = sorted(path for path in FOLDER.glob("*.yaml") if path != TASKS)


def _load(name: str) -> Config:
    return Config.load(FOLDER / f"{name}.yaml")


def test_there_is_one_for_each_system() -> None:
    assert {path.stem for path in RECIPES} >= {"papers-bert", "snli-d2l-small", "snli-d2l-base", "snli-mini"}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_is_a_valid_configuration(path: Path) -> None:
    config = Config.load(path)
    assert config.model.name in PRESETS
    assert not config.data.files, "the data is named on the command line"


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_says_how_to_run_it(path: Path) -> None:
    comments = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    command = "pretrain" if path.stem == "from-scratch" else "train"
    assert any(f"bertune {command} --config recipes/{path.name} " in line for line in comments)


def test_from_scratch_makes_a_bert_of_the_mini_shape() -> None:
    options = _load("from-scratch").pretrain
    assert (options.from_scratch, options.objective, options.vocab_size) == ("mini", "both", 8000)


def test_from_scratch_runs_over_the_books_and_is_fine_tuned(
    shared_data: Path, tmp_path: Path, one_thread: None
) -> None:
    """The recipe on the first pages of the books, with a narrower encoder and few steps."""
    import gzip
    import itertools

    import transformers

    import bertune
    from bertune.training.pretrain import pretrain
    from tiny_runs import QUICK, topic_rows

    with gzip.open(shared_data / "books" / "books.txt.gz", "rt", encoding="utf-8") as stream:
        (tmp_path / "books.txt").write_text("".join(itertools.islice(stream, 2500)), encoding="utf-8")
    small = {"vocab_size": 500, "hidden": 32, "ffn": 64, "max_steps": 6, "tokens": 1024, "held_out": 0.05}
    config = _load("from-scratch").updated({
        "data": {"files": [str(tmp_path / "books.txt")]}, "pretrain": small, "train": {"threads": 1},
    })  # fmt: skip
    done = pretrain(config, out=tmp_path / "encoder")
    assert done.metrics["corpus"]["documents"] > 10
    assert type(transformers.AutoModelForPreTraining.from_pretrained(done.out)).__name__ == "BertForPreTraining"
    result = bertune.train(topic_rows(60), out=tmp_path / "result", model=done.out, settings=QUICK)
    assert "accuracy" in result.metrics["test"]


def test_the_recipe_for_several_tasks_says_how_to_run_it_and_trains_them(
    shared_data: Path, tiny_bert: Path, tmp_path: Path, one_thread: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The recipe on some rows of each file, with a tiny encoder and few steps."""
    import yaml

    import bertune

    text = TASKS.read_text(encoding="utf-8")
    assert "#   bertune multitask ../recipes/multi-task.yaml --out " in text
    values = yaml.safe_load(text)
    assert values["model"]["name"] in PRESETS
    values["model"] = {"name": str(tiny_bert)}
    values["train"] = {"max_steps": 12, "batch_size": 8, "threads": 1}
    values |= {"check": {"enabled": False}, "report": {"baselines": False}}
    for name, task in values["tasks"].items():
        task["model"]["max_length"] = 48
        task["data"]["share"] = 0.01
        if name != "trec":  # their test files are long
            task["data"]["test"] = 0.001 if name == "imdb" else 0.02
            task["data"]["valid"] = task["data"]["test"]
    monkeypatch.chdir(shared_data)
    result = bertune.multitask(values, out=tmp_path / "out")
    assert set(result.metrics["tasks"]) == {"imdb", "trec", "ag_news"} == set(result.metrics["alone"])
    tasks = {name: bertune.load(tmp_path / "out" / "tasks" / name, threads=1).task for name in result.tasks}
    assert [task.num_labels for task in tasks.values()] == [2, 6, 4]


def test_system_a_is_the_published_head_on_bert() -> None:
    model = _load("papers-bert").model
    assert (model.name, model.pooling, model.head) == ("bert", "cls", "mlp")
    assert (model.head_hidden, model.head_dropout) == (50, 0.3)


@pytest.mark.parametrize("name", ["snli-d2l-small", "snli-d2l-base"])
def test_system_b_is_trained_as_the_book_does(name: str) -> None:
    config = _load(name)
    train = config.train
    assert (train.optimizer, train.lr, train.schedule, train.warmup) == ("adam", 1e-4, "constant", 0)
    assert (train.clip, train.weight_decay, train.epochs, train.batch_size) == (None, 0, 5, 512)
    assert (config.model.max_length, config.model.dropout) == (128, None)
    assert not config.model.train_positions
    assert config.data.labels == ["entailment", "contradiction", "neutral"]
    assert train.evaluate_test and not train.select_best
