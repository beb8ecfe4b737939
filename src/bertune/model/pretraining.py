"""An encoder with the heads of pre-training: one that fills masks, over the word embeddings, and bert's second one.

The scores of the whole vocabulary are computed for the tokens to be guessed and for no others: with 30,522 words they
cost more than a small encoder itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bertune.data.sequences import Sample
from bertune.errors import ConfigError, ModelError
from bertune.files import atomic_path, write_json
from bertune.model import kernels
from bertune.model.classifier import EncoderModel
from bertune.model.encoder import ACTIVATIONS, Encoder, EncoderConfig, Norm, initialize
from bertune.model.hubconfig import CONFIG, HEAD_KEY, model_type, parse_config, read_source
from bertune.model.kernels import SIDE, product, takes
from bertune.model.load import CLASS_NAMES, OUTDATED, LoadReport, fill, state_by_names, with_dropout
from bertune.model.machine import to_device
from bertune.model.names import MASKED, TIED, plain_name, pretraining_names
from bertune.model.noise import Noise
from bertune.model.weights import SAFETENSORS, read_weights

# Rows of scores whose softmax is taken at once: few enough to stay in the caches of a processor.
CPU_ROWS, GPU_ROWS = 64, 4096


@dataclass(frozen=True)
class Measured:
    """Sums over a sample: of the loss of masked tokens, those guessed right and all; the same for its pairs."""

    masked_loss: float = 0.0
    masked_right: int = 0
    masked: int = 0
    next_loss: float = 0.0
    next_right: int = 0
    pairs: int = 0


class MaskedHead(nn.Module):
    """States of masked tokens to what the word embeddings are multiplied with; `bias` is that of the vocabulary."""

    def __init__(self, config: EncoderConfig, *, vocabulary_bias: bool) -> None:
        super().__init__()
        width = config.embedding_size or config.hidden
        modern = config.arch == "modernbert"
        name = {"roberta": "gelu", "electra": "gelu", "modernbert": config.head_activation}
        self.dense = nn.Linear(config.hidden, width, bias=config.head_bias or not modern)
        self.activation = ACTIVATIONS[name.get(config.arch, config.activation)]
        self.norm = Norm(width, config.norm_eps, config.norm_bias or not modern)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size)) if vocabulary_bias else None

    def forward(self, states: Tensor) -> Tensor:
        """[n, hidden] -> [n, width of the embeddings], fp32."""
        return self.norm(self.activation(self.dense(states.float())))


class PretrainingHead(nn.Module):
    """masked fills masks; pooler and next tell whether the second text follows the first. What is not there is None."""

    def __init__(
        self, config: EncoderConfig, *, masked: bool, pooler: bool, following: bool, vocabulary_bias: bool
    ) -> None:
        super().__init__()
        self.masked = MaskedHead(config, vocabulary_bias=vocabulary_bias) if masked else None
        self.pooler = nn.Linear(config.hidden, config.hidden) if pooler else None
        self.next = nn.Linear(config.hidden, 2) if following else None
        if self.pooler is not None and not following:
            self.pooler.requires_grad_(False)  # carried along for whoever fine-tunes it


class PretrainingModel(EncoderModel):
    """See the top of this file. The encoder is one of the family, for only there embeddings can be tied."""

    def __init__(self, config: EncoderConfig, head: PretrainingHead) -> None:
        super().__init__()
        self.encoder = Encoder(config)
        self.head: PretrainingHead = head

    @property
    def table(self) -> Tensor:
        """The word embeddings [vocabulary, width], which also score the vocabulary."""
        return cast(Encoder, self.encoder).embeddings.word.weight

    def loss(self, sample: Sample, noise: Noise | None, *, masked: int, pairs: int) -> Tensor:
        """The sample's share of the loss of a step that has `masked` tokens to guess and `pairs` pairs: the mean
        cross-entropy of both kinds, added up as in BERT."""
        states, first = self._states(sample, noise)
        total = torch.zeros((), device=self.device)
        if states is not None and self.head.masked is not None:
            targets = to_device(sample.targets, self.device)
            total = total + tied_loss(
                self.head.masked(states), self.table, self.head.masked.bias, targets, scale=1 / max(masked, 1),
                dtype=self.encoder.compute_dtype, compiled=cast(Encoder, self.encoder).compiled,
            )
        if first is not None:
            total = total + F.cross_entropy(self._following(first), self._follows(sample), reduction="sum") / pairs
        return total

    @torch.no_grad()
    def measure(self, sample: Sample) -> Measured:
        """What the sample costs, without dropout."""
        states, first = self._states(sample, None)
        found: dict[str, Any] = {}
        if states is not None and self.head.masked is not None:
            targets, loss, right = to_device(sample.targets, self.device), 0.0, 0
            for begin in range(0, len(states), 512):
                scores = self.scores(states[begin : begin + 512])
                part = targets[begin : begin + 512]
                loss += F.cross_entropy(scores, part, reduction="sum").item()
                right += int((scores.argmax(1) == part).sum())
            found |= {"masked_loss": loss, "masked_right": right, "masked": len(targets)}
        if first is not None:
            scores, truth = self._following(first), self._follows(sample)
            right = int((scores.argmax(1) == truth).sum())
            loss = F.cross_entropy(scores, truth, reduction="sum").item()
            found |= {"next_loss": loss, "next_right": right, "pairs": len(truth)}
        return Measured(**found)

    def scores(self, states: Tensor) -> Tensor:
        """Final states [n, hidden] -> scores of the vocabulary [n, vocabulary], fp32."""
        assert self.head.masked is not None
        dtype = self.encoder.compute_dtype
        low = self.head.masked(states).to(dtype)
        scores = product(low, whole_table(self.table, dtype).t())[:, : len(self.table)].float()
        return scores if self.head.masked.bias is None else scores + self.head.masked.bias

    def _states(self, sample: Sample, noise: Noise | None) -> tuple[Tensor | None, Tensor | None]:
        """States of the tokens to be guessed, and of the first token of each row; None for what is not learned."""
        inputs = self.inputs(sample)
        if self.head.masked is None:
            return None, self.encoder(inputs, noise=noise, first_only=True)[: inputs.rows]
        places = to_device(sample.places, self.device)
        if self.head.next is None:
            return self.encoder(inputs, noise=noise, only=places) if len(places) else None, None
        first = inputs.first[: inputs.rows]
        states = self.encoder(inputs, noise=noise, only=torch.cat((first, places)))  # none in both: [CLS] stays
        return states[len(first) :] if len(places) else None, states[: len(first)]

    def _following(self, first: Tensor) -> Tensor:
        """[rows, 2]: scores of "follows" and "does not", in the order that transformers has."""
        assert self.head.pooler is not None and self.head.next is not None
        logits: Tensor = self.head.next(torch.tanh(self.head.pooler(first.float())))
        return logits

    def _follows(self, sample: Sample) -> Tensor:
        assert sample.follows is not None
        return to_device(1 - sample.follows, self.device)  # transformers: 0 is the next sentence


class _TiedLoss(torch.autograd.Function):
    """Scaled cross-entropy over a vocabulary, whose gradient is made on the way forward.

    The scores are written once by the product, turned into their gradient a few rows at a time (by kernels.c one by
    one), while they are in the caches, and multiplied twice; a softmax and its backward pass over all of them would go
    through memory six times.
    """

    @staticmethod
    def forward(ctx: Any, states: Tensor, table: Tensor, bias: Tensor | None, *given: Any) -> Tensor:
        targets, scale, dtype, compiled = given
        low, weights = states.to(dtype), whole_table(table, dtype)
        scores = product(low, weights.t())
        turned = kernels.guess if compiled else _guess
        total, grad_bias = turned(scores, targets, bias, width=len(table), scale=scale)
        grads = [product(scores, weights).to(states.dtype), product(scores.t(), low)[: len(table)].to(table.dtype)]
        ctx.save_for_backward(*grads, *([] if bias is None else [grad_bias]))
        return total * scale

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        found = ctx.saved_tensors
        if not (grads[0].device.type == "cpu" and grads[0].item() == 1):  # 1 wherever the loss is the end
            found = tuple(value * grads[0] for value in found)
        return (*found, *([None] * (7 - len(found))))


def _guess(
    scores: Tensor, targets: Tensor, bias: Tensor | None, *, width: int, scale: float
) -> tuple[Tensor, Tensor]:
    """What `kernels.guess` computes, by torch's operators."""
    grad_bias = torch.zeros(0 if bias is None else width, device=scores.device)
    total = torch.zeros((), device=scores.device)
    rows = CPU_ROWS if scores.device.type == "cpu" else GPU_ROWS
    for begin in range(0, len(scores), rows):
        part, truth = scores[begin : begin + rows, :width].float(), targets[begin : begin + rows]
        line = torch.arange(len(part), device=part.device)
        if bias is not None:
            part += bias
        norm = torch.logsumexp(part, dim=1)
        total += (norm - part[line, truth]).sum()
        part.sub_(norm[:, None]).exp_()
        part[line, truth] -= 1
        part *= scale
        if bias is not None:
            grad_bias += part.sum(0)
        scores[begin : begin + rows, :width] = part
    scores[:, width:] = 0
    return total, grad_bias


