"""Tiny results of training that are explained, with the files that they were trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import bertune
from bertune.explain.explanation import Explanation
from bertune.ship.predict import Predictor
from shell import write_rows
from tiny_runs import QUICK, TOPICS, multi_rows, pair_rows, topic_rows

SETTINGS = QUICK | {"train.epochs": 8, "train.lr": 1e-2, "model.pooling": "mean"}


def make_runs(folder: Path, model: Path, *names: str) -> Path:
    """Results of these names in the folder: single, pair, multi (from single.csv and so on), frame (from no file)."""
    data: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
        "single": (topic_rows(160), {}),
        "pair": (pair_rows(60), {"text": "first", "text_pair": "second"}),
        "multi": (multi_rows(100), {"text": "text", "label": list(TOPICS)}),
        "frame": (topic_rows(40), {}),
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bertune.training.finish.plot_curves", lambda history, path, *, metric: None)
        for name in names:
            rows, columns = data[name]
            source = rows if name == "frame" else write_rows(folder / f"{name}.csv", rows)
            bertune.train(source, out=folder / name, model=model, settings=SETTINGS, **columns)
    return folder


def alone(predictor: Predictor, row: Any, **options: Any) -> Explanation:
    """The one explanation of a row, without neighbours unless they are asked for."""
    (found,) = predictor.explain([row], **{"neighbors": 0, **options})
    return found
