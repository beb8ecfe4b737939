"""bertune fine-tunes BERT-family encoders to classify text.

    bertune.check("papers.csv", text=["TITLE", "ABSTRACT"]).findings     # what is wrong with the data
    result = bertune.train("papers.csv", text=["TITLE", "ABSTRACT"], out="runs/papers")
    model = bertune.load("runs/papers")
    model.predict(["some text"]); model.predict_proba(...); model.logits(...)
    bertune.Classifier()          # the same as a scikit-learn estimator
    bertune.compare("runs/papers", "runs/papers-2")     # better, worse, or noise

Nothing heavy is imported before it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bertune.errors import (
    BertuneError,
    ConfigError,
    DataError,
    InputError,
    Interrupted,
    MissingExtraError,
    ModelError,
    TrainingError,
)

if TYPE_CHECKING:
    from bertune.api import check, compare, cross_validate, learning_curve, load, lr_range, multitask, pretrain, train
    from bertune.estimator import Classifier

__version__ = "0.1.0"

__all__ = [
    "BertuneError", "Classifier", "ConfigError", "DataError", "InputError", "Interrupted", "MissingExtraError",
    "ModelError", "TrainingError", "__version__", "check", "compare", "cross_validate", "learning_curve", "load",
    "lr_range", "multitask", "pretrain", "train",
]  # fmt: skip

_HOMES = {
    **dict.fromkeys(
        ("check", "compare", "cross_validate", "learning_curve", "load", "lr_range", "multitask", "pretrain", "train"),
        "bertune.api",
    ),
    "Classifier": "bertune.estimator",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'bertune' has no attribute '{name}'")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
