"""Memory of `bertune predict` on 100,000 and on 1,000,000 rows: it must not grow with the file.

    python benchmarks/predict_memory.py --json predict_memory.json
    python benchmarks/predict_memory.py --bundle runs/papers --json predict_memory.json

Without --bundle a tiny classifier with random weights is made first: what reads, tokenizes and writes is the same, and
a million rows take minutes instead of hours. The rows are made up, with texts of different lengths. Peak memory is the
largest resident size that the system saw in the child process (Unix only).
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from corpora import embedded_encoder
from workers import ROOT, machine

COMMAND = [sys.executable, "-c", "import sys; from bertune.cli import main; sys.exit(main())"]
WORDS = [
    "the", "a", "of", "and", "in", "over", "between", "field", "model", "light", "galaxy", "market", "price", "protein",
    "cell", "graph", "theorem", "proof", "network", "noise", "quantum", "wave", "energy", "walk", "bound", "signal",
]


def main() -> None:
    options = _options()
    if not hasattr(os, "wait4"):
        sys.exit("the peak memory of a child process cannot be read on this system; run this on Linux or macOS.")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT / "src"), os.environ.get("PYTHONPATH")]))
    report: dict[str, Any] = {"machine": machine(), "runs": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # In a process of its own: on Linux a child's peak counts what its parent held when it was started.
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as other:
            bundle = options.bundle or other.submit(_tiny_bundle, folder).result()
        for rows in options.rows:
            source, target = folder / "rows.csv", folder / "scored.csv"
            _write_rows(source, rows)
            begin = time.perf_counter()
            peak = _peak_of([*COMMAND, "predict", str(bundle), str(source), "--out", str(target), "--quiet"])
            seconds = time.perf_counter() - begin
            with target.open(encoding="utf-8", newline="") as stream:
                written = sum(1 for _ in csv.reader(stream)) - 1
            if written != rows:
                sys.exit(f"predict wrote {written:,} of {rows:,} rows")
            run = {
                "rows": rows, "file_bytes": source.stat().st_size, "peak_memory_bytes": peak, "seconds": seconds,
                "rows_per_second": rows / seconds,
            }
            report["runs"].append(run)
            print(f"{rows:,} rows: {peak / 2**20:,.0f} MiB, {rows / seconds:,.0f} rows/s", file=sys.stderr)
            target.unlink()
    first, last = report["runs"][0], report["runs"][-1]
    report["growth_bytes_per_row"] = (last["peak_memory_bytes"] - first["peak_memory_bytes"]) / max(
        1, last["rows"] - first["rows"]
    )
    text = json.dumps(report, indent=2)
    if options.json:
        options.json.write_text(text + "\n", encoding="utf-8")
    else:
        print(text)


def _peak_of(command: list[str]) -> int:
    """Run a command; its largest resident size in bytes."""
    child = subprocess.Popen(command)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        sys.exit(f"{' '.join(command[3:])}: ended with {child.returncode}")
    return usage.ru_maxrss if sys.platform == "darwin" else usage.ru_maxrss * 1024


def _write_rows(path: Path, rows: int) -> None:
    draw = random.Random(0)
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["number", "text"])
        for number in range(rows):
            writer.writerow([number, " ".join(draw.choices(WORDS, k=draw.randint(3, 20)))])


def _tiny_bundle(folder: Path) -> Path:
    """A classifier of one narrow layer, trained for a few steps."""
    from transformers import AutoTokenizer, BertConfig, BertModel

    encoder = folder / "encoder"
    shape = BertConfig(
        vocab_size=30522, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64
    )
    BertModel(shape).save_pretrained(encoder)
    AutoTokenizer.from_pretrained(embedded_encoder()).save_pretrained(encoder)
    draw = random.Random(1)
    with (folder / "train.csv").open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["text", "label"])
        for number in range(400):
            writer.writerow([" ".join(draw.choices(WORDS, k=8)), ("even", "odd")[number % 2]])
    bundle = folder / "bundle"
    options = ["--text", "text", "--label", "label", "--model", str(encoder), "--epochs", "1", "--quiet"]
    subprocess.run([*COMMAND, "train", str(folder / "train.csv"), *options, "--out", str(bundle)], check=True)
    return bundle


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, help="result of bertune train on one text column named 'text'")
    counts = [100_000, 1_000_000]
    parser.add_argument("--rows", type=lambda text: [int(part) for part in text.split(",")], default=counts)
    parser.add_argument("--json", type=Path, help="file for the result (default: standard output)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
