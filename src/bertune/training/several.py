"""Several trainings whose results lie in one folder: folds, seeds."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from bertune.config import Config
from bertune.errors import ConfigError
from bertune.folder import check_output, prepare_output
from bertune.training.checkup import UNCHECKED
from bertune.training.listen import Listener
from bertune.training.run import Result, run


def run_each(
    variants: Mapping[str, dict[str, Any]], config: Config, *, out: Path, folder: str, title: str, source: Any,
    resume: bool, overwrite: bool, listener: Listener,
) -> list[Result]:
    """Train `config` once for each variant, options by the name of its result in run/`folder`/ of `out`.

    The first looks the data over and finds what is wrong with the input; only then an earlier result in `out` leaves.
    """
    check_output(out, resume=resume, overwrite=overwrite, inputs=config.read_files())
    if "auto" in (config.model.long_text, config.model.long_text_pair):
        raise ConfigError(
            "--long-text auto: would choose anew in each training. Train once with it, then pass what it chose."
        )
    results: list[Result] = []
    for name, options in variants.items():
        first = not results
        listener.say(f"{title} {name} ({len(results) + 1} of {len(variants)}):")
        ready = partial(prepare_output, out, resume=resume, overwrite=overwrite) if first else None
        results.append(run(
            config.updated(options if first else {**options, "check": UNCHECKED}), source=source, ready=ready,
            out=out / "run" / folder / name, resume=resume, overwrite=overwrite and first, listener=listener,
        ))  # fmt: skip
    return results
