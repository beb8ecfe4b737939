"""A model folder becomes a `ClassifierModel`, and the other way round, in files that transformers opens too.

Every weight of the file is used, or left out for a stated reason and counted; every weight of the model comes from the
file, or is new and said to be. Anything else is an error that lists the names.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bertune.errors import ModelError
from bertune.files import atomic_path, write_json
from bertune.model.adapter import AdapterEncoder, adapter_rates, build_adapter
from bertune.model.classifier import ClassifierModel, EncoderModel
from bertune.model.encoder import EncoderConfig, initialize
from bertune.model.heads import Head, HeadConfig
from bertune.model.hubconfig import (
    CONFIG,
    HEAD_KEY,
    OWN_TYPE,
    model_type,
    parse_config,
    read_config,
    read_source,
    saved_head,
)  # fmt: skip
from bertune.model.lowrank import read_adapter
from bertune.model.names import D2L_POSITIONS, LEGACY, TABLES, Misfits, hub_names, plain_name, skip_reason
from bertune.model.shared import read_shared
from bertune.model.weights import SAFETENSORS, read_weights

__all__ = [
    "LoadReport", "hub_config", "hub_state", "load_model", "opens_in_transformers", "read_config", "read_source",
    "save_config", "save_model",
]  # fmt: skip

CLASS_NAMES = {
    "bert": "Bert", "roberta": "Roberta", "xlm-roberta": "XLMRoberta", "camembert": "Camembert",
    "distilbert": "DistilBert", "electra": "Electra", "modernbert": "ModernBert",
}  # fmt: skip
# What of a config.json stops being true once the model is trained and saved by us.
OUTDATED = (
    "_name_or_path", "transformers_version", "torch_dtype", "auto_map", "finetuning_task", "num_labels",
    "task_specific_params", "quantization_config",
)  # fmt: skip


@dataclass
class LoadReport:
    """What became of a file's weights.

    loaded: tensors used; renamed: those of them under legacy names; skipped: names that were left out, by reason; new:
    parts of the model with fresh weights.
    """

    loaded: int = 0
    renamed: int = 0
    skipped: dict[str, list[str]] = field(default_factory=dict)
    new: list[str] = field(default_factory=list)

    def sentence(self) -> str:
        """`Loaded 103 weights; left out: other tasks' heads (5), buffers (1). New weights: head.classifier.`"""
        left_out = ", ".join(f"{reason} ({len(names)})" for reason, names in self.skipped.items())
        legacy = f" ({self.renamed} under legacy names)" if self.renamed else ""
        first = f"Loaded {self.loaded} weights{legacy}" + (f"; left out: {left_out}." if left_out else ".")
        return first + (f" New weights: {', '.join(self.new)}." if self.new else "")


def load_model(
    folder: Path, *, head: HeadConfig | None = None, keep_head: bool = False, dropout: float | None = None,
    seed: int = 0,
) -> tuple[ClassifierModel, LoadReport]:
    """The encoder in `folder` with a head, in fp32 on the CPU.

    head: the head to put on it; None: the one that the folder holds, whose weights must then be there. keep_head: use
    the folder's trained head where it is the same as `head` (kind, pooling, sizes, number of labels); otherwise only
    what pre-training left of it is used (the pooler of bert, the dense layer and norm of modernbert). dropout: rate
    inside the encoder; None: the model's own. seed: of new weights, which depend on nothing else.
    """
    folder = Path(folder)
    raw = read_source(folder)
    config = parse_config(raw, place=str(folder / CONFIG), folder=folder)
    saved = saved_head(raw, config)
    if head is None:
        if saved is None:
            raise ModelError(f"{folder}: holds an encoder without a classifier; train one on it first.")
        head, keep_head = saved, True
    if dropout is not None:
        config = with_dropout(config, dropout)
    kept = keep_head and saved is not None and _same(saved, head)
    if config.arch == "adapter":
        built = build_adapter(folder, raw, config, seed=seed)
        model = _build(config, head, seed, built.encoder)
        report = _fill(model, built.head, kept=kept, place=folder, only_head=True)
        report.loaded += built.loaded
        report.skipped.update(built.skipped)
        return model, report
    model = _build(config, head, seed)
    adapter = read_adapter(folder)
    if adapter is None:
        tensors = read_shared(folder)
        return model, _fill(model, read_weights(folder) if tensors is None else tensors, kept=kept, place=folder)
    report = _fill(model, read_weights(adapter.folder), kept=False, place=adapter.folder)
    pretrained = TABLES[config.arch].pretrained if saved is not None and saved.kind == head.kind == "own" else ()
    known = [name for name, _ in model.head.named_children() if kept or name in pretrained]
    adapter.merge(model, head=known)
    report.new = [part for part in report.new if part.removeprefix("head.") not in known]
    return model, report


def with_dropout(config: EncoderConfig, rate: float) -> EncoderConfig:
    """The same encoder with one dropout rate wherever its architecture drops."""
    if config.arch == "modernbert":
        return replace(config, attention_dropout=rate, embedding_dropout=rate, ffn_dropout=rate)
    return replace(config, dropout=rate, attention_dropout=rate)


def _same(saved: HeadConfig, head: HeadConfig) -> bool:
    """Whether the weights of one are those of the other."""
    hidden = head.hidden if head.kind == "mlp" else saved.hidden
    join = saved.join if "attention" not in (saved.join, head.join) else head.join
    return replace(saved, dropout=head.dropout) == replace(head, hidden=hidden, join=join)


def _build(config: EncoderConfig, head: HeadConfig, seed: int, module: AdapterEncoder | None = None) -> ClassifierModel:
    """A model with a new head; an encoder of our own has no memory yet, for its weights come from the file."""
    with torch.device("meta"):
        model = ClassifierModel(config, head, module=module)
    # A second head, since giving memory to the first would make torch import sympy; no random numbers are used up.
    with torch.random.fork_rng(devices=[]):
        model.head = Head(config, head)
    initialize(model.head, config.initializer_range, seed=seed)
    return model


def _fill(
    model: ClassifierModel, tensors: dict[str, Tensor], *, kept: bool, place: Path, only_head: bool = False
) -> LoadReport:
    """Put the file's `tensors` into `model`; every name is accounted for in the report, or in a ModelError."""
    arch, head = model.encoder.config.arch, model.head.config
    pretrained = TABLES[arch].pretrained if head.kind == "own" else ()
    return fill(
        model, tensors, place=place, names=lambda name: hub_names(arch, head, name), only_head=only_head,
        is_new=lambda part, absent: not kept and (part not in pretrained or absent),
    )


