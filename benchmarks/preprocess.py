"""Rows per second from file to token ids: bertune beside a plain loop over transformers' fast tokenizer.

    python benchmarks/preprocess.py --data ../shared/data --rounds 5 --json preprocess.json

Both read the training file (SNLI: 56k pairs as TSV; IMDb: 25k reviews as gzipped JSON lines) and tokenize all of it
with MiniLM's vocabulary, cut to 128 and 512 tokens; nothing is cached. Each pass is a process of its own, in turn, and
importing is not timed. The plain loop uses the csv and json modules and 1,000 rows a call.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import statistics
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path
from typing import Any

from corpora import SETS, embedded_encoder
from workers import ROOT, machine, peak_memory

FILES = {"snli": "train_subset.tsv", "imdb": "train.jsonl.gz"}


def main() -> None:
    options = _options()
    report: dict[str, Any] = {"machine": machine(), "rounds": options.rounds}
    for name in FILES:
        passes: dict[str, list[dict[str, Any]]] = {"ours": [], "plain": []}
        for _ in range(options.rounds):
            for side, done in passes.items():
                done.append(_pass(side, name, options))
        speeds = [theirs["seconds"] / ours["seconds"] for ours, theirs in zip(*passes.values(), strict=True)]
        if len({one["tokens"] for done in passes.values() for one in done}) > 1:
            sys.exit(f"{name}: the sides made different numbers of tokens")
        report[name] = {"ratio": statistics.median(speeds)}
        for side, done in passes.items():
            seconds = statistics.median(one["seconds"] for one in done)
            report[name][side] = {**done[-1], "seconds": seconds, "rows_per_second": done[-1]["rows"] / seconds}
            print(f"{name}, {side}: {done[-1]['rows'] / seconds:,.0f} rows/s", file=sys.stderr)
        print(f"{name}: {report[name]['ratio']:.2f} times as fast", file=sys.stderr)
    text = json.dumps(report, indent=2)
    if options.json:
        options.json.write_text(text + "\n", encoding="utf-8")
    else:
        print(text)


def _pass(side: str, name: str, options: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, __file__, "--data", str(options.data), "--child", side, name]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, encoding="utf-8", check=True)
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def ours(name: str, path: Path) -> dict[str, Any]:
    """bertune's reader and tokenizer."""
    sys.path.insert(0, str(ROOT / "src"))
    from bertune.config import DataConfig
    from bertune.data.read import read_table
    from bertune.data.tasks import infer_task, rows_of
    from bertune.data.tokens import Tokenizer

    pair = {"text": ["sentence1"], "text_pair": ["sentence2"], "label": ["gold_label"]}
    config = DataConfig(**(pair if name == "snli" else {"text": ["text"], "label": ["label"]}))
    tokenizer = Tokenizer.load(embedded_encoder())
    begin = time.perf_counter()
    table = read_table(path, config)
    task, _ = infer_task(table, config)
    rows = rows_of(task, table, allow_empty=False)
    middle = time.perf_counter()
    encoded = tokenizer.encode(rows, max_length=SETS[name], truncation="longest-first")
    end = time.perf_counter()
    return {"rows": len(encoded), "tokens": len(encoded.ids), "seconds": end - begin, "reading": middle - begin}


def plain(name: str, path: Path) -> dict[str, Any]:
    """The csv or json module, and transformers' tokenizer on 1,000 rows at a time."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(embedded_encoder())
    begin = time.perf_counter()
    if name == "snli":
        with path.open(encoding="utf-8", newline="") as stream:
            table = csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE)
            rows = [(row["sentence1"], row["sentence2"]) for row in table]
    else:
        with gzip.open(path, "rt", encoding="utf-8") as stream:
            rows = [(json.loads(line)["text"],) for line in stream]
    middle = time.perf_counter()
    ids: list[list[int]] = []
    source = iter(rows)
    while part := list(islice(source, 1000)):
        columns = [list(column) for column in zip(*part, strict=True)]
        ids += tokenizer(*columns, truncation=True, max_length=SETS[name])["input_ids"]
    end = time.perf_counter()
    return {"rows": len(ids), "tokens": sum(map(len, ids)), "seconds": end - begin, "reading": middle - begin}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="folder of the data sets")
    parser.add_argument("--rounds", type=int, default=5, help="passes of each side (default 5)")
    parser.add_argument("--json", type=Path, help="file for the result (default: standard output)")
    parser.add_argument("--child", nargs=2, metavar=("SIDE", "SET"), help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    chosen = _options()
    if chosen.child:
        side, name = chosen.child
        result = {"ours": ours, "plain": plain}[side](name, chosen.data / name / FILES[name])
        print(json.dumps({**result, "peak_memory_bytes": peak_memory()}))
    else:
        main()
