"""An explanation in a terminal: coloured words, and their scores in a table, which pipes and the colour-blind read."""

from __future__ import annotations

from typing import TYPE_CHECKING, TextIO

from bertune.commands.models import print_columns
from bertune.commands.output import print_table
from bertune.errors import printable
from bertune.explain.explanation import Explanation, Word
from bertune.explain.markup import by_side, cut_in_words

if TYPE_CHECKING:
    from rich.text import Text

SHOWN = 10  # words of the table
EXCERPT = 100  # characters of a training row
WEAK, STRONG = 0.05, 0.3  # share of the largest score from which a word is coloured
FOR, AGAINST = (31, 119, 220), (230, 120, 20)  # as on the page
SIDES = ("first", "second")


def show(explanation: Explanation, stream: TextIO, *, numbered: bool) -> None:
    """Label, texts, strongest words, completeness and nearest training rows, on stdout. numbered: say which row."""
    from rich.console import Console

    found = explanation
    place = f"Row {found.row + 1}: " if numbered else ""
    said = "" if found.predicted else " (not predicted)"
    print(f"{place}{printable(found.label)}{said}: probability {found.probability:.4f}, logit {found.logit:+.4f}")
    console = Console(file=stream, highlight=False)
    for text, words in by_side(found):
        if console.is_terminal and not console.no_color:
            console.print(coloured(text, words, shades=console.color_system != "standard"), soft_wrap=True)
        else:
            print(printable(text))
    if found.words:
        print()
        print_table(word_table(found))
    print(f"\n{found.completeness()}{cut_in_words(found)}")
    if found.neighbors:
        print()
        print_columns([["similarity", "label", "nearest training row", "text"], *neighbor_rows(found)])
    elif found.remark:
        print(printable(found.remark))


def coloured(text: str, words: list[tuple[Word, float]], *, shades: bool) -> Text:
    """The text with a background behind each word: blue for the label, orange against it, the stronger the deeper.

    shades: whether the terminal has them; one of sixteen colours shows the strong words alone.
    """
    from rich.text import Text

    shown = Text(printable(text))  # a Text has no markup, so brackets in it are brackets
    for word, strength in words:
        if abs(strength) >= (WEAK if shades else STRONG):
            shown.stylize(f"black on {background(strength, shades)}", word.begin, word.end)
    return shown


def background(strength: float, shades: bool) -> str:
    """A colour as rich calls it. strength: -1 to 1."""
    if not shades:
        return "bright_blue" if strength > 0 else "yellow"
    red, green, blue = (round(255 - abs(strength) * (255 - part)) for part in (FOR if strength > 0 else AGAINST))
    return f"rgb({red},{green},{blue})"


def word_table(explanation: Explanation) -> list[list[str]]:
    """The strongest words with their signed scores; of a pair with their side."""
    pair = len(explanation.texts) > 1
    table = [["strongest words", *(["side"] if pair else []), "score"]]
    for word in explanation.strongest(SHOWN):
        table.append([word.text, *([SIDES[word.side]] if pair else []), f"{word.score:+.4f}"])
    return table


def neighbor_rows(explanation: Explanation) -> list[list[str]]:
    """A training row a line, its texts shortened."""
    rows = []
    for near in explanation.neighbors:
        text = printable(" | ".join(near.texts))
        text = text if len(text) <= EXCERPT else text[: EXCERPT - 3] + "..."
        label = printable(", ".join(near.labels)) or "-"
        rows.append([f"{near.similarity:.3f}", label, printable(f"{near.file} row {near.row}"), text])
    return rows
