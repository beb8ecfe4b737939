"""Training speed on a GPU: BERT-base, random weights, beside transformers' Trainer in bf16, on SNLI and IMDb lengths.

    python benchmarks/gpu_speed.py --data ../shared/data --seconds 30 --json gpu_speed.json

Both sides train on the same tokenized rows with the same batch, taking turns; theirs is grouped by length. Tokens are
real ones, padding not counted. Model FLOPs utilisation is the arithmetic of these tokens (6 a weight of the layers'
matrices, 12 x layers x hidden x tokens of the row for attention) over the peak of the GPU in dense bf16.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from corpora import embedded_encoder, load, prepare
from workers import ROOT, Worker, alternate, machine, ratio

BATCHES = {"snli": 128, "imdb": 32}
# Dense bf16 TFLOP/s by a part of the device's name, the more specific first; from the makers' data sheets.
PEAKS = {"H100 PCIe": 756, "H200": 989, "H100": 989, "B200": 2250, "A100": 312, "L40S": 362, "L4": 121, "A10": 125,
         "4090": 165}
LAYERS, HIDDEN, FFN = 12, 768, 3072


def main() -> None:
    import torch

    options = _options()
    if not torch.cuda.is_available():
        sys.exit(
            "torch finds no GPU here, so there is nothing to measure; benchmarks/train_speed.py is for processors."
        )
    device = torch.cuda.get_device_name()
    peak = options.peak_tflops or next((figure for name, figure in PEAKS.items() if name in device), None)
    if peak is None:
        sys.exit(f"The peak of {device} is not known here; pass --peak-tflops with its dense bf16 figure.")
    report: dict[str, Any] = {"machine": {**machine(), "gpu": device, "peak_tflops": peak}, "seconds": options.seconds}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = _bert_base(folder)
        for chosen in options.sets:
            rows = options.rows / f"{chosen}.npz" if options.rows else prepare(chosen, options.data, folder)
            report[chosen] = compare(chosen, rows, model, peak, options)
    text = json.dumps(report, indent=2)
    if options.json:
        options.json.write_text(text + "\n", encoding="utf-8")
    else:
        print(text)


def compare(name: str, rows: Path, model: Path, peak: float, options: argparse.Namespace) -> dict[str, Any]:
    """Both sides on one data set, tokenized into the file `rows`."""
    flops = _flops_per_token(np.diff(load(rows)[0].offsets))
    common = {
        "rows": str(rows), "tokenizer": str(embedded_encoder()), "model": str(model), "device": "cuda",
        "batch": options.batch or BATCHES[name], "precision": "bf16", "optimizer": "adamw", "lr": 2e-5,
        "weight_decay": 0.01, "clip": 1.0,
    }
    theirs = {**common, "side": "trainer", "grouped": True, "attention": "sdpa"}
    with Worker("ours", {**common, "side": "ours"}) as first, Worker("trainer", theirs) as second:
        alternate([first, second], seconds=options.seconds, rounds=options.rounds, warm_up=options.warm_up)
        result: dict[str, Any] = {"ratio": ratio(first, second), "batch": common["batch"]}
        for worker in (first, second):
            worker.close()
            figures = worker.result()
            figures["flops_utilisation"] = figures["tokens_per_second"] * flops / (peak * 1e12)
            result[worker.name] = figures
            print(f"{name}, {worker.name}: {figures['tokens_per_second']:,.0f} tokens/s, "
                  f"{figures['flops_utilisation']:.1%} of the peak", file=sys.stderr)
    return result


def _flops_per_token(lengths: np.ndarray) -> float:
    """Forward and backward; a token's attention costs in proportion to its row, so rows weigh by their tokens."""
    seen = float((lengths.astype(np.float64) ** 2).sum() / lengths.sum())
    return LAYERS * (6 * (4 * HIDDEN**2 + 2 * HIDDEN * FFN) + 12 * HIDDEN * seen)


def _bert_base(folder: Path) -> Path:
    import torch
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    shape = BertConfig(
        vocab_size=30522, hidden_size=HIDDEN, num_hidden_layers=LAYERS, num_attention_heads=12, intermediate_size=FFN
    )
    BertModel(shape).save_pretrained(folder / "bert-base")
    return folder / "bert-base"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="folder of the data sets")
    parser.add_argument("--seconds", type=float, default=30, help="timed seconds of each side (default 30)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds these are cut into (default 3)")
    parser.add_argument("--warm-up", type=float, default=10, help="untimed seconds of each side first (default 10)")
    parser.add_argument("--rows", type=Path, help="folder of tokenized rows (corpora.prepare), instead of --data")
    parser.add_argument("--sets", type=lambda text: text.split(","), default=["snli", "imdb"], help="snli,imdb")
    parser.add_argument("--batch", type=int, help="examples per step (default 128 for SNLI, 32 for IMDb)")
    parser.add_argument("--peak-tflops", type=float, help="dense bf16 peak of the GPU, where it is not known here")
    parser.add_argument("--json", type=Path, help="file for the result (default: standard output)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
