"""A whole run: the same seed gives the same bytes, data is split as said, and what goes wrong loses nothing."""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from torch import Tensor

import bertune
from bertune.errors import BertuneError, ConfigError, DataError, ModelError, TrainingError
from bertune.model.losses import Loss
from bertune.training import checkpoint
from bertune.training.run import Result
from tiny_runs import QUICK, Told, make_tiny_bert, multi_rows, topic_rows

pytestmark = pytest.mark.usefixtures("one_thread", "no_pictures")

ROWS = topic_rows(100)
Train = Callable[..., Result]


@pytest.fixture
def train(tmp_path: Path, tiny_bert: Path) -> Train:
    """`bertune.train` with quick settings; `out` is a name."""

    def run(data: Any = None, *, out: str = "out", settings: dict[str, Any] | None = None, **named: Any) -> Result:
        named = {"model": tiny_bert} | named
        return bertune.train(
            ROWS if data is None else data, out=tmp_path / out, settings=QUICK | (settings or {}), **named
        )

    return run


def weights(result: Result) -> bytes:
    return (result.out / "model.safetensors").read_bytes()


class TestSeeds:
    def test_the_same_seed_gives_the_same_bytes_and_another_one_others(self, train: Train) -> None:
        first, again, other = (train(out=str(place), seed=seed) for place, seed in enumerate((3, 3, 4)))

        assert weights(first) == weights(again) != weights(other)
        assert (first.out / "run/history.jsonl").read_bytes() == (again.out / "run/history.jsonl").read_bytes()
        assert (first.out / "run/splits.csv").read_bytes() == (other.out / "run/splits.csv").read_bytes()

    @pytest.mark.parametrize(("settings", "said"), [
        ({"data.share_seed": 2}, "data.share_seed 2: draws the rows of data.share, and that takes all"),
        ({"data.split_seed": 2, "data.hold_out": False}, "--split-seed 2: no rows are drawn for a split here"),
    ])  # fmt: skip
    def test_a_seed_that_draws_nothing_is_an_error(self, train: Train, settings: dict[str, Any], said: str) -> None:
        with pytest.raises(ConfigError, match=said):
            train(settings=settings)

    def test_a_seed_of_the_split_halves_validation_rows_that_promise(self, tmp_path: Path, train: Train) -> None:
        pd.DataFrame(topic_rows(40, seed=1)).to_csv(tmp_path / "valid.csv", index=False)
        given = {"data.valid": str(tmp_path / "valid.csv"), "train.max_steps": 1}
        halves = [
            (train(out=str(seed), settings={**given, "decide.coverage": 0.5, "data.split_seed": seed}).out
             / "run/splits.csv").read_bytes() for seed in (1, 2)
        ]  # fmt: skip

        assert halves[0] != halves[1]
        with pytest.raises(ConfigError, match="--split-seed 1: no rows are drawn"):
            train(out="plain", settings={**given, "data.split_seed": 1})

    def test_the_split_has_a_seed_of_its_own(self, train: Train) -> None:
        first, other = (
            train(out=str(seed), settings={"data.split_seed": seed, "train.max_steps": 1}) for seed in (0, 1)
        )

        assert (first.out / "run/splits.csv").read_bytes() != (other.out / "run/splits.csv").read_bytes()

    def test_cached_tokens_change_nothing(
        self, train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("BERTUNE_CACHE", str(tmp_path / "cache"))
        missed = train(out="missed")
        assert list((tmp_path / "cache").rglob("meta.json"))
        found = train(out="found")
        monkeypatch.setenv("BERTUNE_CACHE_LIMIT", "0")
        without = train(out="without")

        assert weights(missed) == weights(found) == weights(without)

    def test_how_often_checkpoints_are_written_changes_nothing(
        self, train: Train, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        written: list[int] = []
        usual = checkpoint.save
        monkeypatch.setattr(checkpoint, "save", lambda folder, each: written.append(each.step) or usual(folder, each))
        rare = train(out="rare", settings={"train.checkpoint_minutes": 60.0})
        assert written == []
        often = train(out="often", settings={"train.checkpoint_steps": 1})

        assert written == list(range(1, 21))
        assert weights(rare) == weights(often)

    def test_measuring_in_bf16_changes_what_is_measured_and_not_the_model(self, train: Train) -> None:
        plain, other = (
            train(out=how, settings={"train.measure_precision": how, "train.precision": "fp32"})
            for how in ("fp32", "bf16")
        )
        found = {}
        for result in (plain, other):
            table = pl.read_parquet(result.out / "run/predictions-test.parquet")
            logits = table.select(name for name in table.columns if name.startswith("logit:")).to_numpy()
            how = result.metrics["measured_in"]
            split = pl.read_csv(result.out / "run/splits.csv").filter(split="test")["row"].to_list()
            again = bertune.load(result.out, precision=how).logits([ROWS[row - 1] for row in split])
            np.testing.assert_array_equal(logits, again)
            found[how] = logits

        assert weights(plain) == weights(other)
        assert 0 < np.abs(found["fp32"] - found["bf16"]).max() < 0.05

    def test_random_numbers_drawn_elsewhere_change_nothing(self, train: Train) -> None:
        torch.manual_seed(1)
        first = train(out="first")
        torch.manual_seed(2)
        torch.rand(100)

        assert weights(first) == weights(train(out="other"))


class TestSplits:
    def test_without_valid_and_test_a_tenth_is_held_out_for_each(self, train: Train) -> None:
        told = Told()
        result = train(listener=told, settings={"train.max_steps": 1})

        assert "Splits: 80 train, 10 valid, 10 test rows (80/10/10 of the rows, stratified, split seed 0)." in told.said
        assert [result.metrics[name]["rows"] for name in ("train", "valid", "test")] == [80, 10, 10]

    def test_a_validation_file_alone_leaves_all_rows_to_train_and_no_test_split(
        self, train: Train, tmp_path: Path
    ) -> None:
        pl.DataFrame(topic_rows(20, seed=1)).write_csv(tmp_path / "valid.csv")
        result = train(valid=str(tmp_path / "valid.csv"), settings={"train.max_steps": 1})

        assert result.metrics["train"]["rows"] == 100
        assert result.metrics["valid"]["rows"] == 20
        assert "test" not in result.metrics
        assert not (result.out / "run/predictions-test.parquet").exists()

    def test_paths_are_taken_as_well_as_names(self, train: Train, tmp_path: Path) -> None:
        for name, count in (("train", 40), ("valid", 10), ("test", 12)):
            pl.DataFrame(topic_rows(count, seed=count)).write_csv(tmp_path / f"{name}.csv")
        result = train(
            tmp_path / "train.csv", valid=tmp_path / "valid.csv", test=tmp_path / "test.csv",
            settings={"train.max_steps": 1},
        )  # fmt: skip

        assert [result.metrics[name]["rows"] for name in ("train", "valid", "test")] == [40, 10, 12]

    def test_a_fraction_for_one_split_makes_only_that_one(self, train: Train) -> None:
        result = train(test=0.2, settings={"train.max_steps": 1})

        assert result.metrics["train"]["rows"] == 80
        assert result.metrics["test"]["rows"] == 20
        assert "valid" not in result.metrics

    def test_the_saved_row_numbers_are_each_row_once(self, train: Train, tmp_path: Path) -> None:
        pl.DataFrame(ROWS).write_csv(tmp_path / "topics.csv")
        result = train(tmp_path / "topics.csv", settings={"train.max_steps": 1})
        saved = pl.read_csv(result.out / "run/splits.csv")

        assert saved.columns == ["split", "file", "row"]
        assert saved["file"].unique().to_list() == ["topics.csv"]
        assert sorted(saved["row"]) == list(range(1, 101))
        test = pl.read_parquet(result.out / "run/predictions-test.parquet")
        assert test["row"].to_list() == saved.filter(split="test")["row"].to_list()
        assert test["label"].to_list() == [ROWS[row - 1]["label"] for row in test["row"]]

    def test_an_unknown_label_of_a_validation_file_is_an_error_before_the_output_is_touched(
        self, train: Train, tmp_path: Path
    ) -> None:
        pl.DataFrame([{"text": "the cat", "label": "animals"}, {"text": "x", "label": "planets"}]).write_csv(
            tmp_path / "valid.csv"
        )
        with pytest.raises(DataError, match=r"valid\.csv row 2, column 'label': 'planets' is not a label of this task"):
            train(valid=str(tmp_path / "valid.csv"))

        assert not (tmp_path / "out").exists()


class TestSources:
    @pytest.mark.parametrize(
        "form", [pd.DataFrame, pl.DataFrame, lambda rows: pl.DataFrame(rows).to_arrow(), list,
                 lambda rows: pl.DataFrame(rows).to_dict(as_series=False)],
        ids=["pandas", "polars", "arrow", "list of dicts", "dict of columns"],
    )  # fmt: skip
    def test_data_in_memory_trains_as_the_same_rows_of_a_file(
        self, train: Train, tmp_path: Path, form: Callable[[Any], Any]
    ) -> None:
        pl.DataFrame(ROWS).write_csv(tmp_path / "topics.csv")
        settings = {"train.max_steps": 2}

        assert weights(train(form(ROWS), settings=settings)) == weights(
            train(tmp_path / "topics.csv", out="file", settings=settings)
        )

    def test_no_data_at_all_is_an_error_with_an_example(self, train: Train, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="No data: name one or more files"):
            bertune.train(None, out=tmp_path / "out")
        assert not (tmp_path / "out").exists()


class TestLimits:
    def test_more_tokens_than_the_encoder_has_positions_for_are_refused(self, train: Train, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"--max-length 65: this encoder reads at most 64 tokens"):
            train(settings={"model.max_length": 65})
        assert not (tmp_path / "out").exists()

    def test_by_default_a_row_may_be_as_long_as_the_encoder_allows(self, train: Train) -> None:
        result = train(settings={"model.max_length": None, "train.max_steps": 1})

        assert result.predictor().bundle.max_length == 64

    def test_a_tokenizer_of_another_encoder_is_refused(self, train: Train, tmp_path: Path) -> None:
        folder = make_tiny_bert(tmp_path / "model")
        with (folder / "vocab.txt").open("a", encoding="utf-8") as stream:
            stream.write("more\n")

        with pytest.raises(ConfigError, match="the tokenizer has 52 tokens and the encoder embeddings for only 51"):
            train(model=folder)

    def test_more_layers_than_there_are_cannot_be_frozen(self, train: Train, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"--freeze 3: this encoder has 2 layers"):
            train(settings={"model.freeze": "3"})
        assert not (tmp_path / "out").exists()

    def test_a_metric_of_the_other_kind_of_task_is_refused_at_once(self, train: Train, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="--metric accuracy: not a metric of a multi-label task"):
            train(multi_rows(60), settings={"train.metric": "accuracy"})
        assert not (tmp_path / "out").exists()


class TestDivergence:
    def test_it_stops_with_advice_keeps_the_last_good_weights_and_leaves_no_half_result(
        self, train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        steady = {"train.schedule": "constant", "train.warmup": 0.0}
        whole = train(out="whole", settings=steady | {"train.max_steps": 7})
        usual, calls = Loss.__call__, []

        def broken(self: Loss, logits: Tensor, targets: Tensor) -> Tensor:
            calls.append(1)
            return usual(self, logits, targets) * (torch.nan if len(calls) > 7 else 1.0)

        monkeypatch.setattr(Loss, "__call__", broken)
        with pytest.raises(TrainingError) as caught:
            train(settings=steady | {"train.select_best": False})

        assert caught.value.exit_code == 1
        place = tmp_path / "out/run/last-good"
        for words in ("Step 8: the loss is no longer a finite number", "Lower --lr",
                      f"The weights of step 7 are kept in {place}"):  # fmt: skip
            assert words in str(caught.value)
        assert (place / "model.safetensors").read_bytes() == weights(whole)
        assert bertune.load(place, threads=1).predict(["a dog"]) == whole.predictor().predict(["a dog"])
        assert not (tmp_path / "out/bertune.json").exists()
        kept = checkpoint.load_newest(tmp_path / "out/run/checkpoints", print)
        assert kept is not None
        assert kept.step == 7
        assert all(torch.isfinite(value).all() for value in kept.tensors["weights"].values())
        assert whole.out.exists()

    def test_a_learning_rate_that_is_far_too_high_ends_so_too(self, train: Train, tmp_path: Path) -> None:
        with pytest.raises(TrainingError, match="finite"):
            train(lr=1e30, settings={"train.clip": None})
        assert not (tmp_path / "out/bertune.json").exists()

    def test_outputs_that_are_not_finite_in_an_evaluation_keep_the_checkpoint_before_it(
        self, train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from bertune.training import fit

        usual = fit.infer_logits
        place = tmp_path / "out/run"
        monkeypatch.setattr(fit, "infer_logits", lambda *args, **named: usual(*args, **named) * float("nan"))
        with pytest.raises(TrainingError, match=r"are not finite.*Lower --lr.*weights of step 8 are kept in"):
            train(settings={"train.checkpoint_steps": 4})
        assert (place / "last-good/model.safetensors").is_file()
        kept = checkpoint.load_newest(tmp_path / "out/run/checkpoints", print)

        assert kept is not None
        assert kept.step == 8


    def test_a_loss_that_has_run_away_ends_the_run_with_the_best_weights_so_far(
        self, train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        steady = {"train.schedule": "constant", "train.warmup": 0.0}
        whole = train(out="whole", settings=steady | {"train.epochs": 1})
        best = whole.metrics["train"]["steps"]
        usual, calls = Loss.__call__, []

        def rising(self: Loss, logits: Tensor, targets: Tensor) -> Tensor:
            calls.append(1)
            return usual(self, logits, targets) * (20.0 if len(calls) > best else 1.0)

        monkeypatch.setattr(Loss, "__call__", rising)
        with pytest.raises(TrainingError) as caught:
            train(settings=steady | {"train.epochs": 9})

        words = rf"Step \d+: the loss has risen to \S+, where guessing costs 1\.1: training diverges\. Lower --lr .* " \
                rf"The weights of step {best} are kept"  # fmt: skip
        assert re.match(words, str(caught.value)), caught.value
        assert (tmp_path / "out/run/last-good/model.safetensors").read_bytes() == weights(whole)

    def test_without_a_best_evaluation_the_weights_are_those_from_before_it_went_wrong(
        self, train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        usual, calls = Loss.__call__, []

        def rising(self: Loss, logits: Tensor, targets: Tensor) -> Tensor:
            calls.append(1)
            return usual(self, logits, targets) * (100.0 if len(calls) > 10 else 1.0)

        monkeypatch.setattr(Loss, "__call__", rising)
        settings = {"train.epochs": 9, "data.hold_out": False}
        with pytest.raises(TrainingError, match=r"training diverges.*The weights of step 6 are kept"):
            train(settings=settings | {"train.checkpoint_steps": 6})
        calls.clear()
        with pytest.raises(TrainingError, match=r"training diverges.*There are no good weights from before to keep"):
            train(out="none", settings=settings)
        assert not (tmp_path / "none/run/last-good").exists()

    def test_a_few_steps_of_great_loss_are_no_divergence(self, train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
        usual, calls = Loss.__call__, []

        def spiked(self: Loss, logits: Tensor, targets: Tensor) -> Tensor:
            calls.append(1)
            return usual(self, logits, targets) * (1000.0 if 7 <= len(calls) < 11 else 1.0)

        monkeypatch.setattr(Loss, "__call__", spiked)
        assert train().metrics["train"]["steps"] > 11


class TestDamagedRecords:
    @pytest.mark.parametrize("name", ["metrics.json", "data.json", "machine.yaml"])
    def test_a_run_that_cannot_be_gone_on_with_says_what_is_damaged(self, train: Train, name: str) -> None:
        out = train().out
        if name != "metrics.json":
            (out / "bertune.json").unlink()  # as if it had not finished
        (out / "run" / name).write_text("", encoding="utf-8")
        with pytest.raises(ModelError, match=rf"{name}: damaged, .* train anew with --overwrite"):
            train(resume=True)


class TestUnusedOptions:
    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"train.label_smoothing": 0.1, "train.loss": "focal"},
             "--label-smoothing 0.1: belongs to cross-entropy, and --loss focal has targets of its own."),
            ({"check.folds": 3}, "check.folds 3: needs --label-errors frozen or tuned."),
            ({"train.focal_gamma": 3.0}, "train.focal_gamma 3: needs --loss focal."),
            ({"train.negative_gamma": 3.0}, "train.negative_gamma 3: needs --loss asymmetric."),
            ({"train.loss": "asymmetric"}, "--loss asymmetric: belongs to a task with any number of labels a row."),
            ({"model.head_hidden": 20}, "model.head_hidden 20: needs --head mlp."),
        ],
    )  # fmt: skip
    def test_what_would_change_nothing_is_refused_before_the_output_is_touched(
        self, train: Train, tmp_path: Path, settings: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(ConfigError, match=re.escape(message)):
            train(settings=settings)
        assert not (tmp_path / "out").exists()

    def test_label_smoothing_of_several_labels_is_for_cross_entropy_too(self, train: Train) -> None:
        with pytest.raises(ConfigError, match="and --loss asymmetric has targets of its own"):
            train(multi_rows(60), settings={"train.label_smoothing": 0.1, "train.loss": "asymmetric"})

    @pytest.mark.parametrize("value", ["all", "-1", True])
    def test_what_can_be_frozen_is_said(self, train: Train, value: object) -> None:
        with pytest.raises(ConfigError, match="expected none, encoder, embeddings, or a number of layers"):
            train(settings={"model.freeze": value})

    def test_a_number_of_layers_may_be_a_number(self, train: Train) -> None:
        assert train(settings={"model.freeze": 1, "train.max_steps": 1}).metrics["train"]["steps"] == 1


class TestFullDisk:
    """A full disk is simulated: the errors are those that the system and safetensors give."""

    FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def fails(self, run: Callable[[], Any]) -> BertuneError:
        with pytest.raises(TrainingError, match="The disk is full") as caught:
            run()
        assert caught.value.exit_code == 1
        assert "--resume" in str(caught.value)
        return caught.value

    @pytest.mark.parametrize("error", [FULL, RuntimeError("I/O error: No space left on device (os error 28)")], ids=str)
    def test_while_writing_a_checkpoint_the_earlier_one_stays_and_the_run_can_go_on(
        self, train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
    ) -> None:
        settings = {"train.checkpoint_steps": 4}
        whole = train(out="whole", settings=settings)
        calls: list[int] = []
        usual = checkpoint.save_file

        def full(tensors: dict[str, Tensor], path: Path) -> None:
            calls.append(1)
            if len(calls) == 5:  # the second file of the second checkpoint
                Path(path).write_bytes(b"half")
                raise error
            usual(tensors, path)

        folder = tmp_path / "out/run/checkpoints"
        with monkeypatch.context() as patch:
            patch.setattr(checkpoint, "save_file", full)
            said = str(self.fails(lambda: train(settings=settings)))
            assert f"Earlier checkpoints in {folder} are intact." in said
            calls += [1] * (3 - len(calls))  # now the second file of the first checkpoint
            calls[:] = calls[:3]
            said = str(self.fails(lambda: train(out="first", settings=settings)))
            assert "No checkpoint was written before, so training will begin anew." in said
        assert [path.name for path in folder.iterdir()] == ["step-00000004"]
        assert checkpoint.load_newest(folder, print) is not None

        assert weights(train(settings=settings, resume=True)) == weights(whole)

    @pytest.mark.parametrize(
        "place",
        ["training.base.write_atomic", "training.finish.save_model", "training.finish.write_predictions",
         "training.finish.model_card", "training.finish.plot_curves", "training.run.write_split_rows",
         "training.base.checkpoint.save_best"],
    )  # fmt: skip
    def test_wherever_it_happens_it_is_said_and_the_run_can_go_on(
        self, train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
    ) -> None:
        def full(*args: Any, **named: Any) -> None:
            raise self.FULL

        settings = {"train.max_steps": 4, "train.checkpoint_steps": 4}
        with monkeypatch.context() as patch:
            patch.setattr(f"bertune.{place}", full)
            self.fails(lambda: train(settings=settings))

        result = train(settings=settings, resume=True)
        assert json.loads((result.out / "run/metrics.json").read_text(encoding="utf-8"))["train"]["steps"] == 4