def fill(
    model: EncoderModel, tensors: dict[str, Tensor], *, place: Path, names: Callable[[str], tuple[str, ...]],
    is_new: Callable[[str, bool], bool], only_head: bool = False, tied: Collection[str] = (),
) -> LoadReport:
    """Put the file's `tensors` into `model`; every name is accounted for in the report, or in a ModelError.

    names: the hub's names of one of ours. is_new: whether a part of the head keeps its fresh weights, told its name and
    whether all of it is absent from the file. only_head: the encoder has its weights. tied: plain names of copies.
    """
    arch = model.encoder.config.arch
    file, problems, report = _by_plain_name(arch, tensors, place), Misfits(), LoadReport()
    state: dict[str, Tensor] = {}
    used: set[str] = set(tied) & file.keys()
    for name, place_for in model.state_dict().items():
        side, part = name.split(".")[:2]
        if side == "encoder" and only_head:
            continue
        sources = [_plain(arch, source) for source in names(name)]
        absent = [source for source in sources if source not in file]
        if side == "head" and is_new(part, len(absent) == len(sources)):
            if f"head.{part}" not in report.new:
                report.new.append(f"head.{part}")
            continue
        used.update(sources)
        if absent:
            problems.missing += absent
            continue
        pieces = [file[source] for source in sources]
        problems.types += [source for source in sources if not file[source].is_floating_point()]
        state[name] = _stacked(pieces, place_for.shape, sources, problems)
    for name in file.keys() - used:
        reason = skip_reason(name)
        if reason is None:
            problems.unexpected.append(name)
        else:
            report.skipped.setdefault(reason, []).append(name)
    problems.unexpected.sort()
    problems.check(place)
    model.load_state_dict(state, strict=False, assign=True)
    report.loaded += len(used)
    if arch != "adapter":
        report.renamed = sum(name.endswith(LEGACY) and plain_name(arch, name) in used for name in tensors)
    report.skipped = {reason: sorted(report.skipped[reason]) for reason in sorted(report.skipped)}
    return report


def _plain(arch: str, name: str) -> str:
    return name if arch == "adapter" else plain_name(arch, name)


def _by_plain_name(arch: str, tensors: dict[str, Tensor], place: Path) -> dict[str, Tensor]:
    file: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        plain = _plain(arch, name)
        if plain in file:
            raise ModelError(f"{place}: the weight '{plain}' is there twice, under two spellings of its name.")
        file[plain] = tensor
    return file