def whole_table(table: Tensor, dtype: torch.dtype) -> Tensor:
    """`table` [vocabulary, width] in `dtype`, with rows of zeros up to a number of rows that tiles take."""
    low = table.to(dtype)
    return F.pad(low, (0, 0, 0, -len(low) % SIDE)) if takes(low) else low


def tied_loss(
    states: Tensor, table: Tensor, bias: Tensor | None, targets: Tensor, *, scale: float, dtype: torch.dtype,
    compiled: bool = False,
) -> Tensor:
    """`scale` times the summed cross-entropy of scores states @ table' + bias.

    states: [n, width]; table: [vocabulary, width]; bias: [vocabulary]; targets: int64 [n]. The products are computed in
    `dtype`, the softmax in fp32; compiled: by kernels.c, if `dtype` is bf16 on a processor.
    """
    loss: Tensor = _TiedLoss.apply(states, table, bias, targets, scale, dtype, compiled)
    return loss


def check_objective(config: EncoderConfig, objective: str, name: str) -> None:
    """Raise ConfigError for an encoder that transformers has no such heads for."""
    if config.arch not in MASKED:
        raise ConfigError(
            f"--model {name}: an encoder of the kind '{config.arch}' has no head over its word embeddings to pre-train "
            f"with; that have {', '.join(MASKED)}."
        )
    if objective != "mlm" and (config.arch != "bert" or config.type_vocab < 2):
        raise ConfigError(
            f"--objective {objective}: next sentences are told by the encoders of BERT's kind, and this one is "
            f"'{config.arch}'. Pass --objective mlm."
        )


