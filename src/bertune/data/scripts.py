"""Scripts that put no spaces between words."""

from __future__ import annotations

# Thai, Lao, Myanmar, Khmer; kana; ideographs. First and last characters.
UNSPACED = (
    (0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3040, 0x30FF), (0x31F0, 0x31FF), (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x323AF),
)  # fmt: skip


def is_unspaced(char: str) -> bool:
    """Whether a word may begin with this character where no space is before it."""
    return any(first <= ord(char) <= last for first, last in UNSPACED)