def _stacked(pieces: list[Tensor], shape: torch.Size, sources: list[str], problems: Misfits) -> Tensor:
    """An fp32 copy of `pieces`, one above the other; a wrong shape is noted in `problems`."""
    wanted = (shape[0] // len(pieces), *shape[1:])
    for place, (piece, source) in enumerate(zip(pieces, sources, strict=True)):
        if source == D2L_POSITIONS and piece.ndim == 3 and piece.shape[0] == 1:
            pieces[place] = piece = piece[0]
        if tuple(piece.shape) != wanted:
            problems.shapes.append(f"{source} {list(piece.shape)} instead of {list(wanted)}")
            return piece
    # Always a copy: a view would keep the file mapped, which may be replaced while the model lives.
    if len(pieces) == 1:
        return pieces[0].to(torch.float32, copy=True)
    return torch.cat([piece.to(torch.float32) for piece in pieces])


def opens_in_transformers(arch: str, head: HeadConfig) -> bool:
    """Whether transformers' AutoModelForSequenceClassification computes what we do from a saved folder."""
    return head.kind == "own" and head.join is None and arch not in ("d2l", "adapter")


def hub_state(model: ClassifierModel) -> dict[str, Tensor]:
    """All weights by their names in a hub file: fp32, on the CPU, each in memory of its own."""
    arch, head = model.encoder.config.arch, model.head.config
    return state_by_names(model, lambda name: hub_names(arch, head, name))


def state_by_names(model: nn.Module, names: Callable[[str], tuple[str, ...]]) -> dict[str, Tensor]:
    """`hub_state` by any table of names."""
    state: dict[str, Tensor] = {}
    for name, own in model.state_dict().items():
        tensor = own.detach().to("cpu")
        tensor = tensor.to(torch.float32) if tensor.is_floating_point() else tensor
        sources = names(name)
        for source, piece in zip(sources, tensor.chunk(len(sources)), strict=True):
            piece = piece[None] if source == D2L_POSITIONS else piece
            state[source] = piece.clone(memory_format=torch.contiguous_format)
    return state


def hub_config(
    model: ClassifierModel, source: dict[str, Any], *, labels: Sequence[str], problem_type: str
) -> dict[str, Any]:
    """config.json of the trained model; `source` is that of the model it started from.

    A head that transformers does not have makes the model type `bertune-...`: transformers then refuses the folder,
    where it would otherwise load the encoder and put a random classifier on it with no more than a warning.
    """
    config, head = model.encoder.config, model.head.config
    if len(labels) != head.num_labels:
        raise ModelError(f"The model has {head.num_labels} outputs, but there are {len(labels)} labels.")
    kind = model_type(source) or "bert"
    result = {key: value for key, value in source.items() if key not in (*OUTDATED, HEAD_KEY)}
    opens = opens_in_transformers(config.arch, head)
    own_type = opens or kind == "d2l-bert"
    result |= {
        "architectures": [f"{CLASS_NAMES[kind] if opens else 'Bertune'}ForSequenceClassification"],
        "model_type": kind if own_type else OWN_TYPE + kind,
        "dtype": "float32",
        "problem_type": problem_type,
        "id2label": {str(number): label for number, label in enumerate(labels)},
        "label2id": {label: number for number, label in enumerate(labels)},
        HEAD_KEY: {
            "kind": head.kind, "pooling": head.pooling, "hidden": head.hidden, "dropout": head.dropout,
            **({"layers": list(head.layers), "combine": head.combine} if head.layers else {}),
            **({"join": head.join} if head.join else {}),
        },
    }
    return result | _rates(config, head, source)


def encoder_config(model: ClassifierModel, source: dict[str, Any]) -> dict[str, Any]:
    """config.json of the encoder alone; `source` is that of the model it started from."""
    kind = model_type(source) or "bert"
    dropped = (*OUTDATED, HEAD_KEY, "id2label", "label2id", "problem_type")
    result = {key: value for key, value in source.items() if key not in dropped}
    name = f"{CLASS_NAMES[kind]}Model" if kind in CLASS_NAMES else "BertuneModel"
    return result | {"architectures": [name], "model_type": kind, "dtype": "float32"} | encoder_rates(
        model.encoder.config
    )


def _rates(config: EncoderConfig, head: HeadConfig, source: dict[str, Any]) -> dict[str, Any]:
    """The dropout rates that were used, in the architecture's own fields."""
    if config.arch == "adapter":
        return dict(adapter_rates(source, config))
    rates = encoder_rates(config)
    if config.arch == "distilbert":
        return rates | {"seq_classif_dropout": head.dropout}
    own_pooling = config.arch == "modernbert" and head.kind == "own"
    return rates | {"classifier_dropout": head.dropout} | ({"classifier_pooling": head.pooling} if own_pooling else {})


def encoder_rates(config: EncoderConfig) -> dict[str, Any]:
    """The dropout rates inside an encoder of the family, in the architecture's own fields of config.json."""
    if config.arch == "modernbert":
        return {
            "attention_dropout": config.attention_dropout, "embedding_dropout": config.embedding_dropout or 0.0,
            "mlp_dropout": config.ffn_dropout,
        }  # fmt: skip
    if config.arch == "distilbert":
        return {"dropout": config.dropout, "attention_dropout": config.attention_dropout}
    return {"hidden_dropout_prob": config.dropout, "attention_probs_dropout_prob": config.attention_dropout}


def save_model(
    folder: Path, model: ClassifierModel, source: dict[str, Any], *, labels: Sequence[str], problem_type: str
) -> list[str]:
    """Write config.json and model.safetensors into `folder`, which exists; returns the two names."""
    from safetensors.torch import save_file

    with atomic_path(Path(folder) / SAFETENSORS) as path:
        save_file(hub_state(model), path, metadata={"format": "pt"})
    save_config(folder, model, source, labels=labels, problem_type=problem_type)
    return [CONFIG, SAFETENSORS]


def save_config(
    folder: Path, model: ClassifierModel, source: dict[str, Any], *, labels: Sequence[str], problem_type: str
) -> None:
    """Write config.json alone into `folder`."""
    write_json(Path(folder) / CONFIG, hub_config(model, source, labels=labels, problem_type=problem_type))