def load_pretraining(
    folder: Path, *, objective: str, dropout: float | None = None, seed: int = 0
) -> tuple[PretrainingModel, LoadReport]:
    """The encoder in `folder` with the heads for `objective` (mlm, nsp or both), in fp32 on the CPU.

    Heads that the folder holds are taken over; those it lacks are new, and the report says so. A pooler is carried
    along. Raises ModelError, also where the folder's decoder is not tied to the word embeddings.
    """
    raw = read_source(folder)
    config = parse_config(raw, place=str(folder / CONFIG), folder=folder)
    if dropout is not None:
        config = with_dropout(config, dropout)
    tensors = read_weights(folder)
    plain = {plain_name(config.arch, name) for name in tensors}
    masked, following = objective != "nsp", objective != "mlm"
    pooler = following or (config.arch == "bert" and "pooler.dense.weight" in plain)

    def head() -> PretrainingHead:
        with_bias = config.arch != "modernbert" or raw.get("decoder_bias") is not False
        return PretrainingHead(config, masked=masked, pooler=pooler, following=following, vocabulary_bias=with_bias)

    # As in load.py: the encoder gets its memory from the file, and torch is spared what it imports for empty tensors.
    with torch.device("meta"):
        model = PretrainingModel(config, head())
    with torch.random.fork_rng(devices=[]):
        model.head = head()
    initialize(model.head, config.initializer_range, seed=seed)
    tied = TIED[config.arch] if masked else ()
    report = fill(
        model, tensors, place=folder, names=lambda name: pretraining_names(config.arch, name),
        is_new=lambda part, absent: absent, tied=tied,
    )  # fmt: skip
    if tied and tied[0] in tensors and not torch.equal(tensors[tied[0]].to(torch.float32), model.table):
        raise ModelError(
            f"{folder}: its masked-language head has embeddings of its own ('{tied[0]}'), where those of the encoder "
            "are expected to serve both. Take that weight out of the file to train with the encoder's."
        )
    return model, report


def save_pretraining(folder: Path, model: PretrainingModel, source: dict[str, Any]) -> list[str]:
    """Write config.json and model.safetensors into `folder`, which exists; `source` is the config.json it began with,
    whose dropout rates are kept for the trainings to come.

    transformers opens them as ...ForMaskedLM, as BertForPreTraining where both heads were trained, or as
    BertForNextSentencePrediction. Returns the two names.
    """
    from safetensors.torch import save_file

    kind = model_type(source) or "bert"
    arch = model.encoder.config.arch
    head = model.head
    ending = "ForMaskedLM" if head.next is None else "ForPreTraining" if head.masked else "ForNextSentencePrediction"
    dropped = (*OUTDATED, HEAD_KEY, "id2label", "label2id", "problem_type")
    config = {key: value for key, value in source.items() if key not in dropped}
    config |= {"architectures": [CLASS_NAMES[kind] + ending], "model_type": kind, "dtype": "float32"}
    config["tie_word_embeddings"] = True
    with atomic_path(folder / SAFETENSORS) as path:
        state = state_by_names(model, lambda name: pretraining_names(arch, name))
        save_file(state, path, metadata={"format": "pt"})
    write_json(folder / CONFIG, config)
    return [CONFIG, SAFETENSORS]
