"""Explanations of rows: the words that made a label, and the training rows that are most alike."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from bertune.bundle import Bundle
from bertune.data.ragged import Encoded
from bertune.data.rows import Rows
from bertune.data.vocab import takeable
from bertune.errors import ConfigError, MissingExtraError, ModelError, listed, nearest
from bertune.explain.explanation import Explanation, Neighbor, Word
from bertune.explain.words import side_texts, words_of_tokens
from bertune.ship.predict import Predictor


@contextmanager
def unseen(what: str, rows: int) -> Iterator[Callable[[int], None]]:
    """Work that nobody is told about."""
    yield lambda done: None


def explain_rows(
    predictor: Predictor, rows: Rows, *, label: str | None = None, steps: int | None = None, neighbors: int = 3,
    data: Any = None, work: Any = unseen,
) -> list[Explanation]:
    """Explanations of rows, in their order; see `Predictor.explain`.

    work: like `progress.Display.work`, told how far the computation is.
    """
    check_explainable(predictor.bundle)
    check_options(predictor.labels, label=label, steps=steps, neighbors=neighbors)
    # torch and captum are imported where something is explained, and nowhere else.
    from bertune.explain.attribute import Attributor

    rows = readable(rows)
    backend = exact(predictor)
    attributor = Attributor(backend.model, pad_id=predictor.tokenizer.pad_id)
    near = Near.of(predictor, rows, backend, count=neighbors, data=data, work=work)
    encoded, places = predictor.encode(rows), places_of(predictor, rows)
    logits = backend.logits(encoded)
    probabilities = predictor.probabilities(logits)
    given = predictor.names(logits)
    found = []
    with (work if len(rows) > 1 else unseen)("Explaining", len(rows)) as advance:
        for row in range(len(rows)):
            own = predicted_labels(given[row])
            asked = [label] if label is not None else own or [predictor.labels[int(np.argmax(probabilities[row]))]]
            begin, end = encoded.offsets[row : row + 2]
            for name in asked:
                number = predictor.labels.index(name)
                shares = attributor.attribute(
                    encoded, row, of_text=places[begin:end, 0] >= 0, label=number, steps=steps
                )
                texts, words = words_with_scores(rows, row, places[begin:end], shares.tokens)
                found.append(Explanation(
                    row=row, label=name, logit=shares.logit, baseline=shares.baseline,
                    probability=float(probabilities[row, number]), predicted=name in own, texts=texts, words=words,
                    steps=shares.steps, error=shares.error, cut=tokens_cut(encoded, row),
                    neighbors=near.found[row], remark=near.remark,
                ))  # fmt: skip
            advance(row + 1)
    return found


def check_explainable(bundle: Bundle) -> None:
    """ModelError for a model that cannot be explained, MissingExtraError without captum; nothing is imported."""
    if bundle.encoder == "adapter":
        raise ModelError(
            f"{bundle.folder}: its encoder is outside the family and runs through transformers; only models with "
            "an encoder of the family (bert, roberta, distilbert, electra, modernbert) can be explained."
        )
    if bundle.members:
        raise ModelError(
            f"{bundle.folder}: is an ensemble of {len(bundle.members)} models, and words are explained of one. Its "
            "seeds are results of their own, in run/seeds/; explain one of them."
        )
    if importlib.util.find_spec("captum") is None:
        raise MissingExtraError("captum", "explain", "explaining a model")


def check_options(labels: tuple[str, ...], *, label: str | None, steps: int | None, neighbors: int) -> None:
    """ConfigError for options that this model cannot take."""
    if label is not None and label not in labels:
        near = nearest(label, labels) or "."
        raise ConfigError(f"--label {label}: not a label of this model, which has {listed(labels, 40)}{near}")
    if steps is not None and steps < 1:
        raise ConfigError(f"--steps {steps}: takes at least 1; leave it out, and as many as needed are taken.")
    if neighbors < 0:
        raise ConfigError(f"--neighbors {neighbors}: a number of rows; 0 shows none.")


def readable(rows: Rows) -> Rows:
    """The rows as the tokenizer reads them: halves of characters, which no output could hold, are U+FFFD."""
    first = tuple(takeable(column) for column in rows.first)
    return Rows(first, None if rows.second is None else tuple(takeable(column) for column in rows.second))


def exact(predictor: Predictor) -> Any:
    """A TorchBackend in fp32 on the predictor's device: its own, or the model opened anew where it computes in bf16."""
    import torch

    from bertune.ship.torch_backend import TorchBackend

    own = predictor.backend
    if isinstance(own, TorchBackend) and own.model.encoder.compute_dtype == torch.float32:
        return own
    assert predictor.bundle.folder is not None
    device, threads = (own.machine.device, own.machine.threads) if isinstance(own, TorchBackend) else ("auto", None)
    return TorchBackend(predictor.bundle.folder, device=device, precision="fp32", threads=threads)


def predicted_labels(given: Any) -> list[str]:
    """The answer to one row as a list of label names."""
    return [given] if isinstance(given, str) else list(given)


def places_of(predictor: Predictor, rows: Rows) -> np.ndarray:
    """`Tokenizer.places` as the model reads rows."""
    return predictor.tokenizer.places(rows, **predictor.bundle.reading)


def tokens_cut(encoded: Encoded, row: int) -> int:
    return int(encoded.full_lengths[row] - encoded.lengths[row])


def words_with_scores(
    rows: Rows, row: int, places: np.ndarray, scores: np.ndarray
) -> tuple[tuple[str, ...], tuple[Word, ...]]:
    """The text of each side of a row, and its words with the summed scores of their tokens.

    places: of the tokens of the row, int [tokens, 4]; scores: float [tokens]. Special tokens stand in the baseline too,
    so that theirs are 0.
    """
    words: list[Word] = []
    sides = side_texts(rows, row)
    for side, (text, begins) in enumerate(sides):
        there = np.flatnonzero(places[:, 0] == side)
        shift = np.array(begins)[places[there, 1]]
        spans = [(int(begin), int(end)) for begin, end in places[there, 2:] + shift[:, None]]
        found, owner = words_of_tokens(text, spans)
        sums = np.zeros(len(found))
        np.add.at(sums, owner, scores[there])
        words += [
            Word(side, begin, end, text[begin:end], float(total))
            for (begin, end), total in zip(found, sums, strict=True)
        ]
    return tuple(text for text, _ in sides), tuple(words)


@dataclass(frozen=True)
class Near:
    """found: the neighbors of each row; remark: why there are none."""

    found: list[tuple[Neighbor, ...]]
    remark: str

    @classmethod
    def of(cls, predictor: Predictor, rows: Rows, backend: Any, *, count: int, data: Any, work: Any) -> Near:
        from bertune.explain.nearest import Memory, training_rows, unit_states

        nothing: list[tuple[Neighbor, ...]] = [()] * len(rows)
        if count == 0 or not len(rows):
            return cls(nothing, "")
        trained = training_rows(predictor, data)
        if isinstance(trained, str):
            return cls(nothing, trained)
        budget = backend.machine.token_budget
        memory = Memory.of(trained, backend.model, predictor.bundle, budget=budget, work=work)
        return cls(memory.nearest(unit_states(backend.model, predictor.encode(rows), budget=budget), count), "")
