"""bertune.Classifier: the same training behind scikit-learn's fit, predict, predict_proba and score."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted

from bertune.config import Config
from bertune.data.rows import is_missing
from bertune.errors import ConfigError, DataError, Interrupted
from bertune.files import temporary_path
from bertune.folder import BUNDLE_FILE, check_model_stays, check_output, replace_output
from bertune.settings import by_name
from bertune.ship.predict import Predictor
from bertune.training.finish import GOOD
from bertune.training.run import run

_FIRST, _SECOND, _LABEL = "text", "text_pair", "label"


class Classifier(ClassifierMixin, BaseEstimator):
    """Fine-tuned encoder as a scikit-learn classifier; works in `cross_val_score`, `GridSearchCV` and `Pipeline`.

    X: texts (list, array, Series), pairs as tuples or an array [n, 2], or a pandas, polars or Arrow frame. y: one label
    a row (of any type that numpy can sort), or 0/1 indicators [n, labels]; `predict` answers in kind.

    text, text_pair: column names, for frames; by default every column is text of the first side. validation: share of
    the rows that chooses the best epoch and is not trained on (None: all rows train, the last epoch counts).
    settings: any other option by its dotted name, for example {"train.schedule": "cosine"}. out: folder for the
    result, where only this estimator's own earlier one is replaced; by default a temporary one that lives as long as
    the estimator.

    After `fit`: classes_ (labels in the order of `predict_proba`), model_ (`Predictor`), metrics_ (of the run), and
    feature_names_in_ where X was a frame: the columns that are read, whatever their order in later frames.
    """

    def __init__(
        self, *, model: str = "mini", text: str | Sequence[str] | None = None,
        text_pair: str | Sequence[str] | None = None, epochs: int | None = None, batch_size: int | None = None,
        lr: float | None = None, max_length: int | None = None, pooling: str = "auto", head: str = "auto",
        freeze: str = "none", validation: float | None = None, seed: int = 0,
        settings: Mapping[str, Any] | None = None, out: str | Path | None = None,
    ) -> None:
        self.model = model
        self.text = text
        self.text_pair = text_pair
        self.epochs = epochs
        self.batch_size = batch_size
        self.lr = lr
        self.max_length = max_length
        self.pooling = pooling
        self.head = head
        self.freeze = freeze
        self.validation = validation
        self.seed = seed
        self.settings = settings
        self.out = out

    def fit(self, X: Any, y: Any) -> Classifier:
        """Train; raises InputError for what cannot be used and TrainingError when training fails."""
        columns, first, second = self._columns(X, _names(self.text), _names(self.text_pair))
        target = _target(y, len(next(iter(columns.values()))))
        taken = sorted(set(columns) & set(target.columns))
        if taken:
            raise DataError(
                f"X: the column '{taken[0]}' would be read as text, and has the name of the labels. Name the text "
                "columns with text=[...], or rename it."
            )
        data = {
            "text": first, "text_pair": second, "label": list(target.columns), "valid": self.validation,
            "hold_out": False, "labels": target.names, "task": "multi" if target.multilabel else "single",
        }
        out, finalizer = self._folder()
        config = self._config(data)
        self._run(config, {**columns, **target.columns}, out)
        # Only now, and all of it: a fit that fails leaves the earlier one whole.
        self._open(out, device=config.train.device)
        self.classes_, self.multilabel_ = target.classes, target.multilabel
        self.n_features_in_ = len(columns)
        self.__dict__.pop("feature_names_in_", None)
        if _column_names(X) is not None:
            self.feature_names_in_ = np.array([*first, *second], dtype=object)
        self.__dict__.pop("_finalizer", _nothing)()  # the folder of an earlier fit
        self._finalizer = finalizer
        return self

    def predict(self, X: Any) -> np.ndarray:
        """Labels [n] as y had them, or 0/1 [n, labels] where y did."""
        logits = self._logits(X)
        said = self.model_.rule.decide(self.model_.task.kind, logits)
        return said.astype(np.int64) if self.multilabel_ else self.classes_[said]

    def predict_proba(self, X: Any) -> np.ndarray:
        """float64 [n, labels], in the order of `classes_`."""
        logits = self._logits(X)
        return self.model_.probabilities(logits)

    def decision_function(self, X: Any) -> np.ndarray:
        """Logits [n, labels]; for two classes the difference [n], as scikit-learn's scorers expect."""
        logits = self._logits(X)
        two = not self.multilabel_ and logits.shape[1] == 2
        return logits[:, 1] - logits[:, 0] if two else logits

    def _logits(self, X: Any) -> np.ndarray:
        from bertune.data.tasks import Rows

        check_is_fitted(self, "model_")
        task = self.model_.task
        known = hasattr(self, "feature_names_in_")
        wanted = (list(task.text), list(task.text_pair)) if known else (_names(self.text), _names(self.text_pair))
        columns, first, second = self._columns(X, *wanted)
        found, fitted = len(first) + len(second), len(task.text) + len(task.text_pair)
        if found != fitted or bool(second) != task.is_pair:
            raise DataError(f"X has {found} texts a row, and was fitted with {fitted}; they must be the same.")

        def side(names: list[str]) -> tuple[list[str], ...]:
            return tuple([_text(value, row, name) for row, value in enumerate(columns[name], 1)] for name in names)

        return self.model_.logits_of(Rows(side(first), side(second) if second else None))

    def _config(self, data: dict[str, Any]) -> Config:
        # Searches and cross-validation fit many times, and hear nothing that is said: bertune.check looks once.
        config = Config().updated({"check": {"enabled": False}})
        for values in by_name(self.settings):
            config = config.updated(values, place="settings")
        model = {"name": str(self.model), "max_length": self.max_length, "pooling": self.pooling, "head": self.head,
                 "freeze": str(self.freeze)}
        train = {"epochs": self.epochs, "batch_size": self.batch_size, "lr": self.lr, "seed": self.seed}
        given = {"data": data, "model": model, "train": train}
        chosen = {part: {k: v for k, v in values.items() if v is not None} for part, values in given.items()}
        return config.updated(chosen, place="Classifier")

    def _columns(self, X: Any, first: list[str], second: list[str]) -> tuple[dict[str, Any], list[str], list[str]]:
        """Columns of X by name, those of the first side, and those of the second; the names count for frames only."""
        names = _column_names(X)
        if names is not None:
            columns = {str(name): _plain(X[name]) for name in names}
            first = first or [name for name in columns if name not in second]
            for name in (*first, *second):
                if name not in columns:
                    raise ConfigError(f"X has no column '{name}'; its columns are {', '.join(columns)}.")
            return {name: columns[name] for name in (*first, *second)}, first, second
        rows = _plain(X)
        if not rows:
            raise DataError("X: expected a list, array or frame of texts with at least one row.")
        rows = [row.tolist() if hasattr(row, "tolist") else row for row in rows]
        if isinstance(next((row for row in rows if not is_missing(row)), ""), str):
            texts = [_text(value, row, _FIRST, numbers=False) for row, value in enumerate(rows, 1)]
            return {_FIRST: texts}, [_FIRST], []
        widths = {len(row) if isinstance(row, list | tuple) else 0 for row in rows}
        if widths == {1}:
            return {_FIRST: [row[0] for row in rows]}, [_FIRST], []
        if widths == {2}:
            return {_FIRST: [row[0] for row in rows], _SECOND: [row[1] for row in rows]}, [_FIRST], [_SECOND]
        raise DataError("X: expected one text a row, or a pair of texts; name the columns with a frame for more.")

    def _folder(self) -> tuple[Path, Callable[[], object]]:
        """Where the result goes, and what removes it: a temporary folder goes with the estimator, a named one stays."""
        if self.out is not None:
            out, own = Path(self.out), getattr(self, "folder_", None)
            # Another estimator may answer from there, a clone of this one for example.
            if (out / BUNDLE_FILE).exists() and (own is None or own.resolve() != out.resolve()):
                raise ConfigError(f"out='{out}': the folder holds another result. Name another, or remove it.")
            return out, _nothing
        folder = Path(tempfile.mkdtemp(prefix="bertune-"))
        return folder / "model", weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)

    def _run(self, config: Config, source: dict[str, Any], out: Path) -> None:
        """Train into `out`; where an earlier fit lies there, beside it, until the new one is complete."""
        check_output(out, overwrite=True, inputs=config.read_files())
        again = (out / BUNDLE_FILE).exists()
        if again:
            from bertune.model.lowrank import foundations

            model = Path(self.model)
            check_model_stays(foundations(model) if model.is_dir() else [model], out)
        place = temporary_path(out.parent) if again else out
        try:
            run(config, source=source, out=place, overwrite=True)
            if again:
                replace_output(place, out)
        except Interrupted:
            # What scikit-learn lets through; of any other error a search would make a failed fit and go on.
            raise KeyboardInterrupt("training was stopped") from None
        finally:
            if again and not (place / "run" / GOOD).is_dir():  # where the error says that good weights are
                shutil.rmtree(place, ignore_errors=True)

    def _open(self, folder: Path, *, device: str = "auto") -> None:
        from bertune.training.outcome import read_metrics

        model = Predictor.load(folder, device=device, threads=self._config({}).train.threads)
        self.folder_, self.model_, self.metrics_ = folder, model, read_metrics(folder)

    def __getstate__(self) -> dict[str, Any]:
        """The files of the model travel along, so that joblib can store a fitted estimator or send it to a worker."""
        state = {name: value for name, value in super().__getstate__().items() if name not in ("model_", "_finalizer")}
        if hasattr(self, "model_"):
            state["folder_"] = {
                path.relative_to(self.folder_).as_posix(): path.read_bytes()
                for path in sorted(self.folder_.rglob("*")) if path.is_file()
            }
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        files = state.pop("folder_", None)
        super().__setstate__(state)
        if isinstance(files, dict):
            folder = Path(tempfile.mkdtemp(prefix="bertune-"))
            self._finalizer = weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
            for name, content in files.items():
                path = folder / "model" / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            self._open(folder / "model")


