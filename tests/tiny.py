"""A tiny random BERT in a folder, and tiny tables to train it on: whole runs in a second or two."""

from __future__ import annotations

import csv
import random
from pathlib import Path

GOOD = ("good", "great", "lovely", "fine")
BAD = ("bad", "awful", "poor", "dull")
THINGS = ("film", "book", "song", "meal", "game", "trip")
FILLERS = ("the", "was", "a", "very", "it", "and", "really", "we", "saw", "had")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def write_tiny_bert(folder: Path, *, seed: int = 0) -> Path:
    """config.json, model.safetensors and vocab.txt of a BERT with 2 layers, 32 wide, with random weights."""
    import torch
    import transformers

    words = [*SPECIAL, *GOOD, *BAD, *THINGS, *FILLERS, *"abcdefghijklmnopqrstuvwxyz", *map("##{}".format, "aeilnorst")]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    config = transformers.BertConfig(
        vocab_size=len(words), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=64, initializer_range=0.2,
    )  # fmt: skip
    torch.manual_seed(seed)
    transformers.BertModel(config).save_pretrained(folder)
    return folder


def sentences(count: int, *, seed: int = 0) -> list[tuple[str, str]]:
    """(text, label): the label is told by one word, `positive` or `negative`, in turn."""
    chooser = random.Random(seed)
    rows = []
    for index in range(count):
        label, words = (("positive", GOOD), ("negative", BAD))[index % 2]
        text = f"the {chooser.choice(THINGS)} was {chooser.choice(FILLERS)} {chooser.choice(words)}"
        rows.append((text, label))
    return rows


def write_table(path: Path, header: tuple[str, ...], rows: list[tuple[object, ...]]) -> Path:
    """A CSV, or a TSV by its name."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",", lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
    return path


def single_label_table(path: Path, count: int = 60, *, seed: int = 0) -> Path:
    """Columns text, label."""
    return write_table(path, ("text", "label"), list(sentences(count, seed=seed)))


def multi_label_table(path: Path, count: int = 60, *, seed: int = 0) -> Path:
    """Columns TITLE, ABSTRACT and the 0/1 columns film, book, `old | new`."""
    chooser = random.Random(seed)
    rows: list[tuple[object, ...]] = []
    for _ in range(count):
        flags = [chooser.random() < 0.5 for _ in range(3)]
        words = [word for word, chosen in zip(("film", "book", "song"), flags, strict=True) if chosen]
        rows.append((" ".join(words) or "it", f"we saw {chooser.choice(GOOD)}", *map(int, flags)))
    return write_table(path, ("TITLE", "ABSTRACT", "film", "book", "old | new"), rows)


def pair_table(path: Path, count: int = 60, *, seed: int = 0) -> Path:
    """Columns gold_label, sentence1, sentence2 as in SNLI; every tenth label is '-'."""
    chooser = random.Random(seed)
    rows: list[tuple[object, ...]] = []
    for index in range(count):
        thing, other = chooser.choice(THINGS), chooser.choice(THINGS)
        label = "-" if index % 10 == 9 else ("same", "other")[index % 2]
        rows.append((label, f"we saw the {thing}", f"a {thing if index % 2 == 0 else other} it was"))
    return write_table(path, ("gold_label", "sentence1", "sentence2"), rows)
