"""The sides of pretrain_speed.py, each as a child process: see sides.py and workers.py.

A spec says side, rows (a text file), model and tokenizer (folders), length, lr, precision, device, threads; for run_mlm
also batch, in blocks.
"""

from __future__ import annotations

import os
import tempfile
from itertools import chain
from pathlib import Path
from typing import Any

from workers import Pacer

STEPS = 100_000  # more than any side gets to


def run_mlm(spec: dict[str, Any], pacer: Pacer) -> None:
    """What transformers' run_mlm.py does with a text file, line_by_line being off."""
    import torch
    from transformers import (
        AutoModelForMaskedLM,
        AutoTokenizer,
        DataCollatorForLanguageModeling,
        Trainer,
        TrainerCallback,
        TrainingArguments,
        set_seed,
    )

    set_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(spec["tokenizer"])
    lines = Path(spec["rows"]).read_text(encoding="utf-8").splitlines()
    joined = list(chain.from_iterable(tokenizer(lines, return_special_tokens_mask=True)["input_ids"]))
    special = set(tokenizer.all_special_ids)
    length = spec["length"]
    blocks = []
    for begin in range(0, len(joined) // length * length, length):
        ids = joined[begin : begin + length]
        blocks.append({
            "input_ids": ids, "attention_mask": [1] * length,
            "special_tokens_mask": [int(token in special) for token in ids],
        })  # fmt: skip
    model = AutoModelForMaskedLM.from_pretrained(spec["model"], dtype=torch.float32)
    per_epoch = -(-len(blocks) // spec["batch"])

    class Pace(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            last = state.global_step % per_epoch == 0
            tokens = length * (len(blocks) - (per_epoch - 1) * spec["batch"] if last else spec["batch"])
            pacer(tokens, tokens)

    arguments = TrainingArguments(
        output_dir=str(Path(spec["rows"]).parent / "run-mlm"), max_steps=STEPS, save_strategy="no", report_to="none",
        disable_tqdm=True, per_device_train_batch_size=spec["batch"], learning_rate=spec["lr"],
        lr_scheduler_type="constant", weight_decay=0.01, use_cpu=spec["device"] == "cpu",
        bf16=spec["precision"] == "bf16",
    )
    run = Trainer(
        model=model, args=arguments, train_dataset=blocks, callbacks=[Pace()],
        data_collator=DataCollatorForLanguageModeling(tokenizer=tokenizer, mlm_probability=0.15),
    )
    pacer.ready(batch=spec["batch"], precision=spec["precision"], attention=model.config._attn_implementation)
    run.train()


def pretrain(spec: dict[str, Any], pacer: Pacer) -> None:
    """bertune's own pre-training, with what it decides for itself."""
    from bertune.config import Config
    from bertune.data.corpus import open_corpus
    from bertune.data.documents import file_sources, survey
    from bertune.data.tokens import Tokenizer
    from bertune.model.load import read_config
    from bertune.model.machine import choose_machine
    from bertune.model.pretraining import load_pretraining
    from bertune.training.listen import Silent
    from bertune.training.loop import training_steps
    from bertune.training.pretrain_data import training_sequences
    from bertune.training.pretrain_fit import (
        TOKENS,
        PretrainFit,
        settle_pretraining,
        stage_options,
        tokens_at_once,
    )

    config = Config().updated({
        "pretrain": {"max_length": spec["length"], "lr": spec["lr"], "warmup": 0.0, "epochs": 1000, "held_out": 0.0,
                     "tokens": TOKENS},  # the default of any corpus that is not tiny, as the one read here is
        "train": {"device": spec["device"], "precision": spec["precision"], "threads": spec.get("threads")},
    })  # fmt: skip
    folder = Path(spec["model"])
    tokenizer = Tokenizer.load(folder)
    sources = file_sources([spec["rows"]], config.data, rule="auto")
    with tempfile.TemporaryDirectory() as place:
        os.environ["BERTUNE_CACHE"] = place
        found = survey(sources, sentences=False)
        corpus = open_corpus(sources, found, tokenizer, sentences=False, cache=Path(place), fallback=Path(place))
        train, _ = training_sequences(corpus, tokenizer, config, print)
        model, report = load_pretraining(folder, objective="mlm")
        tokens = int(train.turn(0).lengths.sum())
        encoder = read_config(folder)
        plan = settle_pretraining(config, tokens=tokens, rows=len(train), encoder=encoder, new=report.new)
        config = config.model_copy(update={"train": stage_options(config)})
        machine = choose_machine(config.train, long_run=True, tokens=tokens_at_once(encoder))
        machine.use()
        fit = PretrainFit(model, train, None, config, plan, machine, folder=Path(place), listener=Silent())
        pacer.ready(
            tokens=plan.tokens, precision=machine.precision, token_budget=machine.token_budget,
            threads=machine.threads, kernels=machine.kernels,
        )  # fmt: skip
        with machine.repeatable():
            for step in training_steps(model, fit.optimizer, fit.course, start=0, say=print):
                pacer(step.tokens, step.tokens)
