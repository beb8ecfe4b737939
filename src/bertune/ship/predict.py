"""Predictor: rows in; labels, probabilities or logits out, in the order given, whichever backend computes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from bertune.bundle import Bundle
from bertune.data.rows import rows_from_python
from bertune.data.tasks import Rows, Task
from bertune.data.tokens import Encoded, Tokenizer
from bertune.errors import ConfigError, DataError, ModelError, listed, nearest
from bertune.evaluate.metrics import check_finite
from bertune.evaluate.mix import estimated_shares
from bertune.evaluate.rule import Rule
from bertune.folder import BUNDLE_FILE

if TYPE_CHECKING:
    from bertune.data.read import Table
    from bertune.explain.explanation import Explanation

CHUNK = 4096  # rows tokenized and computed at once: enough to sort by length, little enough for any memory


class Backend(Protocol):
    """What computes logits."""

    def logits(self, encoded: Encoded, *, advance: Callable[[int], None] | None = None) -> np.ndarray:
        """float32 [rows, labels]; `advance` is told from time to time how many rows are done."""


class Predictor:
    """A trained model, ready to answer.

    Rows are strings; for pairs tuples (first, second); or dicts by column name; or a pandas, polars or Arrow frame.
    """

    def __init__(self, bundle: Bundle, tokenizer: Tokenizer, backend: Backend) -> None:
        self.bundle, self.tokenizer, self.backend = bundle, tokenizer, backend

    @classmethod
    def load(
        cls, folder: str | Path, *, device: str = "auto", precision: str = "fp32", threads: int | None = None
    ) -> Predictor:
        """Open a result of `bertune train`, its files verified against their hashes.

        precision fp32 answers as transformers does; bf16 is faster where the processor has it, and differs in the
        third digit. Raises ModelError for a folder that is no result or is damaged.
        """
        bundle = Bundle.read(folder)
        from bertune.ship.torch_backend import EnsembleBackend, TorchBackend

        folder = Path(folder)
        how: dict[str, Any] = {"device": device, "precision": precision, "threads": threads}
        backend = EnsembleBackend(folder, bundle, **how) if bundle.members else TorchBackend(folder, **how)
        outputs = backend.model.head.config.num_labels
        if outputs != len(bundle.task.labels):
            raise ModelError(
                f"{folder / BUNDLE_FILE}: 'task.labels' names {len(bundle.task.labels)} labels, but the model has "
                f"{outputs} outputs; the file is damaged. Copy the folder again."
            )
        return cls(bundle, Tokenizer.load(folder), backend)

    @property
    def task(self) -> Task:
        return self.bundle.task

    @property
    def rule(self) -> Rule:
        """How logits become answers."""
        return self.bundle.decision

    @property
    def labels(self) -> tuple[str, ...]:
        """Label names, in the order of every column below."""
        return self.bundle.task.labels

    def logits(self, rows: Any) -> np.ndarray:
        """float32 [rows, labels], before softmax or sigmoid."""
        return self.logits_of(self.rows(rows))

    def predict_proba(self, rows: Any) -> np.ndarray:
        """Calibrated probabilities, float64 [rows, labels]; rows sum to 1 for one label a row, and each cell stands
        alone for many."""
        return self.probabilities(self.logits(rows))

    def predict(self, rows: Any, *, threshold: float | None = None) -> list[Any]:
        """A label name a row; a list of label names a row where there may be many, then from `threshold` on where it
        is given instead of the model's own thresholds."""
        chosen = self if threshold is None else self.with_threshold(threshold)
        return chosen.names(chosen.logits(rows))

    def names(self, logits: np.ndarray) -> list[Any]:
        """The decision on each row of logits, as label names."""
        return self.task.names(self.rule.decide(self.task.kind, logits))

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """Calibrated probabilities of logits, float64 [rows, labels]."""
        return self.rule.probabilities(self.task.kind, logits)

    def predict_set(self, rows: Any) -> list[list[str]]:
        """The labels that each row may have, the right one among them as often as was asked for in training;
        ConfigError where nothing was asked."""
        if self.rule.sets is None:
            raise ConfigError("the model tells no sets; train it with --coverage, for example --coverage 0.9.")
        return self.sets(self.logits(rows))

    def sets(self, logits: np.ndarray) -> list[list[str]]:
        """The labels that rows of logits may have, the likeliest first."""
        kind = self.task.kind
        inside, shares = self.rule.label_sets(kind, logits), self.rule.probabilities(kind, logits)
        order = np.argsort(-shares, axis=1, kind="stable")
        return [
            [self.labels[place] for place in places if held[place]] for places, held in zip(order, inside, strict=True)
        ]

    def abstains(self, rows: Any) -> np.ndarray:
        """Whether a person has to be asked about each row, bool [rows]; ConfigError where no accuracy was asked for in
        training."""
        if self.rule.abstain is None:
            raise ConfigError("the model answers always; train it with --accuracy, for example --accuracy 0.95.")
        return self.rule.abstains(self.task.kind, self.logits(rows))

    def explain(
        self, rows: Any, *, label: str | None = None, steps: int | None = None, neighbors: int = 3, data: Any = None
    ) -> list[Explanation]:
        """Which words made each row's label, and which training rows the model sees as most alike; in their order.

        Scores are integrated gradients of the label's logit (before calibration), in fp32, against padding in place of
        the words. label: explained for every row; by default what the model says, of several labels each on its own,
        and the most probable where it says none. steps: of the integration; by default 32, doubled to at most 512 until
        the scores add up within 2 %. neighbors: how many training rows; they are read from where the run says they
        lie, or from `data`, files or data as `bertune.train` takes it. Raises InputError.
        """
        from bertune.explain.explain import explain_rows

        return explain_rows(self, self.rows(rows), label=label, steps=steps, neighbors=neighbors, data=data)

    def with_threshold(self, threshold: float) -> Predictor:
        """The same model, giving every label from a calibrated probability of `threshold` on; ConfigError where it
        gives exactly one label a row."""
        if not isinstance(threshold, Real):
            raise ConfigError(f"--threshold {threshold!r:.60}: expected a number between 0 and 1.")
        if self.task.kind == "single":
            raise ConfigError(f"--threshold {threshold:g}: this model gives the likeliest label; leave it out.")
        if not 0 < threshold < 1:
            raise ConfigError(f"--threshold {threshold:g}: lies between 0 and 1.")
        rule = self.rule.with_threshold(threshold, len(self.labels))
        return Predictor(self.bundle.model_copy(update={"decision": rule}), self.tokenizer, self.backend)

    def estimate_mix(self, rows: Any) -> dict[str, float]:
        """How frequent each label is among unlabelled rows, where only that differs from the validation rows; DataError
        for no rows."""
        return self.estimated_mix(self.logits(rows))

    def estimated_mix(self, logits: np.ndarray) -> dict[str, float]:
        """The same from the logits of the rows."""
        self._check_mix()
        if not len(logits):
            raise DataError("label mix: there are no rows to estimate it from.")
        shares = estimated_shares(self.task.kind, self.probabilities(logits), np.array(self.rule.shares))
        return dict(zip(self.labels, shares.tolist(), strict=True))

    def with_label_mix(self, mix: Mapping[str, float]) -> Predictor:
        """The same model for rows among which labels are as frequent as `mix` says: shares between 0 and 1 by label.

        Of one label a row they are given for all labels and sum to 1; of several, labels that are left out stay as
        frequent as they were. Sets and abstention were promised for other rows, and are left out. Raises ConfigError.
        """
        self._check_mix()
        if not isinstance(mix, Mapping):
            some = f"{{'{self.labels[0]}': 0.5}}"
            raise ConfigError(f"label mix: expected shares by label, such as {some}; found {mix!r:.60}.")
        for label, share in mix.items():
            if label not in self.labels:
                near = nearest(str(label), self.labels) or f"; expected {listed(self.labels)}."
                raise ConfigError(f"label mix: '{label}' is not a label of this model{near}")
            if not isinstance(share, Real):
                raise ConfigError(f"label mix: '{label}' has the share {share!r:.60}; shares are numbers from 0 to 1.")
            if not 0 <= share <= 1:
                raise ConfigError(f"label mix: '{label}' has the share {share:g}; shares lie between 0 and 1.")
        if self.task.kind == "single":
            missing = [label for label in self.labels if label not in mix]
            if missing:
                raise ConfigError(f"label mix: gives no share to {listed(missing)}; every label needs one.")
            if abs(sum(mix.values()) - 1) > 0.01:
                raise ConfigError(f"label mix: the shares sum to {sum(mix.values()):g}; they have to sum to 1.")
        shares = np.array([mix.get(label, own) for label, own in zip(self.labels, self.rule.shares, strict=True)])
        rule = self.rule.with_shares(self.task.kind, shares)
        return Predictor(self.bundle.model_copy(update={"decision": rule}), self.tokenizer, self.backend)

    def _check_mix(self) -> None:
        if not self.rule.shares:
            raise ConfigError(
                "the model does not know how frequent its labels were where it was measured, since it was trained "
                "without validation rows; label mixes need that. Train it with --valid."
            )

    def logits_of(self, rows: Rows) -> np.ndarray:
        """Logits of rows that are already told apart into columns; in chunks, so memory does not grow with texts.

        Raises TrainingError where they are no numbers.
        """
        parts = [self.backend.logits(self.encode(part)) for part in _chunks(rows)]
        found = np.concatenate(parts) if parts else np.zeros((0, len(self.labels)), dtype=np.float32)
        check_finite(found)
        return found

    def encode(self, rows: Rows) -> Encoded:
        """Tokens of rows, cut as in training."""
        return self.tokenizer.encode(rows, **self.bundle.reading)

    def logits_of_table(self, table: Table, task: Task) -> np.ndarray:
        """Logits of a table whose text columns `task` names; missing texts count as empty, so no row is lost."""
        from bertune.data.tasks import rows_of

        readable = readable_task(task, table.columns, self.tokenizer)
        return self.logits_of(rows_of(readable, table, allow_empty=True))

    def rows(self, rows: Any) -> Rows:
        """Rows as `predict` takes them, as the texts of each side. Raises InputError."""
        if isinstance(rows, Rows):
            return rows
        rows = list(rows) if isinstance(rows, Iterator) else rows
        return rows_from_python(readable_task(self.task, _columns(rows), self.tokenizer), rows)


def readable_task(task: Task, columns: list[str], tokenizer: Tokenizer) -> Task:
    """`task` reading SNLI's binary parses for its sentences, where the tokenizer wants words and they are there."""
    from dataclasses import replace

    first, second = (tuple(f"{name}_binary_parse" for name in side) for side in (task.text, task.text_pair))
    there = all(name in columns for name in (*first, *second))
    return replace(task, text=first, text_pair=second) if tokenizer.takes_parses and there else task


def _columns(rows: Any) -> list[str]:
    """The columns that every row has; none where rows are no dicts."""
    if isinstance(rows, Mapping):
        return list(rows)
    found = getattr(rows, "column_names", None)  # Arrow; its `columns` are the data
    found = getattr(rows, "columns", None) if found is None else found
    if found is not None:
        return list(found)
    if isinstance(rows, Sequence) and rows and all(isinstance(row, Mapping) for row in rows):
        return [name for name in rows[0] if all(name in row for row in rows)]
    return []


def _chunks(rows: Rows) -> Iterator[Rows]:
    for begin in range(0, len(rows), CHUNK):
        yield rows.slice(begin, begin + CHUNK)