def _nothing() -> None:
    """Removes nothing."""


@dataclass(frozen=True)
class _Target:
    """What y says: label columns by name, label names in order, and the labels in that order as y had them."""

    columns: dict[str, list[Any]]
    names: list[str]
    classes: np.ndarray
    multilabel: bool


def _target(y: Any, count: int) -> _Target:
    """y for `count` rows. Raises DataError."""
    if y is None:
        raise DataError("y is missing: pass a label for each row.")
    given = _plain(y.toarray() if hasattr(y, "toarray") else y)  # the first: sparse indicators
    if given is None:
        raise DataError(f"y: expected one label a row, or 0/1 indicators [rows, labels]; found {y!r:.40}.")
    # numpy would make an integer of a date in nanoseconds.
    given = [value.tolist() if hasattr(value, "tolist") and not _is_date(value) else value for value in given]
    given = [value[0] if isinstance(value, list | tuple) and len(value) == 1 else value for value in given]
    if any(is_missing(value) for value in given):  # numpy would make a label 'nan' of them
        raise DataError("y: some labels are missing. Leave those rows out.")
    widths = {len(value) if isinstance(value, list | tuple) else None for value in given}
    nested = any(isinstance(cell, list | tuple) for value in given if isinstance(value, list | tuple) for cell in value)
    sets = any(isinstance(value, set | frozenset | dict) for value in given)
    if len(widths) > 1 or widths & {0, 1} or nested or sets:
        raise DataError(
            "y: expected one label a row, or 0/1 indicators [rows, labels]. Lists of labels become those with "
            "sklearn.preprocessing.MultiLabelBinarizer."
        )
    values = np.asarray(given)
    if len(values) != count:
        raise DataError(f"y has {len(values)} labels and X has {count} rows; they must be as many.")
    if values.ndim == 2:
        return _indicators(values, getattr(y, "columns", None))
    try:
        classes, numbers = np.unique(values, return_inverse=True)
    except TypeError:
        raise DataError("y: the labels are of kinds that have no common order. Make them all text.") from None
    names = [str(name) for name in classes]
    if len(set(names)) < len(names) or any(name != name.strip() or not name for name in names):
        names = [f"class {number}" for number in range(len(names))]
    return _Target({_LABEL: [names[number] for number in numbers]}, names, classes, multilabel=False)


