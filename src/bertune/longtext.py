"""What is read of a text that is longer than the model reads: its beginning, its end, both, or all of it in chunks.

Sun et al. 2019 (arXiv 1905.05583), section 5.3.1, compare these for one text; here each side of a pair has its own way.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from bertune.errors import ConfigError

HEAD = 128  # tokens of the beginning that head+tail keeps by default, as in the paper
MOST_CHUNKS = 32
WAYS = ("head", "tail", "head+tail", "N+tail", "hierarchical")


@dataclass(frozen=True)
class LongText:
    """How each side is read: head, tail, head+tail, N+tail (N tokens of the beginning, then the end), or hierarchical.

    Hierarchical: the whole side, in chunks that each stand in a sequence of their own (with the other side of a pair,
    which is then cut by its own way); one side at most. overlap: tokens that neighbouring chunks share; most: chunks of
    a row, what lies behind them is cut.
    """

    first: str = "head"
    second: str = "head"
    overlap: int = 0
    most: int = MOST_CHUNKS

    def __post_init__(self) -> None:
        for way in (self.first, self.second):
            check_way(way)
        if self.first == self.second == "hierarchical":
            raise ConfigError("hierarchical: only one side of a pair can be read in chunks; cut the other one.")

    @property
    def chunked(self) -> int | None:
        """The side that is read in chunks, 0 or 1."""
        ways = (self.first, self.second)
        return ways.index("hierarchical") if "hierarchical" in ways else None

    def sentence(self, max_length: int, truncation: str, *, pair: bool) -> str:
        """What is read, for people."""
        if self.chunked is None:
            start = f"It reads at most {max_length} tokens, special ones included. Of a longer input "
            if not pair:
                return f"{start}{_SHOWN.get(self.first) or _both_ends(self.first)}."
            if self.first == self.second == "head":
                return f"{start}{_LOSES[truncation]} its end." if truncation in _LOSES else f"{start}{_SHOWN['head']}."
            ways = (_SHOWN.get(way) or _both_ends(way) for way in (self.first, self.second))
            loser = _LOSES.get(truncation, "the second side, then the first, loses").removesuffix(" loses")
            return f"{start}{loser} is cut; of the first side {next(ways)}, of the second {next(ways)}."
        which = ("The first side" if self.chunked == 0 else "The second side") if pair else "A text"
        shared = f" that share {self.overlap} tokens" if self.overlap else ""
        beside = f", beside the other side ({(self.first, self.second)[1 - self.chunked]})" if pair else ""
        return (
            f"{which} that does not fit into {max_length} tokens, special ones included, is read in up to {self.most} "
            f"chunks of that size{shared}{beside}."
        )


_LOSES = {"longest-first": "the longer side loses", "only-second": "the second side loses"}
_SHOWN = {"head": "only the beginning is read", "tail": "only the end is read"}


def _both_ends(way: str) -> str:
    return f"the first {HEAD if way == 'head+tail' else way.removesuffix('+tail')} tokens and the end are read"


def check_way(way: str) -> None:
    """Raise ConfigError for what is none of WAYS."""
    if way not in WAYS[:3] and way != "hierarchical" and not re.fullmatch(r"[1-9][0-9]*\+tail", way):
        raise ConfigError(f"'{way}' is no way to read a long text; expected one of {', '.join(WAYS)}.")
