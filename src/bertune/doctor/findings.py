"""What the doctor found: a list of findings, each with its rows, what they mean, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

from bertune.errors import listed

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")


class Place(TypedDict):
    """A row as its owner finds it: the split it went to, its file, and its number there, counted from 1."""

    split: str
    file: str
    row: int


@dataclass(frozen=True)
class Finding:
    """One thing about the data that its owner should know.

    severity: error (training on it is meaningless), warning (results may mislead), note (worth knowing).
    count: how many rows, or labels, are concerned; rows: which ones, all of them (none where it is not about rows).
    """

    kind: str
    severity: Severity
    count: int
    message: str
    advice: str
    rows: tuple[Place, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "kind": self.kind, "severity": self.severity, "count": self.count, "rows": list(self.rows),
            "message": self.message, "advice": self.advice,
        }  # fmt: skip

    def sentence(self) -> str:
        """All of it in a line, with the first rows."""
        where = f" ({places_in_words(self.rows)})" if self.rows else ""
        return f"{self.severity}, {self.kind}: {self.message}{where}. {self.advice}"


def by_severity(findings: Iterable[Finding]) -> list[Finding]:
    """Errors first, then warnings, then notes; in the order in which they were found within each."""
    return sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))


def strictly(findings: Iterable[Finding]) -> list[Finding]:
    """The findings with every warning made an error."""
    return [
        Finding(**{**vars(finding), "severity": "error" if finding.severity == "warning" else finding.severity})
        for finding in findings
    ]


def places_in_words(places: Sequence[Place], limit: int = 3) -> str:
    """`test: papers.csv 3, 17, 29 (+9 more)`: the first rows, under the split and the file of the first of them."""
    split, file = places[0]["split"], places[0]["file"]
    here = [place["row"] for place in places if (place["split"], place["file"]) == (split, file)][:limit]
    rest = len(places) - len(here)
    return f"{split}: {file} {listed(here)}" + (f" (+{rest:,} more)" if rest else "")


def share(part: int, whole: int, what: str = "rows") -> str:
    """`12 of 500 rows (2.4 %)`."""
    percent = 100 * part / whole
    shown = f"{percent:.1f}" if percent >= 0.1 or not part else f"{percent:.2g}"
    return f"{part:,} of {whole:,} {what} ({shown} %)"


def plural(count: int, one: str, several: str | None = None) -> str:
    """`1 row`, `2 rows`."""
    return f"{count:,} {one if count == 1 else several or one + 's'}"