def _indicators(values: np.ndarray, named: Any) -> _Target:
    """0/1 columns [rows, labels], `named` where y was a frame."""
    names = [f"label_{n}" for n in range(values.shape[1])] if named is None else [str(name) for name in named]
    classes = np.array(names, dtype=object) if named is not None else np.arange(values.shape[1])
    columns = {name: values[:, place].tolist() for place, name in enumerate(names)}
    return _Target(columns, names, classes, multilabel=True)


def _is_date(value: Any) -> bool:
    """Whether it is a date or a time span of numpy's, or an array of them."""
    return isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "mM"


def _column_names(X: Any) -> list[Any] | None:
    """Names of a frame's columns (Arrow tables have them elsewhere); None for anything else."""
    names = getattr(X, "column_names", None)
    names = getattr(X, "columns", None) if names is None else names
    return None if names is None else list(names)


def _text(value: Any, row: int, column: str, *, numbers: bool = True) -> str:
    """A cell as text: '' where nothing is in it; numbers of a frame become text, as in training."""
    if isinstance(value, str):
        return value
    if is_missing(value):
        return ""
    if numbers and isinstance(value, int | float):
        return str(value)
    raise DataError(f"X row {row}, column '{column}': expected text, found {type(value).__name__} {value!r:.40}.")


def _names(names: str | Sequence[str] | None) -> list[str]:
    return [] if names is None else [names] if isinstance(names, str) else list(names)


def _plain(values: Any) -> list[Any] | None:
    """List of Python values from arrays, Series and Arrow columns; None for what is no list of rows."""
    if isinstance(values, np.ndarray) and values.ndim and _is_date(values):
        return list(values) if values.ndim == 1 else [_plain(row) for row in values]
    if isinstance(values, str | bytes | Mapping | set | frozenset):
        return None
    for method in ("to_list", "tolist", "to_pylist"):
        if hasattr(values, method):
            found = getattr(values, method)()
            return found if isinstance(found, list) else None  # an array without axes holds one value
    if hasattr(values, "to_numpy"):
        return _plain(values.to_numpy())
    return list(values) if isinstance(values, Iterable) else None
