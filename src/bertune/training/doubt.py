"""Probabilities of the training labels from models that have not seen the row, and the labels they make one doubt."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np

from bertune.config import Config, DecideConfig
from bertune.data.tokens import Encoded
from bertune.doctor.corpus import Corpus
from bertune.doctor.mislabeled import doubted
from bertune.doctor.relabel import Doubt, doubts_of
from bertune.doctor.telling import label_aucs
from bertune.errors import ConfigError, listed
from bertune.evaluate.resample import folds_of
from bertune.model.heads import HeadConfig
from bertune.model.load import load_model
from bertune.model.machine import choose_machine
from bertune.training.features import Features
from bertune.training.listen import Listener
from bertune.training.prepare import Prepared

KNOWN = 0.75  # area under the curve from which a model's doubt about a label means anything
_LABEL = "label of bertune"  # a column beside those of the data


def doubt_labels(
    config: Config, prepared: Prepared, corpus: Corpus, folder: Path, listener: Listener
) -> list[Doubt]:
    """The training rows whose label is doubted, the likeliest error first. folder: the encoder."""
    train, task = prepared.train, prepared.task
    if len(train) < 2 * config.check.folds:
        raise ConfigError(
            f"--label-errors {config.check.label_errors}: {len(train)} training rows are too few for "
            f"{config.check.folds} folds. Pass --label-errors none."
        )
    with listener.work("Reading the rows with the encoder", len(train)) as advance:
        states = frozen_states(config, folder, train.tokens, advance)
    # Copies stay together, so that a row is never judged by a model that has seen its copy; so do pairs that share a
    # first side, whose labels often rule one another out.
    keys = [corpus.keys[row][0] for row in corpus.where("train")]
    folds = list(folds_of(len(keys), groups=keys, count=config.check.folds))
    if config.check.label_errors == "tuned":
        found = tuned_probabilities(config, prepared, folds, listener)
    else:
        with listener.work("Doubting the labels", len(train)) as advance:
            found = frozen_probabilities(states, train.targets, folds, kind=task.kind, labels=task.num_labels,
                                         advance=advance)  # fmt: skip
    areas = label_aucs(corpus.hot[corpus.where("train")], found)
    if task.kind == "single":
        areas[:] = np.nanmean(areas)  # a label is doubted in favour of another, so that all of them have to be known
    unknown = [label for label, area in zip(task.labels, areas, strict=True) if not area >= KNOWN]
    if unknown:
        which = "Labels" if len(unknown) == task.num_labels else f"The labels {listed(unknown)}"
        more = " Try --label-errors tuned." if config.check.label_errors == "frozen" else ""
        listener.say(
            f"{which} are not doubted: models that have not seen the row hardly know them (area under the curve "
            f"{np.nanmin(areas):.2f}, wanted {KNOWN}).{more}"
        )
    suspects = doubted(train.targets, found, task.kind, known=areas >= KNOWN)
    return doubts_of(corpus, suspects, states)


def frozen_states(config: Config, folder: Path, encoded: Encoded, advance: Callable[[int], None]) -> np.ndarray:
    """Mean states of the encoder as it is, float32 [rows, hidden]."""
    machine = choose_machine(config.train, long_run=False)
    machine.use()
    model, _ = load_model(folder, head=HeadConfig("linear", "mean", num_labels=1, dropout=0.0, join="mean"))
    for value in model.parameters():
        value.requires_grad = False
    model.to(machine.torch_device).eval()
    model.encoder.compute_in(machine.dtype, kernels=machine.kernels)
    with tempfile.TemporaryDirectory(prefix="bertune-") as place:
        features = Features(
            model, encoded, start=model.encoder.config.layers, budget=machine.token_budget,
            path=Path(place) / "states", advance=advance,
        )  # fmt: skip
        return features.states


def frozen_probabilities(
    states: np.ndarray, targets: np.ndarray, folds: list[tuple[np.ndarray, np.ndarray]], *, kind: str, labels: int,
    advance: Callable[[int], None] = lambda done: None,
) -> np.ndarray:
    """Probabilities [rows, labels] of logistic regressions over standardised states, each row by one that has not
    seen it. A label that the learned rows lack has probability 0 there."""
    found = np.zeros((len(states), labels))
    done = 0
    for learned, left in folds:
        mean, spread = states[learned].mean(axis=0), states[learned].std(axis=0) + 1e-6
        known, asked = (states[learned] - mean) / spread, (states[left] - mean) / spread
        if kind == "single":
            found[left] = _logistic(known, targets[learned], asked, labels)
        else:
            for label in range(labels):
                found[left, label] = _logistic(known, targets[learned, label].astype(int), asked, 2)[:, 1]
        done += len(left)
        advance(done)
    return found


def _logistic(known: np.ndarray, targets: np.ndarray, asked: np.ndarray, labels: int) -> np.ndarray:
    """Probabilities [asked, labels]."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    found = np.zeros((len(asked), labels))
    there = np.unique(targets)
    if len(there) == 1:
        found[:, there[0]] = 1
        return found
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # what it has come to by then will do
        # As many weights as the encoder has dimensions: held back, or they would fit the wrong labels, too.
        model = LogisticRegression(C=0.01, max_iter=200).fit(known, targets)
    found[:, model.classes_] = model.predict_proba(asked)
    return found


def tuned_probabilities(
    config: Config, prepared: Prepared, folds: list[tuple[np.ndarray, np.ndarray]], listener: Listener
) -> np.ndarray:
    """Probabilities [rows, labels], each row by a model that was trained on the other folds as configured."""
    import polars as pl

    from bertune.training.checkup import UNCHECKED
    from bertune.training.run import run

    task, train = prepared.task, prepared.train
    said = task.names(train.targets if task.kind == "single" else train.targets > 0.5)
    frame = train.table.frame.with_columns(pl.Series(_LABEL, said))
    alone = config.updated({
        "data": {
            "files": [], "valid": None, "test": None, "hold_out": False, "fold": None, "plan": None, "group": None,
            "text": list(task.text), "text_pair": list(task.text_pair), "label": [_LABEL], "task": task.kind,
            "labels": list(task.labels), "label_names": None, "label_sep": None, "drop_label": [], "layout": "auto",
            "share": 1.0, "share_seed": 0, "split_seed": 0,
        },
        "train": {"patience": None}, "decide": DecideConfig().model_dump(), "check": UNCHECKED,
        "report": {"baselines": False, "slices": []},
    })  # fmt: skip
    found = np.zeros((len(train), task.num_labels))
    for number, (learned, left) in enumerate(folds, 1):
        listener.say(f"Fold {number} of {len(folds)}:")
        with tempfile.TemporaryDirectory(prefix="bertune-") as place:
            result = run(alone, out=Path(place) / "fold", source=frame[learned], listener=listener)
            predictor = result.predictor()
            found[left] = predictor.probabilities(predictor.logits_of_table(train.table.take(left), task))
    return found
