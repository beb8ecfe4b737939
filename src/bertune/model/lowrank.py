"""LoRA: small matrices beside the large ones of an encoder, kept in a small file, and merged where it is opened.

Hu et al. 2021, LoRA: Low-Rank Adaptation of Large Language Models (arXiv 2106.09685): W becomes W + scale B A, with
A [rank, in], B [out, rank] and scale = alpha / rank. A result that was trained so holds adapter.safetensors in place of
model.safetensors: A, B and the head by our own names, and in its header which model they belong to.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from bertune.bundle import Bundle, write_bundle
from bertune.errors import BertuneError, ModelError
from bertune.files import atomic_path, to_json, write_atomic
from bertune.folder import CARD, read_record
from bertune.hub import CONFIG, TOKENIZER_FILES, weight_files
from bertune.model.classifier import ClassifierModel
from bertune.model.encoder import EncoderConfig
from bertune.model.shared import encoder_of, is_shared
from bertune.model.source import atomic_folder, open_source
from bertune.model.weights import SAFETENSORS
from bertune.paths import cached_digest
from bertune.settings import read_yaml

ADAPTER = "adapter.safetensors"
BASE = "base"  # a folder in the result's, where its base model may be put


@dataclass(frozen=True)
class Place:
    """Rows begin ... end of the weight `weight`, beside which a pair of matrices stands."""

    weight: str
    target: str
    begin: int
    end: int

    def key(self, which: str) -> str:
        """The name of A or B: `encoder.layers.0.qkv.weight/query/a`."""
        return f"{self.weight}/{self.target}/{which}"


def places_of(config: EncoderConfig, targets: Sequence[str], *, layers: int | None = None) -> list[Place]:
    """Where the matrices of each layer, or of the lowest `layers`, stand; query, key and value are thirds of one
    product here."""
    thirds = {"query": 0, "key": 1, "value": 2}
    widths = {"out": config.hidden, "up": config.ffn * (2 if config.arch == "modernbert" else 1), "down": config.hidden}
    found = []
    for number in range(config.layers if layers is None else layers):
        for target in sorted(set(targets), key=[*thirds, *widths].index):
            if target in thirds:
                begin = thirds[target] * config.hidden
                place = Place(f"encoder.layers.{number}.qkv.weight", target, begin, begin + config.hidden)
            else:
                place = Place(f"encoder.layers.{number}.{target}.weight", target, 0, widths[target])
            found.append(place)
    return found


def add_product(weight: Tensor, place: Place, a: Tensor, b: Tensor, scale: float) -> None:
    """Add scale B A to its rows of the fp32 `weight`, in place."""
    with torch.no_grad():
        weight[place.begin : place.end].addmm_(b, a, alpha=scale)


@dataclass(frozen=True)
class Base:
    """The model that matrices belong to: its name and revision as for --model, without the folders before it, and the
    SHA-256 of its weights."""

    name: str
    revision: str | None
    sha256: str


def weights_digest(folder: Path) -> str | None:
    """SHA-256 of the weights in a model folder (of the digests of all, where they are several files); None where
    there are none, as in a result that was itself trained with LoRA."""
    files = weight_files({path.name for path in folder.iterdir()})
    digests = [cached_digest(folder / name, "sha256") for name in files]
    if len(digests) < 2:
        return digests[0] if digests else None
    return hashlib.sha256(" ".join(digests).encode()).hexdigest()


def save_adapter(
    folder: Path, matrices: Mapping[str, Tensor], model: ClassifierModel, *, base: Base, scale: float,
    targets: Sequence[str],
) -> None:
    """Write adapter.safetensors: A and B by `Place.key`, and the head of `model`."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in matrices.items()}
    head = {f"head.{name}": value.detach().cpu().contiguous() for name, value in model.head.state_dict().items()}
    header = {"base": asdict(base), "scale": scale, "targets": list(targets), "layers": model.depth}
    with atomic_path(folder / ADAPTER) as path:
        # One entry: safetensors writes several in any order, and the same run is to end with the same bytes.
        save_file(tensors | head, path, metadata={"bertune": to_json(header)})


