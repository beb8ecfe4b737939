"""How pictures are drawn and kept: one SVG that stands alone as a file, and the same one laid into a page.

In a page, text and axes take the colour of the text around them and the series take theirs from the style sheet, so
that a picture reads on light and on dark; text stays text, for search, for screen readers, and in the page's own font.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bertune.errors import printable
from bertune.evaluate.curves import COLOURS, FAINT, GRID, INK

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Hues that stay apart for colour-blind readers; series differ in their dashes, too.
BLUE, ORANGE, GREEN = COLOURS["train"], COLOURS["valid"], COLOURS["test"]
PURPLE, BROWN, GREY = "#8e5ea2", "#8c6d31", "#6e7781"
SERIES = ((BLUE, "-"), (ORANGE, "--"), (GREEN, "-."), (PURPLE, ":"), (BROWN, (0, (5, 1, 1, 1))), (GREY, (0, (8, 2))))
PAPER = "#fefefe"  # the background of a file; a page has its own
IN_PAGE = {
    INK: "currentColor", FAINT: "var(--faint)", GRID: "var(--grid)", PAPER: "none", BLUE: "var(--blue)",
    ORANGE: "var(--orange)", GREEN: "var(--green)", PURPLE: "var(--purple)", BROWN: "var(--brown)", GREY: "var(--grey)",
}  # fmt: skip
# Fonts that have what DejaVu lacks, where the machine has them: labels may be in any script.
FONTS = ("DejaVu Sans", "Noto Sans CJK SC", "Noto Sans SC", "PingFang SC", "Microsoft YaHei", "WenQuanYi Zen Hei",
         "Noto Sans Arabic", "Noto Sans Devanagari")  # fmt: skip


@dataclass(frozen=True)
class Picture:
    """name: of its files, and unique on a page; alt: what it shows, in words, for those who do not see it."""

    name: str
    alt: str
    svg: str
    png: bytes

    def inline(self) -> str:
        """The SVG as a part of an HTML page; its ids are its own, and nothing in it comes from outside."""
        start = self.svg.index("<svg")
        body = re.sub(r"\s*<metadata>.*?</metadata>", "", self.svg[start:], count=1, flags=re.DOTALL)
        head, body = body[: body.index(">") + 1], body[body.index(">") + 1 :]
        box = re.search(r'viewBox="([^"]+)"', head)
        assert box is not None, "matplotlib writes a viewBox"
        used = set(re.findall(r'(?:url\(#|href="#)([^")]+)', body))
        body = re.sub(r' id="([^"]+)"', lambda m: f' id="{self.name}-{m[1]}"' if m[1] in used else "", body)
        body = re.sub(r'(url\(#|href="#)', rf"\1{self.name}-", body).replace("xlink:href", "href")
        body = re.sub(r"font-family: [^;\"]*", "font-family: var(--font)", body)
        body = re.sub(r"font: ((?:\w+ )*[\d.]+px) [^;\"]*", r"font: \1 var(--font)", body)
        for colour, name in IN_PAGE.items():
            body = body.replace(colour, name)
        width = box[1].split()[2]
        title = f'<title id="{self.name}-title">{_escaped(self.alt)}</title>'
        return (
            f'<svg viewBox="{box[1]}" role="img" aria-labelledby="{self.name}-title" style="--width:{width}px">'
            f"{title}{_shorter(body)}"
        )


def picture(name: str, alt: str, size: tuple[float, float], draw: Callable[[Figure], None]) -> Picture:
    """Draw once; `size` in inches."""
    import matplotlib
    from matplotlib import font_manager
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    there = {font.name for font in font_manager.fontManager.ttflist}
    style: Any = {
        "svg.fonttype": "none", "svg.hashsalt": name,  # text stays text, and the same run gives the same bytes
        "font.family": [font for font in FONTS if font in there] or ["sans-serif"], "font.size": 9.0,
        "text.color": INK, "axes.labelcolor": INK, "axes.facecolor": "none",
    }  # fmt: skip
    with matplotlib.rc_context(style), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing", category=UserWarning)
        figure = Figure(figsize=size, dpi=160, facecolor=PAPER, layout="constrained")
        FigureCanvasAgg(figure)
        draw(figure)
        raster, vector = io.BytesIO(), io.StringIO()
        figure.savefig(raster, format="png", metadata={"Software": None})
        figure.set_layout_engine("none")  # it stays where it was laid out
        figure.savefig(vector, format="svg", metadata={"Date": None, "Creator": None})
    return Picture(name, alt, vector.getvalue(), raster.getvalue())


def short(label: str, limit: int = 26) -> str:
    """A label as it fits beside an axis, on one line."""
    line = printable(label).strip() or "(empty)"
    return line if len(line) <= limit else line[: limit - 1] + "…"


def drawn(label: str, limit: int = 22) -> str:
    """The same for matplotlib, to which a pair of dollar signs would be a formula."""
    return short(label, limit).replace("$", r"\$")


def _shorter(body: str) -> str:
    """Fewer decimals of places, not of what is written: a hundredth of a point is more than a screen shows."""

    def rounded(match: re.Match[str]) -> str:
        return re.sub(r"(\.\d\d)\d+", r"\1", match[0])

    body = re.sub(r' (?:d|x|y|width|height|transform|points)="[^"]*"', rounded, body)
    return re.sub(r"\s*\n\s*", "\n", body)


def _escaped(text: str) -> str:
    import html

    return html.escape(printable(text), quote=True)
