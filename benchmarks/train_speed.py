"""Training speed beside transformers, both sides in one run, taking turns.

    python benchmarks/train_speed.py --data ../shared/data --seconds 60 --json speed.json

--seconds is how long each side is timed in all, cut into rounds in which the sides follow one another; a ratio is the
median over rounds. Tokenization is not timed. With 60 seconds all of it takes about 40 minutes. The JSON holds, for
SNLI at the top and for papers under "papers":

    ratio_a_padded       our default batch against the Trainer in fp32 at batch 32, as transformers' text-classification
                         example runs it, padded to the maximum
    ratio_a_dynamic      the same, padded to the longest row of each batch
    ratio_a_equal_batch  both at 32, theirs padded to the longest row of each batch
    ratio_b              both at 128, theirs in bf16 and grouped by length, with the faster of two attentions, and
                         freed memory kept for the next step as ours keeps it
    ratio_c              (SNLI) both at 512 with Adam, theirs a plain fp32 loop over BERT padded to 128; 2 layers,
                         hidden 256, feed-forward 512, 4 heads
    gemm_share           share of our step that its bare matrix products take at our default batch; gemm_share_b at 128
    loss                 validation loss of both sides of b and c before and after equal examples
    sides                examples/s, tokens/s and peak memory of each
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from corpora import SETS, embedded_encoder, prepare
from workers import ROOT, Worker, alternate, machine, ratio

TARGETS = {"ratio_a_dynamic": (6, 12), "ratio_a_equal_batch": (4, None), "ratio_b": (2, 2.5), "ratio_c": (20, 40),
           "gemm_share": (None, 0.6)}


def main() -> None:
    options = _options()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        report: dict[str, Any] = {"machine": machine(), "seconds": options.seconds, "rounds": options.rounds}
        for name in options.sets:
            result = compare(name, options, folder)
            report |= result if name == "snli" else {name: result}
            _say(name, result)
    text = json.dumps(report, indent=2)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(text + "\n", encoding="utf-8")
    else:
        print(text)


def compare(name: str, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All comparisons asked for on one data set."""
    mini = str(embedded_encoder())
    common = {
        "rows": str(prepare(name, options.data, folder)), "tokenizer": mini, "model": str(options.model or mini),
        "device": "cpu", "threads": options.threads,
        "optimizer": "adamw", "lr": 5e-5, "weight_decay": 0.01, "clip": 1.0,
    }
    result: dict[str, Any] = {"sides": {}, "loss": {}}
    if "a" in options.only:
        result |= _against_example(common, SETS[name], options, result["sides"])
    if "b" in options.only:
        result |= _against_best(common, options, result)
    if "c" in options.only and name == "snli":
        small = {**common, "model": str(_small_bert(folder)), "optimizer": "adam", "lr": 1e-4, "weight_decay": 0.0,
                 "clip": None, "batch": 512}
        ours = {**small, "side": "ours", "precision": "auto"}
        theirs = {**small, "side": "plain", "pad": SETS[name], "precision": "fp32"}
        with _together({"c_ours": ours, "c_plain": theirs}, options, result["sides"]) as workers:
            result["ratio_c"] = ratio(workers["c_ours"], workers["c_plain"])
        result["loss"]["c"] = _losses(ours, theirs, max(2, _loss_steps(options) // 4), options)
    return result


def _against_example(
    common: dict[str, Any], width: int, options: argparse.Namespace, sides: dict[str, Any]
) -> dict[str, Any]:
    """(a): the Trainer as the text-classification example runs it."""
    example = {**common, "side": "trainer", "batch": 32, "precision": "fp32"}
    ours = {**common, "side": "ours", "batch": None, "precision": "auto"}
    specs = {"a_padded": {**example, "pad": width}, "a_dynamic": example, "ours": ours, "products": None,
             "ours_32": {**ours, "batch": 32}}
    with _together(specs, options, sides) as workers:
        equal = workers.get("ours_32", workers["ours"])
        return {
            "ratio_a_padded": ratio(workers["ours"], workers["a_padded"]),
            "ratio_a_dynamic": ratio(workers["ours"], workers["a_dynamic"]),
            "ratio_a_equal_batch": ratio(equal, workers["a_dynamic"]),
            "gemm_share": ratio(workers["ours"], workers["products"]),
        }


def _against_best(common: dict[str, Any], options: argparse.Namespace, result: dict[str, Any]) -> dict[str, Any]:
    """(b): the best that can be set in the Trainer; which attention is faster on a processor depends on the lengths."""
    best = {**common, "side": "trainer", "batch": 128, "precision": "bf16", "grouped": True, "keep_memory": True}
    ours = {**common, "side": "ours", "batch": 128, "precision": "auto"}
    theirs = {f"b_{attention}": {**best, "attention": attention} for attention in options.attention}
    specs: dict[str, dict[str, Any] | None] = {**theirs, "b_ours": ours, "b_products": None}
    with _together(specs, options, result["sides"]) as workers:
        ratios = {name: ratio(workers["b_ours"], workers[name]) for name in theirs}
        share = ratio(workers["b_ours"], workers["b_products"])
    faster = min(ratios, key=ratios.__getitem__)
    result["loss"]["b"] = _losses(ours, specs[faster] or {}, _loss_steps(options), options)
    return {"ratio_b": ratios[faster], "ratio_b_against": faster, "gemm_share_b": share}


@contextmanager
def _together(
    specs: dict[str, dict[str, Any] | None], options: argparse.Namespace, sides: dict[str, Any]
) -> Iterator[dict[str, Worker]]:
    """Alternate a worker for each spec, hand them out to be compared, and note each side's result.

    A spec of None stands for the products of the `ours` before it; an `ours` at a batch that has one is left out.
    """
    workers: dict[str, Worker] = {}
    with ExitStack() as stack:
        own: dict[str, Any] = {}
        batch = None
        for name, spec in specs.items():
            if spec is None:
                spec = {**own, "side": "products"}
            elif spec["side"] == "ours" and batch == spec["batch"] and own:
                continue
            workers[name] = worker = stack.enter_context(Worker(name, spec, threads=options.threads))
            if spec["side"] == "ours":
                batch = worker.about["batch"]
                own = {**spec, **{key: worker.about[key] for key in ("batch", "precision", "token_budget")}}
        alternate(list(workers.values()), seconds=options.seconds, rounds=options.rounds, warm_up=options.warm_up)
        yield workers
        for name, worker in workers.items():
            worker.close()
            sides[name] = worker.result()


def _losses(ours: dict[str, Any], theirs: dict[str, Any], steps: int, options: argparse.Namespace) -> dict[str, Any]:
    """Validation loss of both sides before and after the same number of steps with the same batch."""
    result: dict[str, Any] = {"steps": steps, "examples": steps * theirs["batch"]}
    for name, spec in (("ours", ours), ("theirs", theirs)):
        with Worker(f"{name}, loss", spec, threads=options.threads) as worker:
            before = worker.loss()
            worker.steps(steps)
            result[name] = {"before": before, "after": worker.loss()}
    result["difference"] = result["ours"]["after"] - result["theirs"]["after"]
    return result


def _loss_steps(options: argparse.Namespace) -> int:
    return options.loss_steps or max(2, min(40, round(options.seconds)))


def _small_bert(folder: Path) -> Path:
    """A BERT of the shape of the book's small one, with random weights and MiniLM's vocabulary."""
    import torch
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    shape = BertConfig(
        vocab_size=30522, hidden_size=256, num_hidden_layers=2, num_attention_heads=4, intermediate_size=512
    )
    BertModel(shape).save_pretrained(folder / "small-bert")
    return folder / "small-bert"


def _say(name: str, result: dict[str, Any]) -> None:
    for key, value in result.items():
        if isinstance(value, float):
            now, goal = TARGETS.get(key, (None, None)) if name == "snli" else (None, None)
            wanted = ", ".join(f"{word} {figure}" for word, figure in (("target", now), ("goal", goal)) if figure)
            print(f"{name} {key}: {value:.2f}" + (f" ({wanted})" if wanted else ""), file=sys.stderr)
    for side, figures in result["sides"].items():
        memory = figures["peak_memory_bytes"]
        held = f", {memory / 2**20:,.0f} MiB" if memory else ""
        print(f"{name} {side}: {figures['examples_per_second']:.1f} examples/s{held}", file=sys.stderr)
    for side, loss in result["loss"].items():
        print(f"{name} loss {side}: ours {loss['ours']['after']:.4f}, theirs {loss['theirs']['after']:.4f} after "
              f"{loss['examples']:,} examples", file=sys.stderr)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="folder of the data sets")
    parser.add_argument("--seconds", type=float, default=60, help="timed seconds of each side (default 60)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds these are cut into (default 5)")
    parser.add_argument("--warm-up", type=float, help="untimed seconds first (default a fifth of --seconds)")
    parser.add_argument("--sets", type=lambda text: text.split(","), default=["snli", "papers"], help="snli,papers")
    parser.add_argument("--only", type=lambda text: text.split(","), default=["a", "b", "c"], help="a,b,c")
    parser.add_argument("--attention", type=lambda text: text.split(","), default=["sdpa", "eager"],
                        help="attentions that b tries (sdpa,eager); all are held in memory at once")
    parser.add_argument("--model", type=Path, help="encoder with MiniLM's vocabulary (default: MiniLM itself)")
    parser.add_argument("--threads", type=int, help="threads of each side (default: what each chooses)")
    parser.add_argument("--loss-steps", type=int, help="steps of the comparison of losses (default 40 at most)")
    parser.add_argument("--json", type=Path, help="file for the result (default: standard output)")
    options = parser.parse_args()
    unknown = [name for name in options.sets if name not in ("snli", "papers")]
    unknown += [name for name in options.only if name not in ("a", "b", "c")]
    unknown += [name for name in options.attention if name not in ("sdpa", "eager")]
    if unknown or not options.data.is_dir():
        parser.error(f"{unknown[0]} is not a choice" if unknown else f"--data {options.data}: no such folder")
    if options.warm_up is None:
        options.warm_up = max(1.0, min(20.0, options.seconds / 5))
    return options


if __name__ == "__main__":
    main()
