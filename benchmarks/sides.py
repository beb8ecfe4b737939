"""The sides of the speed comparisons, each as a child process: see workers.py for how they take turns.

All train every weight on the same tokenized rows with dropout 0.1, each in an order of its own; nothing is cached.
A spec says which side and how: side, rows (file of corpora.prepare), model and tokenizer (folders), batch, precision,
optimizer (adamw, adam), lr, weight_decay, clip, device; for a trainer also pad, grouped, attention.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from corpora import Part, load
from pretrain_sides import pretrain, run_mlm
from workers import Pacer, serve

STEPS = 100_000  # more than any side gets to


def trainer(spec: dict[str, Any], pacer: Pacer) -> None:
    """transformers' Trainer, fp32 or bf16, padded to `pad` tokens or (None) to the longest row of each batch."""
    from transformers import (
        AutoTokenizer,
        DataCollatorWithPadding,
        Trainer,
        TrainerCallback,
        TrainingArguments,
        default_data_collator,
    )

    train, valid = load(spec["rows"])
    model = transformers_model(spec["model"], train, attention=spec.get("attention"))
    tokenizer = AutoTokenizer.from_pretrained(spec["tokenizer"])
    per_epoch = -(-len(train) // spec["batch"])
    mean_length = len(train.ids) / len(train)

    class Pace(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            last = state.global_step % per_epoch == 0
            examples = len(train) - (per_epoch - 1) * spec["batch"] if last else spec["batch"]
            pacer(examples, round(examples * mean_length))

    class Grouped(Trainer):  # type: ignore[misc]
        """Grouped by length, batches in random order: the Trainer's own order goes from long rows to short ones some
        50 batches at a time, of which a timed window sees only a part."""

        def _get_train_sampler(self, *given: Any) -> Any:
            rows = list(super()._get_train_sampler(*given))
            batches = [rows[begin : begin + spec["batch"]] for begin in range(0, len(rows), spec["batch"])]
            order = np.random.default_rng(0).permutation(len(batches) - 1)  # the short one stays the last
            return [row for number in (*order, len(batches) - 1) for row in batches[number]]

    # What is not named here keeps the Trainer's default: fused AdamW, clipping at 1, logging every 500 steps.
    arguments = TrainingArguments(
        output_dir=str(Path(spec["rows"]).parent / "trainer"), max_steps=STEPS, save_strategy="no", report_to="none",
        disable_tqdm=True, per_device_train_batch_size=spec["batch"], learning_rate=spec["lr"],
        lr_scheduler_type="constant", weight_decay=spec["weight_decay"], use_cpu=spec["device"] == "cpu",
        bf16=spec["precision"] == "bf16",
        train_sampling_strategy="group_by_length" if spec.get("grouped") else "random",
    )
    run = (Grouped if spec.get("grouped") else Trainer)(
        model=model, args=arguments, train_dataset=features(train, width=spec.get("pad")), callbacks=[Pace()],
        data_collator=default_data_collator if spec.get("pad") else DataCollatorWithPadding(tokenizer),
    )
    _watch(pacer, model, valid, spec)
    pacer.ready(batch=spec["batch"], precision=spec["precision"], attention=model.config._attn_implementation)
    run.train()


def plain(spec: dict[str, Any], pacer: Pacer) -> None:
    """A plain fp32 loop over transformers' BERT: every row padded to `pad` tokens, Adam at a constant rate."""
    train, valid = load(spec["rows"])
    model = transformers_model(spec["model"], train).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=spec["lr"])
    ids, types, mask = padded(train, np.arange(len(train)), spec["pad"])
    targets = torch.from_numpy(train.targets)
    rows = torch.utils.data.TensorDataset(ids, types, mask, targets)
    loader = torch.utils.data.DataLoader(rows, batch_size=spec["batch"], shuffle=True)
    _watch(pacer, model, valid, spec)
    pacer.ready(batch=spec["batch"], precision="fp32", attention=model.config._attn_implementation)
    while True:
        for batch_ids, batch_types, batch_mask, labels in loader:
            optimizer.zero_grad()
            loss = model(input_ids=batch_ids, token_type_ids=batch_types, attention_mask=batch_mask, labels=labels).loss
            loss.backward()
            optimizer.step()
            loss.item()  # a loop that shows its loss reads it
            pacer(len(labels), int(batch_mask.sum()))


def ours(spec: dict[str, Any], pacer: Pacer) -> None:
    """bertune's own loop, with what it decides for itself: precision, threads, token budget and batch unless given."""
    from bertune.config import TrainConfig
    from bertune.data.batch import evaluation_batches
    from bertune.model.heads import decide_head
    from bertune.model.load import load_model, read_config
    from bertune.model.losses import make_loss
    from bertune.model.machine import choose_machine
    from bertune.training.loop import Course, training_steps
    from bertune.training.optim import Optimizer
    from bertune.training.settle import default_batch_size

    train, valid = load(spec["rows"])
    config = TrainConfig(
        batch_size=spec["batch"] or default_batch_size(len(train)), optimizer=spec["optimizer"], lr=spec["lr"],
        weight_decay=spec["weight_decay"], clip=spec["clip"], schedule="constant", warmup=0.0, device=spec["device"],
        precision=spec["precision"], threads=spec.get("threads"),
    )
    machine = choose_machine(config, long_run=True)
    machine.use()
    folder = Path(spec["model"])
    head = decide_head(
        read_config(folder), pooling="auto", head="auto", num_labels=train.num_labels, head_hidden=50, head_dropout=None
    )
    model, _ = load_model(folder, head=head)
    model.to(machine.torch_device)
    before = {name: value.detach() for name, value in model.named_parameters()}
    model.encoder.compute_in(machine.dtype, kernels=machine.kernels)
    full = {name: before[name] for name, value in model.named_parameters() if value.dtype != before[name].dtype}
    if machine.compile:
        for layer in model.encoder.layers:
            layer.compile(dynamic=True)
    loss = make_loss(train.kind, config, train.targets, train.num_labels, machine.torch_device)
    course = Course(
        encoded=encoded(train), targets=train.targets, loss=loss, batch_size=config.batch_size, steps=STEPS,
        token_budget=machine.token_budget, clip=config.clip, seed=0,
        running=np.zeros((len(train), train.num_labels), np.float32),
    )
    optimizer = Optimizer(
        model, config, lr=spec["lr"], steps=STEPS, full=full, compiled=machine.kernels == "compiled"
    )
    finished = 0

    def batches() -> Iterator[tuple[Tensor, np.ndarray]]:
        optimizer.finish(finished)
        for batch in evaluation_batches(encoded(valid), budget=machine.token_budget):
            yield model(model.inputs(batch)), batch.rows

    _follow(pacer, batches, valid, spec)
    pacer.ready(
        batch=config.batch_size, precision=machine.precision, token_budget=machine.token_budget,
        threads=machine.threads, kernels=machine.kernels,
    )
    with machine.repeatable():
        for step in training_steps(model, optimizer, course, start=0, say=print):
            finished = step.number
            pacer(step.rows, step.tokens)


def products(spec: dict[str, Any], pacer: Pacer) -> None:
    """Nothing but the matrix products of our steps, forward and backward, in the same shapes and type.

    A layer has four linear products and attention's two, each with the two of its backward pass; attention in the
    groups that it really works in. What the last layer computes for one token a row is left out.
    """
    from bertune.data.batch import epoch_order, make_batch, split_by_budget
    from bertune.model.attention import plan_attention
    from bertune.model.load import read_config

    train, _ = load(spec["rows"])
    rows, config = encoded(train), read_config(Path(spec["model"]))
    dtype = torch.bfloat16 if spec["precision"] == "bf16" else torch.float32
    order = epoch_order(len(train), seed=0, epoch=0)
    steps = []
    for begin in range(0, min(len(train), 64 * spec["batch"]), spec["batch"]):
        chosen = order[begin : begin + spec["batch"]]
        runs = [make_batch(rows, run) for run in split_by_budget(chosen, rows.lengths, spec["token_budget"])]
        plans = [plan_attention(run.cu, device=torch.device("cpu"), dtype=dtype) for run in runs]
        shapes = [[(group.rows * config.heads, group.width) for group in plan.groups] for plan in plans]
        steps.append((len(chosen), [run.tokens for run in runs], shapes))
    linear = [(3, 1), (1, 1), (config.ffn / config.hidden, 1), (1, config.ffn / config.hidden)]
    widths = [(int(out * config.hidden), int(into * config.hidden)) for out, into in linear]
    pool = _Buffers(dtype)
    pacer.ready(batch=spec["batch"], precision=spec["precision"])
    while True:
        for examples, tokens, shapes in steps:
            for count, groups in zip(tokens, shapes, strict=True):
                # The last layer is asked for the first token of each row: nearly all that is left are keys and values.
                pool.linear(count, 2 * config.hidden, config.hidden)
                for _ in range(config.layers - 1):
                    for out, into in widths:
                        pool.linear(count, out, into)
                    for sequences, width in groups:
                        pool.attention(sequences, width, config.hidden // config.heads)
            pacer(examples, sum(tokens))


class _Buffers:
    """Memory taken once, so that a product costs the product alone; by the processor's tiles where ours has them."""

    def __init__(self, dtype: torch.dtype) -> None:
        from bertune.model import kernels
        from bertune.model.machine import keep_memory

        keep_memory()
        self.dtype = dtype
        self.product = kernels.product if dtype == torch.bfloat16 and kernels.has_tiles() else None
        self.flat: dict[str, Tensor] = {}

    def take(self, name: str, *shape: int) -> Tensor:
        size = int(np.prod(shape))
        if name not in self.flat or self.flat[name].numel() < size:
            self.flat[name] = torch.randn(size).to(self.dtype)
        return self.flat[name][:size].view(shape)

    def linear(self, tokens: int, out: int, into: int) -> None:
        """y = x W', and the gradients of x and W."""
        x, weight, y = self.take("x", tokens, into), self.take(f"w{out},{into}", out, into), self.take("y", tokens, out)
        if self.product is not None:
            for left, right in ((x, weight.t()), (y, weight), (y.t(), x)):
                self.product(left, right)
            return
        torch.mm(x, weight.t(), out=y)
        torch.mm(y, weight, out=self.take("grad_x", tokens, into))
        torch.mm(y.t(), x, out=self.take(f"grad_w{out},{into}", out, into))

    def attention(self, sequences: int, width: int, size: int) -> None:
        """Scores and context, and the gradients of query, key, value and weights."""
        query, key, value = (self.take(name, sequences, width, size) for name in ("query", "key", "value"))
        weights, other = self.take("weights", sequences, width, width), self.take("context", sequences, width, size)
        torch.bmm(query, key.transpose(1, 2), out=weights)
        torch.bmm(weights, value, out=other)
        torch.bmm(other, value.transpose(1, 2), out=weights)
        torch.bmm(weights.transpose(1, 2), other, out=value)
        torch.bmm(weights, key, out=other)
        torch.bmm(weights.transpose(1, 2), query, out=other)


def encoded(part: Part) -> Any:
    """The rows as bertune's tokenizer would hand them over."""
    from bertune.data.tokens import Encoded

    lengths = np.diff(part.offsets).astype(np.int32)
    return Encoded(ids=part.ids, types=part.types, offsets=part.offsets, full_lengths=lengths)


def padded(part: Part, rows: np.ndarray, width: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """ids, types and mask, int64 [rows, width]; None: as wide as the longest of these rows."""
    lengths = np.diff(part.offsets)[rows]
    mask = np.arange(width or lengths.max())[None, :] < lengths[:, None]
    ids, types = np.zeros(mask.shape, np.int64), np.zeros(mask.shape, np.int64)
    for place, row in enumerate(rows):
        begin, end = part.offsets[row], part.offsets[row + 1]
        ids[place, : end - begin] = part.ids[begin:end]
        types[place, : end - begin] = part.types[begin:end]
    return torch.from_numpy(ids), torch.from_numpy(types), torch.from_numpy(mask.astype(np.int64))


def features(part: Part, *, width: int | None = None) -> list[dict[str, Any]]:
    """The rows as transformers' examples hold them: lists a row, padded already where a width is given."""
    rows = []
    for row in range(len(part)):
        span = slice(part.offsets[row], part.offsets[row + 1])
        ids, types = part.ids[span].tolist(), part.types[span].tolist()
        rest = [0] * ((width or len(ids)) - len(ids))
        mask = [1] * len(ids) + rest
        label = part.targets[row].tolist()
        rows.append({"input_ids": ids + rest, "token_type_ids": types + rest, "attention_mask": mask, "labels": label})
    return rows


def transformers_model(folder: str, train: Part, *, seed: int = 0, attention: str | None = None) -> Any:
    """The encoder in `folder` with transformers' own classification head, in fp32."""
    from transformers import AutoModelForSequenceClassification, set_seed

    set_seed(seed)
    problem = "single_label_classification" if train.kind == "single" else "multi_label_classification"
    return AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=train.num_labels, problem_type=problem, attn_implementation=attention, dtype=torch.float32
    )


def _watch(pacer: Pacer, model: Any, valid: Part, spec: dict[str, Any]) -> None:
    """Validation loss of a transformers model, in the precision it trains in."""

    def batches() -> Iterator[tuple[Tensor, np.ndarray]]:
        order = np.argsort(np.diff(valid.offsets), kind="stable")
        model.eval()
        for begin in range(0, len(order), 64):
            rows = order[begin : begin + 64]
            ids, types, mask = (tensor.to(model.device) for tensor in padded(valid, rows, None))
            with torch.autocast(model.device.type, torch.bfloat16, enabled=spec["precision"] == "bf16"):
                yield model(input_ids=ids, token_type_ids=types, attention_mask=mask).logits, rows
        model.train()

    _follow(pacer, batches, valid, spec)


def _follow(
    pacer: Pacer, batches: Callable[[], Iterator[tuple[Tensor, np.ndarray]]], valid: Part, spec: dict[str, Any]
) -> None:
    """Let the pacer ask for the mean loss over the validation rows, from batches of (logits, rows)."""
    cost = F.cross_entropy if valid.kind == "single" else F.binary_cross_entropy_with_logits

    def evaluate() -> float:
        with torch.no_grad():
            total = sum(
                float(cost(logits.float().cpu(), torch.from_numpy(valid.targets[rows]))) * len(rows)
                for logits, rows in batches()
            )
        return total / len(valid)

    pacer.evaluate = evaluate
    if spec["device"] == "cuda":
        pacer.synchronize = torch.cuda.synchronize


def _side(spec: dict[str, Any], pacer: Pacer) -> None:
    sides = {"trainer": trainer, "plain": plain, "ours": ours, "products": products, "run_mlm": run_mlm,
             "pretrain": pretrain}  # fmt: skip
    sides[spec["side"]](spec, pacer)


if __name__ == "__main__":
    serve(_side)
