"""Several trained models of one task as one result: their weights averaged, or all of them answering together."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from bertune.bundle import Bundle, write_bundle
from bertune.config import Config
from bertune.data.tokens import Tokenizer
from bertune.errors import ModelError
from bertune.evaluate.card import CardInfo
from bertune.evaluate.metrics import evaluate, is_better, metric_value
from bertune.evaluate.tables import result_columns, verdict
from bertune.folder import BUNDLE_FILE, read_record
from bertune.ship.torch_backend import TorchBackend
from bertune.training.finish import CARD, judge, write_card
from bertune.training.listen import Listener
from bertune.training.prepare import Prepared, keep_apart, read_splits, tokenize

WEIGHTS = "model.safetensors"


def soup(
    out: Path, folders: Sequence[Path], config: Config, *, source: Any, metric: str, listener: Listener
) -> tuple[list[int], dict[str, Any]]:
    """The mean of the weights of some of `folders`, the best first, as the bundle of `out`, measured.

    The greedy soup of Wortsman et al. 2022 (Model soups): each in turn is taken in where the mean is then at least as
    good on the validation rows, by `metric` at one half or the likeliest label. Returns the places of those taken in,
    and what `finish.judge` tells.
    """
    prepared = _prepared(folders[0], config, source)
    valid, task = prepared.splits["valid"], prepared.task

    def value(folder: Path) -> float:
        backend = TorchBackend(folder, device=config.train.device, precision="fp32", threads=config.train.threads)
        logits = backend.logits(valid.tokens)
        return metric_value(metric, evaluate(task.kind, task.labels, logits, valid.targets))

    with tempfile.TemporaryDirectory(prefix="bertune-") as name:
        work = Path(name)
        shutil.copytree(folders[0], work / "soup", ignore=shutil.ignore_patterns("run", WEIGHTS))
        weights = [load_file(folders[0] / WEIGHTS)]
        chosen, best = [0], value(folders[0])
        save_file(weights[0], work / WEIGHTS, metadata={"format": "pt"})
        for place, folder in enumerate(folders[1:], 1):
            tried = [*weights, load_file(folder / WEIGHTS)]
            save_file(mean_of(tried), work / "soup" / WEIGHTS, metadata={"format": "pt"})
            found = value(work / "soup")
            if found == best or is_better(metric, found, best):
                weights, best = tried, found
                chosen.append(place)
                shutil.copy2(work / "soup" / WEIGHTS, work / WEIGHTS)
        listener.say(f"Soup: the mean of {len(chosen)} of {len(folders)} seeds; {metric} on valid is {best:.4f}.")

        def copy(staging: Path) -> None:
            _copy_files(folders[0], staging, without=(WEIGHTS,))
            shutil.copy2(work / WEIGHTS, staging / WEIGHTS)

        bundle = write_bundle(out, Bundle.read(folders[0]), copy)
    told = f"the mean of those of {len(chosen)} seeds"
    return chosen, _judged(out, bundle, config, prepared, metric=metric, listener=listener, weights=told)


def ensemble(
    out: Path, folders: Sequence[Path], config: Config, *, source: Any, metric: str, listener: Listener
) -> tuple[list[int], dict[str, Any]]:
    """All of `folders` as one bundle in `out` that answers with the mean of their calibrated probabilities; returns
    their places, and what `finish.judge` tells."""
    prepared = _prepared(folders[0], config, source)
    bundles = [Bundle.read(folder) for folder in folders]

    def copy(staging: Path) -> None:
        _copy_files(folders[0], staging, without=(WEIGHTS, "config.json"))
        for number, folder in enumerate(folders):
            place = staging / bundles[0].member(number)
            place.mkdir(parents=True)
            for file in (WEIGHTS, "config.json"):
                shutil.copy2(folder / file, place / file)

    joined = bundles[0].model_copy(
        update={"members": tuple(bundle.decision for bundle in bundles), "opens_in_transformers": False}
    )
    bundle = write_bundle(out, joined, copy)
    told = f"those of {len(folders)} seeds, whose probabilities are averaged"
    places = list(range(len(folders)))
    return places, _judged(out, bundle, config, prepared, metric=metric, listener=listener, weights=told)


def mean_of(states: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of tensors by name; those that are no floating point numbers are the same in all."""
    mean = {}
    for name, first in states[0].items():
        if first.is_floating_point():
            total = torch.stack([state[name].double() for state in states]).mean(dim=0)
            mean[name] = total.to(first.dtype).contiguous()
        else:
            mean[name] = first
    return mean


def _prepared(folder: Path, config: Config, source: Any) -> Prepared:
    """The splits as the results in `folder` and beside it saw them; all has been said already."""
    bundle = Bundle.read(folder)
    prepared = read_splits(source, config.data, lambda line: None)
    if config.decide.coverage is not None or config.decide.accuracy is not None:
        prepared = keep_apart(prepared, config.data)
    tokenize(
        prepared, Tokenizer.load(folder), **bundle.reading,
        say=lambda line: None,
    )  # fmt: skip
    return prepared


def _judged(
    out: Path, bundle: Bundle, config: Config, prepared: Prepared, *, metric: str, listener: Listener, weights: str
) -> dict[str, Any]:
    """Measure the bundle in `out`, and write its card over that of the seed that lies there."""
    bundle, judged = judge(
        out, bundle, config, prepared, metric=metric, listener=listener, threads=config.train.threads,
        device=config.train.device,
    )  # fmt: skip
    path = out / "run" / CARD
    if not path.is_file():
        raise ModelError(f"{path}: missing; the seeds were trained by an older version. Train them anew: --overwrite.")
    info = CardInfo.from_dict(read_record(path))
    metrics = {"metric": metric, **judged}
    info = replace(
        info, name=out.resolve().name, results=result_columns(metrics),
        verdict=verdict(metrics), rule=bundle.decision, opens_in_transformers=bundle.opens_in_transformers,
        settings={**info.settings, "weights kept": weights},
    )  # fmt: skip
    write_card(out, info)
    return judged


def _copy_files(source: Path, target: Path, *, without: tuple[str, ...]) -> None:
    """The files of a bundle, but for what its run left and those named."""
    for path in source.iterdir():
        if path.is_file() and path.name not in (BUNDLE_FILE, *without):
            shutil.copy2(path, target / path.name)
