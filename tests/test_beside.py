"""Jobs beside each other: the same cells, the order that is needed, errors and stops that leave nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml

from bertune.errors import ConfigError, InputError, Interrupted, TrainingError
from bertune.model.machine import usable_cores
from bertune.reproduce.beside import Ended, Job, Work, _context, run_beside, run_in_order
from bertune.reproduce.keep import read_cell
from bertune.reproduce.run import make_cells
from bertune.reproduce.spec import Spec, cells, read_spec
from bertune.training.loop import Diverged
from shell import call
from tiny_runs import QUICK, Told, topic_rows

pytestmark = pytest.mark.usefixtures("one_thread", "no_pictures")


@pytest.fixture
def spec(tmp_path: Path, tiny_bert: Path) -> Spec:
    """Two ways on the data in tmp_path/data, one of which begins with an encoder that is pre-trained first."""
    folder = tmp_path / "data"
    folder.mkdir()
    pl.DataFrame(topic_rows(60)).write_csv(folder / "topics.csv")
    small = {"pretrain.max_length": 24, "pretrain.max_steps": 2, "model.name": str(tiny_bert)}
    values = {
        "title": "A tiny study",
        "data": {"topics": {"files": ["topics.csv"]}},
        "encoders": {"within": {"parts": ["topics"], "settings": small}},
        "settings": QUICK | {"train.epochs": 1, "train.checkpoint_steps": 1},
        "tables": {"ways": {
            "title": "Ways", "data": ["topics"], "reference": "plain",
            "rows": {"pre-trained": {"encoder": "within"}, "plain": {"settings": {"model.name": str(tiny_bert)}}},
        }},
    }  # fmt: skip
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    return read_spec(str(path))


def write(path: Path, text: str, *, after: Path | None = None, listener: Any) -> None:
    """A job: writes a file, and says whether another one was there before."""
    path.write_text(f"{text} {after is None or after.exists()}", encoding="utf-8")


def fail(error: BaseException, *, listener: Any) -> None:
    raise error


def die(*, listener: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def wait_long(begun: Path, *, listener: Any) -> None:
    begun.write_text(str(os.getpid()), encoding="utf-8")
    time.sleep(120)


def linger(begun: Path, *, listener: Any) -> None:
    """Stops at the second signal only, as a training does in the middle of a long step."""
    signals: list[int] = []

    def note(number: int, frame: object) -> None:
        signals.append(number)
        begun.with_suffix(".asked").touch()
        if len(signals) > 1:
            raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, note)
    begun.write_text(str(os.getpid()), encoding="utf-8")
    end = time.monotonic() + 120
    while time.monotonic() < end:
        time.sleep(0.05)


PROGRAM = """
import sys; sys.path.insert(0, sys.argv[1])
from functools import partial; from pathlib import Path; import test_beside as t
if __name__ == "__main__":
    t.run_beside([t.job("long", partial(getattr(t, sys.argv[3]), Path(sys.argv[2])))], at_once=1, late=t.never)
