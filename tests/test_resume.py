"""A killed training, gone on with, ends with the same bytes as one that was left alone."""

from __future__ import annotations

import json
import random
import shutil
import time
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml

import bertune
from bertune.errors import ConfigError
from tiny_runs import QUICK, Told, topic_rows
from train_child import KILLED, finish_child, start_child, without_picture

pytestmark = pytest.mark.usefixtures("one_thread", "no_pictures")

# 15 steps an epoch, evaluated at 8, 15, 23 and 30, with a checkpoint after every third step and every evaluation.
SETTINGS = QUICK | {"train.checkpoint_steps": 3, "train.evals_per_epoch": 2, "train.evaluate_test": True}
PLAIN = {"fp32": SETTINGS, "bf16, one layer frozen": SETTINGS | {"train.precision": "bf16", "model.freeze": "1"}}
TIMES = {"seconds", "examples_per_second", "tokens_per_second", "peak_memory_bytes"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "topics.csv"
    pl.DataFrame(topic_rows(150)).write_csv(path)
    return path


@pytest.fixture(scope="module")
def whole(data: Path, tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Results of the runs that nobody disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    for number, settings in enumerate(PLAIN.values()):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("bertune.training.finish.plot_curves", without_picture)
            bertune.train(data, out=folder / str(number), model=tiny_bert, settings=settings)
    return {name: folder / str(number) for number, name in enumerate(PLAIN)}


class Jobs:
    """Runs of one output folder in processes of their own."""

    def __init__(self, out: Path, data: Path, model: Path, cache: Path, *, settings: dict[str, Any]) -> None:
        self.out, self.said_path = out, out.with_suffix(".txt")
        self.job = {
            "data": str(data), "model": str(model), "out": str(out), "said": str(self.said_path), "cache": str(cache),
            "settings": settings,
        }  # fmt: skip

    def run(self, *, kill: str = "", resume: bool = True) -> int:
        self.said_path.unlink(missing_ok=True)
        return finish_child(**self.job, kill=kill, resume=resume)

    def said(self) -> str:
        return self.said_path.read_text(encoding="utf-8")


@pytest.fixture
def jobs(tmp_path: Path, data: Path, tiny_bert: Path, own_cache: Path) -> Jobs:
    return Jobs(tmp_path / "out", data, tiny_bert, own_cache, settings=SETTINGS)


def without_times(metrics: dict[str, Any]) -> dict[str, Any]:
    return {
        key: without_times(value) if isinstance(value, dict) else value
        for key, value in metrics.items() if key not in TIMES
    }  # fmt: skip


def assert_same_result(found: Path, wanted: Path) -> None:
    for name in ("model.safetensors", "config.json", "bertune.json", "tokenizer.json", "run/history.jsonl",
                 "run/splits.csv", "run/config.yaml", "run/machine.yaml"):  # fmt: skip
        assert (found / name).read_bytes() == (wanted / name).read_bytes(), name
    metrics = [json.loads((out / "run/metrics.json").read_text(encoding="utf-8")) for out in (found, wanted)]
    assert without_times(metrics[0]) == without_times(metrics[1])
    for name in ("run/predictions-valid.parquet", "run/predictions-test.parquet"):
        assert pl.read_parquet(found / name).equals(pl.read_parquet(wanted / name))
    assert files_of(found) == files_of(wanted)


def yaml_of(out: Path) -> Any:
    return yaml.safe_load((out / "run" / "config.yaml").read_text(encoding="utf-8"))


def files_of(out: Path) -> list[str]:
    return sorted(path.relative_to(out).as_posix() for path in out.rglob("*"))


# Each chain is one run that is killed at these places one after another; what counts starts anew in every process.
CHAINS = {
    "early": [
        "step:2",  # before the first checkpoint
        "torn:2",  # half of the first checkpoint's moments are on the disk
        "step:3",  # after a step, before its checkpoint
        "evaluation:1",  # valid is measured, test is not
        "checkpoint:1",  # an evaluation's best weights are on the disk, the checkpoint that tells of them is not
    ],
    "late": [
        "step:17",
        "torn:4",
        "evaluation:2",
        "step:30",  # after the last step, before the last evaluation
    ],
    "finishing": [
        "bundle:1",
        "bundle-file:1",
        "judging:2",  # the result is in its place, valid is measured
        "ruling:1",  # the rule is chosen, and not yet kept
        "cleaning:1",  # all is there, and the checkpoints still are
    ],
}  # fmt: skip


@pytest.mark.parametrize("chain", CHAINS)
def test_a_run_killed_at_awkward_places_ends_as_the_undisturbed_one(
    jobs: Jobs, whole: dict[str, Path], chain: str
) -> None:
    for kill in CHAINS[chain]:
        assert jobs.run(kill=kill) == KILLED, kill
    assert jobs.run() == 0

    assert_same_result(jobs.out, whole["fp32"])


@pytest.mark.parametrize("name", PLAIN)
def test_a_run_killed_again_and_again_at_random_moments_ends_as_the_undisturbed_one(
    jobs: Jobs, whole: dict[str, Path], name: str
) -> None:
    moments, deaths = random.Random(name), 0
    jobs.job["settings"] = PLAIN[name]
    for attempt in range(5):
        process = start_child(**jobs.job, resume=attempt > 0, slow=0.02)
        begun = time.monotonic()
        while not (jobs.out / "run").is_dir() and process.is_alive() and time.monotonic() < begun + 60:
            time.sleep(0.01)
        process.join(moments.uniform(0.1, 0.8))
        process.kill()
        process.join()
        deaths += process.exitcode != 0
    assert deaths > 0
    assert jobs.run() == 0

    assert_same_result(jobs.out, whole[name])


def test_ctrl_c_saves_says_how_to_go_on_and_the_rest_is_as_undisturbed(jobs: Jobs, whole: dict[str, Path]) -> None:
    assert jobs.run(kill="interrupt:13", resume=False) == 130
    assert jobs.said().splitlines()[-1] == (
        "Interrupted: Stopped after step 13 of 30; all is saved. Go on with the same command and --resume."
    )
    assert jobs.run() == 0
    assert "Resumed after step 13 of 30." in jobs.said()

    assert_same_result(jobs.out, whole["fp32"])


def test_ctrl_c_at_the_last_step_is_not_forgotten(jobs: Jobs, whole: dict[str, Path]) -> None:
    assert jobs.run(kill="interrupt:30", resume=False) == 130
    assert not (jobs.out / "bertune.json").exists()
    assert jobs.run() == 0

    assert_same_result(jobs.out, whole["fp32"])


@pytest.mark.parametrize(
    ("place", "name"),
    [("stop-judging:1", "fp32"), ("stop-judging:2", "fp32"), ("stop-frozen:1", "bf16, one layer frozen")],
)
def test_ctrl_c_before_and_after_the_steps_says_how_to_go_on_too(
    jobs: Jobs, whole: dict[str, Path], place: str, name: str
) -> None:
    jobs.job["settings"] = PLAIN[name]
    assert jobs.run(kill=place, resume=False) == 130
    assert jobs.said().splitlines()[-1] == (
        "Interrupted: Stopped; what was saved before is whole, and the rest is done again. "
        "Go on with the same command and --resume."
    )
    assert not list((jobs.out / "run").glob("frozen-*"))
    assert jobs.run() == 0

    assert_same_result(jobs.out, whole[name])


class Stop(Exception):
    """Stands in for whatever ends a run from outside."""


class Stopper(Told):
    """Ends the run after a step, in the same process: for what needs no real kill."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at = at

    def step(self, step: Any) -> None:
        if step.number == self.at:
            raise Stop


class Here:
    """The same run in this process."""

    def __init__(self, out: Path, data: Path, model: Path) -> None:
        self.out, self.data, self.model = out, data, model

    def run(self, *, at: int = -1, resume: bool = True, data: Any = None, **changes: Any) -> list[str]:
        listener = Stopper(at)
        settings = SETTINGS | {name.replace("__", "."): value for name, value in changes.items()}
        try:
            bertune.train(
                self.data if data is None else data, out=self.out, model=self.model, settings=settings, resume=resume,
                listener=listener,
            )
        except Stop:
            assert at > 0
        return listener.said

    @property
    def checkpoints(self) -> list[Path]:
        return sorted((self.out / "run" / "checkpoints").glob("step-*"))


@pytest.fixture
def here(tmp_path: Path, data: Path, tiny_bert: Path) -> Here:
    return Here(tmp_path / "out", data, tiny_bert)


class TestDamage:
    @pytest.mark.parametrize(
        ("name", "how"),
        [("weights.safetensors", "cut"), ("weights.safetensors", "altered"), ("optimizer.safetensors", "gone"),
         ("running.safetensors", "altered"), ("state.json", "cut"), ("state.json", "gone"), ("state.json", "altered")],
    )  # fmt: skip
    def test_a_torn_checkpoint_is_skipped_with_a_word_and_the_one_before_it_used(
        self, here: Here, whole: dict[str, Path], name: str, how: str
    ) -> None:
        here.run(at=14, resume=False)
        older, newest = here.checkpoints
        path = newest / name
        content = path.read_bytes()
        if how == "gone":
            path.unlink()
        else:
            middle = len(content) // 2
            path.write_bytes(content[:middle] if how == "cut" else content[:middle] + b"0" + content[middle + 1 :])
        said = here.run()

        assert [text for text in said if text.startswith(f"Skipped the damaged checkpoint {newest.name}")]
        assert f"Resumed after step {int(older.name[5:])} of 30." in said
        assert_same_result(here.out, whole["fp32"])

    def test_where_all_checkpoints_are_torn_training_starts_afresh(self, here: Here, whole: dict[str, Path]) -> None:
        here.run(at=14, resume=False)
        for folder in here.checkpoints:
            (folder / "state.json").write_bytes(b"")
        said = here.run()

        assert len([text for text in said if "damaged" in text]) == 2
        assert "No checkpoint yet: starting from the beginning." in said
        assert_same_result(here.out, whole["fp32"])

    def test_lost_best_weights_are_noticed(self, here: Here, whole: dict[str, Path]) -> None:
        here.run(at=14, resume=False)
        best = next((here.out / "run" / "checkpoints").glob("best-*"))
        best.write_bytes(best.read_bytes()[:-1])
        said = here.run()

        assert [text for text in said if "damaged" in text and best.name in text]
        assert_same_result(here.out, whole["fp32"])


class TestWithoutBestWeights:
    def test_a_run_that_keeps_the_last_weights_resumes_too(self, here: Here) -> None:
        here.run(resume=False, train__select_best=False)
        wanted = here.out.with_name("wanted")
        here.out.rename(wanted)
        here.run(at=14, resume=False, train__select_best=False)
        said = here.run(train__select_best=False)

        assert "Resumed after step 12 of 30." in said
        assert_same_result(here.out, wanted)

    def test_a_run_without_validation_resumes_too(self, here: Here) -> None:
        options = {"data__hold_out": False, "train__evals_per_epoch": 1, "train__evaluate_test": False}
        here.run(resume=False, **options)
        wanted = here.out.with_name("wanted")
        here.out.rename(wanted)
        here.run(at=14, resume=False, **options)
        said = here.run(**options)

        assert "Resumed after step 12 of 38." in said
        for name in ("model.safetensors", "run/history.jsonl"):
            assert (here.out / name).read_bytes() == (wanted / name).read_bytes()


class TestWhatResumeMeans:
    def test_a_complete_run_returns_at_once_with_its_metrics(
        self, here: Here, whole: dict[str, Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        shutil.copytree(whole["fp32"], here.out)
        monkeypatch.setattr("bertune.training.run.open_source", None)  # no work begins
        before = files_of(here.out)
        told = Told()
        result = bertune.train(here.data, out=here.out, model=here.model, settings=SETTINGS, resume=True, listener=told)

        assert "holds a complete run already" in told.said[0]
        assert result.metrics["test"]["rows"] == 15
        assert result.task.labels == ("animals", "plants", "tools")
        assert files_of(here.out) == before

    def test_other_options_than_those_of_a_complete_run_are_named_and_change_nothing(
        self, here: Here, whole: dict[str, Path], caplog: pytest.LogCaptureFixture
    ) -> None:
        shutil.copytree(whole["fp32"], here.out)
        here.data = Path(yaml_of(here.out)["data"]["files"][0])
        here.run(cache__folder=str(here.out.with_name("elsewhere")))  # no result depends on it
        assert not caplog.messages
        here.run(train__lr=1e-3, model__pooling="mean")

        assert caplog.messages == [
            f"--resume: the run in {here.out} is complete, so other options are not applied: model.pooling (was "
            "'auto', now 'mean'), train.lr (was 0.005, now 0.001). Pass --overwrite to train anew with them, or "
            "another --out."
        ]
        assert_same_result(here.out, whole["fp32"])

    def test_where_there_is_nothing_to_resume_training_starts_afresh(self, here: Here, whole: dict[str, Path]) -> None:
        here.run()

        assert_same_result(here.out, whole["fp32"])

    @pytest.mark.parametrize(
        ("changes", "named"),
        [
            ({"train__lr": 1e-3}, "train.lr (was 0.005, now 0.001)"),
            ({"model__pooling": "mean"}, "model.pooling (was 'auto', now 'mean')"),
            ({"data__split_seed": 3}, "data.split_seed (was 0, now 3)"),
        ],
    )
    def test_other_options_are_refused_and_named(self, here: Here, changes: dict[str, Any], named: str) -> None:
        here.run(at=5, resume=False)
        before = {path: path.read_bytes() for path in here.out.rglob("*") if path.is_file()}
        with pytest.raises(ConfigError) as caught:
            here.run(**changes)

        assert named in str(caught.value)
        assert "--overwrite" in str(caught.value)
        assert {path: path.read_bytes() for path in here.out.rglob("*") if path.is_file()} == before

    def test_a_device_that_is_gone_is_an_error(self, here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
        here.run(at=5, resume=False)
        path = here.out / "run" / "machine.yaml"
        path.write_text(path.read_text(encoding="utf-8").replace('"cpu"', '"cuda"'), encoding="utf-8")
        monkeypatch.setattr("torch.cuda.is_available", lambda: False)

        with pytest.raises(ConfigError, match="--device cuda: not available here"):
            here.run()

    def test_other_data_is_refused(self, here: Here, tmp_path: Path) -> None:
        path = tmp_path / "topics.csv"
        shutil.copy(here.data, path)
        here.run(at=5, resume=False, data=path)
        frame = pl.read_csv(path)
        frame.with_columns(text=pl.col("text").str.replace("the", "a")).write_csv(path)

        with pytest.raises(ConfigError, match=r"the data is not what the run in .* was started with"):
            here.run(data=path)

    def test_neither_resume_nor_overwrite_is_an_error_that_changes_nothing(self, here: Here) -> None:
        here.run(at=5, resume=False)
        before = files_of(here.out)

        with pytest.raises(ConfigError, match="--resume"):
            here.run(resume=False)
        assert files_of(here.out) == before
