"""Encoders that are not of the family (DeBERTa, MPNet, ...), run by transformers behind the call of our own `Encoder`.

They are slower: rows are padded to the longest of a batch, and layers cannot be frozen one by one. Code that lies in a
model folder is never run. This needs the extra `hf`.
"""

from __future__ import annotations

import importlib.util
import inspect
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bertune.errors import MissingExtraError, ModelError
from bertune.model.encoder import EncoderConfig, Inputs
from bertune.model.hubconfig import OWN_TYPE
from bertune.model.names import OWN_HEAD, Misfits
from bertune.model.noise import Noise
from bertune.model.weights import read_weights

HIDDEN_RATES = ("hidden_dropout_prob", "dropout", "hidden_dropout")
ATTENTION_RATES = ("attention_probs_dropout_prob", "attention_dropout")
# These count positions from pad_id + 1, as roberta does.
_OFFSET_TYPES = (
    "mpnet", "longformer", "data2vec-text", "xlm-roberta-xl", "roberta-prelayernorm", "ibert", "xmod", "luke", "lilt",
)  # fmt: skip


def adapter_config(raw: dict[str, Any], kind: str, *, hint: str, folder: Path | None) -> EncoderConfig:
    """Sizes of an architecture that only transformers knows; errors begin with `hint`, which names those we know."""
    if importlib.util.find_spec("transformers") is None:
        raise MissingExtraError("transformers", "hf", f"{hint}; the adapter for it")
    found = _foreign_config(raw, kind, hint)
    hidden, heads = int(found.hidden_size), int(getattr(found, "num_attention_heads", 1))
    dropout = _rate(found, HIDDEN_RATES)
    pad_id = int(getattr(found, "pad_token_id", None) or 0)
    offset = pad_id + 1 if kind in _OFFSET_TYPES else 0
    return EncoderConfig(
        arch="adapter",
        vocab_size=int(found.vocab_size),
        hidden=hidden,
        layers=int(getattr(found, "num_hidden_layers", 1)),
        heads=heads if heads and hidden % heads == 0 else 1,
        ffn=int(getattr(found, "intermediate_size", None) or 4 * hidden),
        max_positions=_longest(found, folder, offset),
        type_vocab=int(getattr(found, "type_vocab_size", None) or 0),
        dropout=dropout,
        attention_dropout=_rate(found, ATTENTION_RATES),
        pad_id=pad_id,
        position_offset=offset,
        head_dropout=dropout,
        initializer_range=float(getattr(found, "initializer_range", 0.02)),
    )


def _foreign_config(raw: dict[str, Any], kind: str, hint: str) -> Any:
    """transformers' configuration object for a config.json."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES as ENCODERS

    if kind not in CONFIG_MAPPING:
        raise ModelError(
            f"{hint}, and the installed transformers does not know it either; code inside a model folder is never run."
            " Choose another model, or a newer transformers."
        )
    if kind not in ENCODERS or raw.get("is_encoder_decoder") or raw.get("is_decoder"):
        raise ModelError(f"{hint}, and it is not an encoder of text. Choose a model that was trained to fill masks.")
    values = {**raw, "model_type": kind}
    try:
        found = CONFIG_MAPPING[kind].from_dict(values)
    except (StrictDataclassError, TypeError, ValueError, KeyError, AttributeError) as error:
        raise ModelError(f"{hint}, and transformers does not accept the file: {' '.join(str(error).split())}") from None
    if not hasattr(found, "hidden_size") or not hasattr(found, "vocab_size"):
        raise ModelError(f"{hint}, and it states no hidden_size and vocab_size. Choose another model.")
    return found


def _rate(found: Any, names: tuple[str, ...]) -> float:
    values = (getattr(found, name, None) for name in names)
    return float(next((value for value in values if isinstance(value, int | float)), 0.1))


def _longest(found: Any, folder: Path | None, offset: int) -> int:
    """Positions the model has; a tokenizer's own limit is believed where it is lower, for not every model states it."""
    longest = int(getattr(found, "max_position_embeddings", None) or 512)
    if folder is not None:
        try:
            limit = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8")).get("model_max_length")
        except (OSError, ValueError, AttributeError):
            limit = None
        if isinstance(limit, int) and 0 < limit < 1_000_000:
            longest = min(longest, limit + offset)
    return longest