"""


def program(tmp_path: Path, work: str) -> tuple[subprocess.Popen[bytes], Path]:
    """A process with one job, and the file in which that writes its own number."""
    script, begun = tmp_path / "program.py", tmp_path / "begun"
    script.write_text(PROGRAM, encoding="utf-8")
    line = [sys.executable, script, str(Path(__file__).parent), begun, work]
    process = subprocess.Popen(line, stderr=subprocess.PIPE)
    until(lambda: begun.exists() and begun.read_text(encoding="utf-8"))
    return process, begun


def job(name: str, work: Work, *needs: str) -> Job:
    return Job(name, needs, lambda: work)


def never() -> bool:
    return False


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"


def until(wanted: Any) -> None:
    """Wait for what other processes do."""
    end = time.monotonic() + 120
    while not wanted():
        assert time.monotonic() < end
        time.sleep(0.05)


class TestJobs:
    def test_each_comes_after_those_that_it_needs(self, tmp_path: Path) -> None:
        first, second, third = (tmp_path / name for name in "abc")
        jobs = [
            job("third", partial(write, third, "3", after=second), "second"),
            job("second", partial(write, second, "2", after=first), "first"),
            job("first", partial(write, first, "1")),
        ]

        assert run_beside(jobs, at_once=3, late=never) == Ended([], [])
        assert [path.read_text(encoding="utf-8") for path in (first, second, third)] == ["1 True", "2 True", "3 True"]

    def test_none_begins_when_it_is_late(self, tmp_path: Path) -> None:
        begun: list[str] = []

        def late() -> bool:
            return len(begun) == 1

        def prepare(name: str) -> Work:
            begun.append(name)
            return partial(write, tmp_path / name, name)

        jobs = [Job(name, (), partial(prepare, name)) for name in "ab"]
        assert run_beside(jobs, at_once=2, late=late).left == jobs[1:]
        assert (tmp_path / "a").exists() and not (tmp_path / "b").exists()

    @pytest.mark.parametrize(
        ("error", "kind", "said"),
        [
            (ConfigError("no such column."), InputError, "^wrong: no such column.$"),
            (TrainingError("the disk is full."), TrainingError, "^wrong: the disk is full.$"),
            (TrainingError("much " * 100_000), TrainingError, "^wrong: much much"),
            (OSError(28, "No space left on device"), TrainingError, "^wrong: the disk is full.$"),
            (PermissionError(13, "Permission denied", "cells"), TrainingError, "^wrong: .*Permission denied: 'cells'"),
            (KeyboardInterrupt(), Interrupted, "^wrong: stopped.$"),
            (ZeroDivisionError("a bug"), RuntimeError, "(?s)^wrong:.*in fail.*ZeroDivisionError: a bug"),
        ],
    )
    def test_an_error_of_one_stops_the_others_and_is_raised(
        self, tmp_path: Path, error: BaseException, kind: type[Exception], said: str
    ) -> None:
        begun = tmp_path / "begun"

        def prepare() -> Work:
            until(begun.exists)
            return partial(fail, error)

        with pytest.raises(kind, match=said):
            run_beside([job("long", partial(wait_long, begun)), Job("wrong", (), prepare)], at_once=2, late=never)
        assert not alive(int(begun.read_text(encoding="utf-8")))

    @pytest.mark.parametrize("at_once", [0, 2])
    def test_one_that_diverges_costs_those_alone_that_need_it(self, tmp_path: Path, at_once: int) -> None:
        jobs = [
            job("wild", partial(fail, Diverged("no number."))),
            job("after", partial(write, tmp_path / "a", ""), "wild"),
            job("tame", partial(write, tmp_path / "b", "")),
        ]
        if at_once:
            ended = run_beside(jobs, at_once=at_once, late=never)
        else:
            ended = run_in_order(jobs, late=never, listener=Told())
        assert ended == Ended([jobs[1]], ["wild: no number."])
        assert (tmp_path / "b").exists() and not (tmp_path / "a").exists()

    def test_where_no_server_can_be_had_processes_begin_anew(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse() -> None:
            raise OSError("AF_UNIX path too long")

        monkeypatch.setattr("multiprocessing.forkserver.ensure_running", refuse)
        assert _context().get_start_method() == "spawn"
        run_beside([job("one", partial(write, tmp_path / "a", ""))], at_once=1, late=never)
        assert (tmp_path / "a").exists()

    def test_a_process_that_was_killed_is_told_from_one_that_is_done(self) -> None:
        with pytest.raises(TrainingError, match=r"big: its process was ended from outside \(code -9\).*fewer --jobs"):
            run_beside([job("big", die)], at_once=1, late=never)

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
    def test_they_end_with_the_process_that_began_them(self, tmp_path: Path, number: signal.Signals) -> None:
        process, begun = program(tmp_path, "wait_long")
        process.send_signal(number)
        process.communicate(timeout=120)
        pid = int(begun.read_text(encoding="utf-8"))
        until(lambda: not alive(pid))

        assert process.returncode != 0
        assert not alive(pid)

    def test_a_second_ctrl_c_is_passed_on(self, tmp_path: Path) -> None:
        process, begun = program(tmp_path, "linger")
        process.send_signal(signal.SIGINT)
        until(begun.with_suffix(".asked").exists)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=120)

        assert b"BrokenPipe" not in said and not alive(int(begun.read_text(encoding="utf-8")))


class TestReproduction:
    def test_trainings_beside_each_other_make_the_same_cells(self, spec: Spec, tmp_path: Path) -> None:
        wanted = list(cells(spec, ["ways"], seeds=2))
        told = Told()
        options: dict[str, Any] = {"data": tmp_path / "data", "hours": None}
        assert make_cells(spec, wanted, out=tmp_path / "one", listener=Told(), **options)
        assert make_cells(spec, wanted, out=tmp_path / "two", listener=told, jobs=2, **options)

        for cell in wanted:
            one, two = (read_cell(spec, cell, tmp_path / name) for name in ("one", "two"))
            assert one is not None and two is not None and np.array_equal(one.scores.logits, two.scores.logits)
            assert one.record["config"] == two.record["config"] and two.record["machine"]
        assert told.said.count("Pre-training the encoder within.") == 1
        assert sum(text.startswith(f"{number} of 4: table ways") for text in told.said for number in range(1, 5)) == 4

    def test_each_has_its_share_of_the_cores(
        self, spec: Spec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        works: list[Any] = []

        def keep(jobs: list[Job], *, at_once: int, late: Any) -> Ended:
            works.extend(one.prepare() for one in jobs)
            return Ended([], [])

        monkeypatch.setattr("bertune.reproduce.run.run_beside", keep)
        spec.tables["ways"].rows["plain"].settings["train.threads"] = 1000
        wanted = cells(spec, ["ways"], seeds=1)
        make_cells(spec, wanted, out=tmp_path / "out", data=tmp_path / "data", hours=None, listener=Told(), jobs=2)
        _, pretrained, plain = works
        [[first], [second]] = (list(work.args[0].values()) for work in (pretrained, plain))

        assert first.config.train.threads == first.encoder[0][1].train.threads == max(1, usable_cores() // 2)
        assert second.config.train.threads == 1000

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_a_signal_stops_all_of_them_and_keeps_what_they_did(
        self, spec: Spec, tmp_path: Path, number: signal.Signals
    ) -> None:
        spec.settings |= {"train.epochs": 2000}
        del spec.settings["train.checkpoint_steps"]
        (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(spec.model_dump(mode="json")), encoding="utf-8")
        out = tmp_path / "out"
        line = ["reproduce", tmp_path / "tiny.yaml", "--data", tmp_path / "data", "--out", out, "--jobs", "2"]
        line = [str(part) for part in (*line, "--seeds", "1", "--set", "train.checkpoint_minutes=60")]
        process = subprocess.Popen([sys.executable, "-m", "bertune", *line], stderr=subprocess.PIPE, text=True)
        until(lambda: len(list(out.glob("running/*/run/history.jsonl"))) == 2)
        assert not list(out.glob("running/*/run/checkpoints/step-*"))
        process.send_signal(number)
        _, said = process.communicate(timeout=120)

        assert process.returncode == 130 and "Traceback" not in said
        assert said.endswith("Error: Stopped; what was done is kept. Go on with the same command.\n")
        assert not list(out.glob("cells/*")) and len(list(out.glob("running/*/run/checkpoints/step-*"))) == 2

    def test_one_that_diverges_is_told_at_the_end_and_the_tables_are_written(
        self, spec: Spec, tmp_path: Path
    ) -> None:
        spec.tables["ways"].rows["plain"].settings |= {"train.lr": 1e20, "train.warmup": 0.0}
        (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(spec.model_dump(mode="json")), encoding="utf-8")
        done = call("reproduce", tmp_path / "tiny.yaml", "--data", tmp_path / "data", "--out", tmp_path / "out",
                    "--seeds", "1")  # fmt: skip

        assert done.code == 1 and "plain, seed 0: Step" in done.err and "| topics | pre-trained |" in done.out
        assert len(list((tmp_path / "out/cells").glob("*.json"))) == 1

    def test_less_than_one_at_a_time_is_refused(self, tmp_path: Path) -> None:
        done = call("reproduce", "sun2019", "--out", tmp_path / "out", "--jobs", "0")

        assert done.code == 2 and "--jobs 0: takes at least 1." in done.err
