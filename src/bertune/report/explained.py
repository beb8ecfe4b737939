"""Which words made the costliest errors, as markup for the page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from bertune.bundle import Bundle
from bertune.errors import BertuneError, MissingExtraError, printable
from bertune.explain.explain import check_explainable, unseen
from bertune.explain.markup import fragment
from bertune.report.mistakes import Mistake

if TYPE_CHECKING:
    from markupsafe import Markup

    from bertune.report.gather import Gathered

QUICK, STEPS = 5, 32  # errors, and steps of each, that a training explains by itself: some seconds


def explained(
    gathered: Gathered, *, limit: int, quick: bool, data: Any = None, work: Any = unseen
) -> tuple[dict[int, Markup], str]:
    """Markup for the first `limit` mistakes by their position, and a sentence about it for the page.

    quick: few steps and no nearest training rows, which takes the encoder over all of them. A row of one label is
    explained for the answer given, of several for the label that it turned on most. What keeps a model from being
    explained is told in the sentence; nothing is raised for it.
    """
    from markupsafe import Markup

    wanted = [mistake for mistake in gathered.mistakes if mistake.texts and mistake.shares][:limit]
    if not wanted:
        return {}, ""
    try:
        check_explainable(Bundle.read(gathered.out, verify=False))
        pieces = _pieces(gathered, wanted, quick=quick, data=data, work=work)
    except MissingExtraError:
        return {}, "With pip install 'bertune[explain]', bertune report shows which words made them."
    except BertuneError as error:
        return {}, f"Their words are not explained: {printable(str(error))}"
    told = "" if not quick else f" bertune report {gathered.name} explains all, with the nearest training rows."
    colours = "Blue words spoke for the label named, orange ones against it, by integrated gradients."
    return {place: Markup(piece) for place, piece in pieces.items()}, colours + told


def _pieces(
    gathered: Gathered, wanted: Sequence[Mistake], *, quick: bool, data: Any, work: Any
) -> dict[int, str]:
    from bertune.ship.predict import Predictor

    predictor = Predictor.load(gathered.out)
    by_label: dict[str, list[Mistake]] = {}
    for mistake in wanted:
        label = mistake.said[0] if gathered.task.kind == "single" else mistake.shares[0][0]
        by_label.setdefault(label, []).append(mistake)
    pieces = {}
    with work("Explaining the costliest errors", len(wanted)) as advance:
        for label, mistakes in by_label.items():
            found = predictor.explain(
                [dict(mistake.texts) for mistake in mistakes], label=label, steps=STEPS if quick else None,
                neighbors=0 if quick else 3, data=data,
            )  # fmt: skip
            for mistake, explanation in zip(mistakes, found, strict=True):
                pieces[mistake.position] = fragment(explanation, neighbors=not quick)
            advance(len(pieces))
    return pieces