@dataclass(frozen=True)
class Adapter:
    """What adapter.safetensors holds, and the folder in which its base model was found."""

    folder: Path
    tensors: dict[str, Tensor]
    targets: tuple[str, ...]
    scale: float
    layers: int  # so many of the lowest have matrices

    def merge(self, model: ClassifierModel, *, head: Sequence[str]) -> None:
        """Add the products to the encoder of the base model, and give `head` (names of its parts) its weights."""
        encoder = dict(model.named_parameters())
        for place in places_of(model.encoder.config, self.targets, layers=self.layers):
            a, b = self.tensors[place.key("a")], self.tensors[place.key("b")]
            add_product(encoder[place.weight].data, place, a, b, self.scale)
        with torch.no_grad():
            for name, value in model.head.state_dict().items():
                if name.split(".")[0] in head:
                    value.copy_(self.tensors[f"head.{name}"])


def is_adapter(folder: Path) -> bool:
    """Whether a folder is a result that was trained with LoRA, and not merged yet."""
    return (folder / ADAPTER).is_file() and not weight_files({path.name for path in folder.iterdir()})


def read_adapter(folder: Path) -> Adapter | None:
    """What `save_adapter` wrote into `folder`, None where the folder has weights of its own.

    Raises ModelError for a damaged file, and where no base model with the right weights is found.
    """
    if not is_adapter(folder):
        return None
    path = folder / ADAPTER
    try:
        with safe_open(path, framework="pt") as opened:
            header = json.loads((opened.metadata() or {})["bertune"])
            tensors = {name: opened.get_tensor(name).clone() for name in opened.keys()}  # noqa: SIM118 (not a mapping)
        base = Base(**header["base"])
        targets, scale, layers = tuple(header["targets"]), float(header["scale"]), int(header["layers"])
    except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
        raise ModelError(f"{path}: not readable as an adapter of bertune, so it is damaged or cut: {error}") from None
    return Adapter(_find(folder, base), tensors, targets, scale, layers)


def foundations(folder: Path) -> list[Path]:
    """The folders that a model needs: its own, and where its weights stand beside others, that of these."""
    adapter = read_adapter(folder)
    if adapter is not None:
        return [folder, *foundations(adapter.folder)]
    return [folder, encoder_of(folder)] if is_shared(folder) else [folder]


def _find(folder: Path, base: Base) -> Path:
    """The folder of the base model: in the result itself, where its run says, or under its name."""
    asked: list[tuple[str | Path, str | None]] = [(folder / BASE, None)] if (folder / BASE).is_dir() else []
    for record in (folder / "run" / "config.yaml", folder.parent / "config.yaml"):  # the latter of run/last-good
        if record.is_file():
            model = read_yaml(record).get("model") or {}
            asked.append((str(model.get("name") or base.name), model.get("revision")))
    asked.append((base.name, base.revision))
    others = ""
    for name, revision in asked:
        try:
            found, _ = open_source(name, revision=revision)
            digest = weights_digest(found)
        except (BertuneError, OSError):
            continue
        if digest == base.sha256:
            return found
        others = f"; {found} has others" if digest is not None else others
    raise ModelError(
        f"{folder}: was trained with LoRA beside the model '{base.name}', whose weights (SHA-256 {base.sha256}) are "
        f"not found{others}. Put the folder of that model at {folder / BASE}."
    )


def merge_folder(source: Path, out: Path, *, overwrite: bool) -> None:
    """Write a result that was trained with LoRA as one that stands alone: the merged model in model.safetensors."""
    from bertune.evaluate.card import merged_card
    from bertune.model.load import hub_state, load_model, opens_in_transformers

    bundle = Bundle.read(source)
    model, _ = load_model(source)
    opens = opens_in_transformers(bundle.encoder, model.head.config)

    def write_files(staging: Path) -> None:
        save_file(hub_state(model), staging / SAFETENSORS, metadata={"format": "pt"})
        for name in (CONFIG, CARD, *TOKENIZER_FILES):
            if (source / name).is_file():
                shutil.copyfile(source / name, staging / name)
        told = source / "run" / "card.json"
        if told.is_file() and (staging / CARD).is_file():
            card = (staging / CARD).read_text(encoding="utf-8")
            merged = merged_card(card, read_record(told), opens_in_transformers=opens)
            if merged != card:
                write_atomic(staging / CARD, merged)

    with atomic_folder(out, overwrite=overwrite) as folder:
        values: dict[str, Any] = {"opens_in_transformers": opens}
        write_bundle(folder, bundle.model_copy(update=values), write_files)