class AdapterEncoder(nn.Module):
    """A transformers model with the call of `Encoder`: flat tokens in, flat hidden states out."""

    def __init__(self, config: EncoderConfig, module: nn.Module) -> None:
        super().__init__()
        self.config = config
        self.module = module
        self.compute_dtype = torch.float32
        takes_types = "token_type_ids" in inspect.signature(module.forward).parameters
        self._types = takes_types and config.type_vocab > 1

    def compute_in(self, dtype: torch.dtype, *, kernels: str = "torch") -> AdapterEncoder:
        """Compute the matrix products in `dtype`; the weights stay in fp32, and `kernels` stay those of torch."""
        self.compute_dtype = dtype
        return self

    def forward(
        self, inputs: Inputs, *, noise: Noise | None = None, words: Tensor | None = None, hidden: Tensor | None = None,
        start: int = 0, stop: int | None = None,
    ) -> Tensor:
        """Hidden states [tokens, hidden] of the last layer, in fp32; only `inputs` and `noise` can be given."""
        if words is not None or hidden is not None or start or stop is not None:
            raise ModelError("An encoder run by transformers is computed whole: from token ids through all layers.")
        lengths = inputs.lengths
        row = torch.repeat_interleave(torch.arange(len(lengths), device=lengths.device), lengths)
        shape = (len(lengths), inputs.plan.longest)
        ids = inputs.ids.new_full(shape, self.config.pad_id)
        ids[row, inputs.positions] = inputs.ids
        mask = torch.zeros_like(ids)
        mask[row, inputs.positions] = 1
        arguments = {"input_ids": ids, "attention_mask": mask}
        if self._types:
            types = torch.zeros_like(ids)
            types[row, inputs.positions] = inputs.types
            arguments["token_type_ids"] = types
        self.module.train(noise is not None)
        half = self.compute_dtype != torch.float32
        with _seeded(noise), torch.autocast(ids.device.type, dtype=self.compute_dtype if half else None, enabled=half):
            states = self.module(**arguments)[0]
        return states[row, inputs.positions].float()


@contextmanager
def _seeded(noise: Noise | None) -> Iterator[None]:
    """Let dropout inside transformers, which draws from the global stream, follow `noise` and leave no trace there."""
    if noise is None:
        yield
        return
    seed = int(torch.randint(2**62, (1,), generator=noise.generator, device=noise.device))
    device = noise.device
    devices = [] if device.type == "cpu" else [device.index or 0]
    with torch.random.fork_rng(devices, device_type=device.type if devices else "cuda"):
        torch.manual_seed(seed)
        yield


@dataclass
class Built:
    """An adapter with its weights; head: tensors of the head in a result of ours, by their names in the file."""

    encoder: AdapterEncoder
    loaded: int
    skipped: dict[str, list[str]] = field(default_factory=dict)
    head: dict[str, Tensor] = field(default_factory=dict)


def build_adapter(folder: Path, raw: dict[str, Any], config: EncoderConfig, *, seed: int) -> Built:
    """The encoder in `folder`; `config` comes from `adapter_config`, perhaps with other dropout rates.

    Weights that are missing or left over are a ModelError that lists them, except for poolers, which no head of ours
    reads, and the heads of other tasks.
    """
    own = str(raw["model_type"]).startswith(OWN_TYPE)
    kind = str(raw["model_type"]).removeprefix(OWN_TYPE)
    foreign = _foreign_config(raw | adapter_rates(raw, config), kind, f"{folder}: model type '{kind}'")
    with _quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # a pooler that the file lacks is drawn here
        return _restored(folder, config, foreign) if own else _pretrained(folder, config, foreign)


def adapter_rates(raw: dict[str, Any], config: EncoderConfig) -> dict[str, float]:
    """The dropout rates of `config` under those names that a config.json has for them."""
    rates = dict.fromkeys(HIDDEN_RATES, config.dropout) | dict.fromkeys(ATTENTION_RATES, config.attention_dropout)
    return {name: rate for name, rate in rates.items() if name in raw}


def _restored(folder: Path, config: EncoderConfig, foreign: Any) -> Built:
    """From a result of ours, which holds the encoder under transformers' own names."""
    from transformers import AutoModel

    tensors = read_weights(folder)
    heads = {name: tensor.clone() for name, tensor in tensors.items() if name.startswith(OWN_HEAD)}
    module: nn.Module = AutoModel.from_config(foreign, trust_remote_code=False, dtype=torch.float32)
    rest = {name: tensor for name, tensor in tensors.items() if name not in heads}
    expected = module.state_dict()
    shapes = [name for name in expected.keys() & rest.keys() if expected[name].shape != rest[name].shape]
    Misfits(sorted(expected.keys() - rest.keys()), sorted(rest.keys() - expected.keys()), shapes).check(folder)
    module.load_state_dict(rest)
    return Built(AdapterEncoder(config, module), len(rest), head=heads)


def _pretrained(folder: Path, config: EncoderConfig, foreign: Any) -> Built:
    """From a folder of the hub, whose legacy names transformers itself knows best."""
    from safetensors import SafetensorError
    from transformers import AutoModel

    try:
        module, found = AutoModel.from_pretrained(
            str(folder), config=foreign, local_files_only=True, trust_remote_code=False, dtype=torch.float32,
            output_loading_info=True, ignore_mismatched_sizes=True,
        )  # fmt: skip
    except (OSError, RuntimeError, ValueError, KeyError, SafetensorError) as error:
        raise ModelError(f"{folder}: transformers cannot load it: {' '.join(str(error).split())}") from None
    missing = [name for name in found["missing_keys"] if "pooler" not in name]
    extra, prefix = sorted(found["unexpected_keys"]), f"{module.base_model_prefix}."
    # Names under the encoder's prefix belong to the encoder; without a prefix in the file, heads cannot be told apart.
    unexpected = [name for name in extra if name.startswith(prefix)]
    others = [name for name in extra if not name.startswith(prefix)]
    Misfits(sorted(missing), unexpected, sorted(name for name, *_ in found["mismatched_keys"])).check(folder)
    loaded = len(module.state_dict()) - len(found["missing_keys"])
    return Built(AdapterEncoder(config, module), loaded, {"other tasks' heads": others} if others else {})


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers' progress bars and tables off the screen; what matters in them is checked and said here."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
