"""An explanation as a piece of HTML that stands alone: everything escaped, no script, nothing loaded from elsewhere."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from bertune.explain.explanation import Explanation, Neighbor, Word

# Blue for the label, orange against it: the colour-blind tell them apart, and both do on light and on dark pages.
FOR, AGAINST = "31,119,220", "230,120,20"
STRONGEST = 0.75  # opacity of the word with the largest score

STYLE = """\
.explanation { margin: 1em 0; line-height: 1.9; }
.explanation .side { margin: .3em 0; white-space: pre-wrap; overflow-wrap: anywhere; }
.explanation .word { border-radius: .25em; padding: .1em 0; }
.explanation .told, .explanation table { font-size: .85em; line-height: 1.5; }
.explanation table { border-collapse: collapse; }
.explanation th, .explanation td { text-align: left; vertical-align: top; padding: .15em .8em .15em 0; }"""


def fragment(explanation: Explanation, *, neighbors: bool = True) -> str:
    """A `<div class="explanation">`: label, texts with coloured words, completeness, and the nearest training rows.

    A page that embeds it puts STYLE into a `<style>` once; without it the colours are there all the same.
    """
    found = explanation
    said = "" if found.predicted else ", not predicted"
    parts = [
        f'<div class="explanation" data-label="{escape(found.label)}">',
        f'<p class="told"><strong>{escape(found.label)}</strong>: probability {found.probability:.3f}{said}</p>',
        *(f'<p class="side">{marked(text, words)}</p>' for text, words in by_side(found)),
        f'<p class="told">{escape(found.completeness())}{escape(cut_in_words(found))}</p>',
    ]
    if neighbors and found.neighbors:
        parts.append(neighbor_table(found.neighbors))
    elif neighbors and found.remark:
        parts.append(f'<p class="told">{escape(found.remark)}</p>')
    return "\n".join([*parts, "</div>"])


def by_side(explanation: Explanation) -> list[tuple[str, list[tuple[Word, float]]]]:
    """For each side its text, and its words with their strength: score over the largest of the row, -1 to 1."""
    largest = max((abs(word.score) for word in explanation.words), default=0.0) or 1.0
    return [
        (text, [(word, word.score / largest) for word in explanation.words if word.side == side])
        for side, text in enumerate(explanation.texts)
    ]


def marked(text: str, words: Iterable[tuple[Word, float]]) -> str:
    """The text with a `<span>` around each word, its score in `data-score` and `title`."""
    parts, done = [], 0
    for word, strength in words:
        colour = FOR if strength > 0 else AGAINST
        parts += [
            escape(text[done : word.begin]),
            f'<span class="word" data-score="{word.score:.4f}" title="{word.score:+.4f}" '
            f'style="background:rgba({colour},{STRONGEST * abs(strength):.2f})">{escape(word.text)}</span>',
        ]
        done = word.end
    return "".join([*parts, escape(text[done:])])


def neighbor_table(neighbors: Iterable[Neighbor]) -> str:
    """The nearest training rows, one a line."""
    rows = [
        f"<tr><td>{row.similarity:.3f}</td><td>{escape(', '.join(row.labels) or '-')}</td>"
        f"<td>{'<br>'.join(map(escape, row.texts))}</td><td>{escape(row.file)} row {row.row}</td></tr>"
        for row in neighbors
    ]
    head = "<tr><th>similarity</th><th>label</th><th>nearest training rows</th><th>where</th></tr>"
    return "\n".join(["<table>", head, *rows, "</table>"])


def cut_in_words(explanation: Explanation) -> str:
    """A sentence about what the model did not read; empty where it read everything."""
    return f" The model did not read the last {explanation.cut:,} tokens." if explanation.cut else ""
