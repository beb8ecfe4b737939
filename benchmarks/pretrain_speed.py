"""Pre-training speed beside transformers' run_mlm recipe, both sides in one run, taking turns.

    python benchmarks/pretrain_speed.py --data ../shared/data --seconds 60 --json pretrain.json

Both sides read the same text (the beginning of the books) with MiniLM's vocabulary of 30,522 pieces, and train an
encoder of the same shape with a masked-language head: all weights, dropout 0.1, AdamW, 15 % masked, clipping at 1.
Tokenization is not timed. The other side is what run_mlm.py does: texts joined and cut into blocks of 128 tokens
(`group_texts`), DataCollatorForLanguageModeling, Trainer. A ratio is the median over rounds of tokens a second. The
JSON holds

    ratio_best       our default against the recipe in bf16 at 64 blocks (as many tokens a step as ours), with freed
                     memory kept for the next step as ours keeps it
    ratio_default    our default against the recipe as it comes: fp32, 8 blocks a step
    sides            tokens/s and peak memory of each, and what it settled on
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from corpora import embedded_encoder
from workers import ROOT, Worker, alternate, machine, ratio

NOW, GOAL = 2, 4  # times the best recipe
SHAPES = {"minilm": (6, 384, 12, 1536), "mini": (4, 256, 4, 1024), "d2l-small": (2, 256, 4, 512)}


def main() -> None:
    options = _options()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with gzip.open(options.data / "books" / "books.txt.gz", "rt", encoding="utf-8") as stream:
            (folder / "books.txt").write_text(stream.read(options.characters), encoding="utf-8")
        report: dict[str, Any] = {
            "machine": machine(), "seconds": options.seconds, "rounds": options.rounds, "shape": options.shape,
            **compare(folder, options),
        }  # fmt: skip
    for key in ("ratio_best", "ratio_default"):
        if key in report:
            print(f"{key}: {report[key]:.2f}" + (f" (target {NOW}, goal {GOAL})" if key == "ratio_best" else ""))
    for side, figures in report["sides"].items():
        print(f"{side}: {figures['tokens_per_second']:,.0f} tokens/s", file=sys.stderr)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def compare(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """The ratios, and what each side reached."""
    common = {
        "rows": str(folder / "books.txt"), "tokenizer": str(embedded_encoder()), "length": 128, "lr": 1e-4,
        "model": str(new_encoder(folder, SHAPES[options.shape])), "device": "cpu", "threads": options.threads,
    }  # fmt: skip
    theirs = {**common, "side": "run_mlm"}
    specs = {
        "ours": {**common, "side": "pretrain", "precision": "auto"},
        "best": {**theirs, "precision": "bf16", "batch": 64, "keep_memory": True},
        "default": {**theirs, "precision": "fp32", "batch": 8},
    }
    chosen = {name: specs[name] for name in ("ours", *options.only)}
    result: dict[str, Any] = {"sides": {}}
    with ExitStack() as stack:
        workers = {
            name: stack.enter_context(Worker(name, spec, threads=options.threads)) for name, spec in chosen.items()
        }
        alternate(list(workers.values()), seconds=options.seconds, rounds=options.rounds, warm_up=options.warm_up)
        for name in options.only:
            result[f"ratio_{name}"] = ratio(workers["ours"], workers[name])
        for name, worker in workers.items():
            worker.close()
            result["sides"][name] = worker.result()
    return result


def new_encoder(folder: Path, shape: tuple[int, int, int, int]) -> Path:
    """A BERT with a masked-language head, of this shape, with random weights and MiniLM's tokenizer beside it."""
    import shutil

    import torch
    from transformers import BertConfig, BertForMaskedLM

    torch.manual_seed(0)
    layers, hidden, heads, ffn = shape
    config = BertConfig(
        vocab_size=30522, hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads, intermediate_size=ffn
    )
    target = folder / "encoder"
    BertForMaskedLM(config).save_pretrained(target)
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json"):
        if (embedded_encoder() / name).is_file():
            shutil.copy(embedded_encoder() / name, target / name)
    return target


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="folder of the data sets")
    parser.add_argument("--seconds", type=float, default=60, help="timed seconds of each side (default 60)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds these are cut into (default 5)")
    parser.add_argument("--warm-up", type=float, help="untimed seconds first (default a fifth of --seconds)")
    parser.add_argument("--only", type=lambda text: text.split(","), default=["best", "default"], help="best,default")
    parser.add_argument("--shape", choices=SHAPES, default="minilm", help="shape of the encoder (default minilm)")
    parser.add_argument("--characters", type=int, default=3_000_000, help="of the books (default 3,000,000)")
    parser.add_argument("--threads", type=int, help="threads of every side (default: their own choice)")
    parser.add_argument("--json", type=Path, help="where to write the results")
    options = parser.parse_args()
    options.warm_up = options.seconds / 5 if options.warm_up is None else options.warm_up
    return options


if __name__ == "__main__":
    main()
