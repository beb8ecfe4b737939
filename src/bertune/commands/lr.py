"""bertune lr: which learning rates a training can take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bertune.commands.options import SECTIONS, Configured, configured, flags_of, switch, with_flags
from bertune.commands.output import print_json
from bertune.config import Config
from bertune.progress import start_display
from bertune.training.idle import IDLE

KEYS = tuple(
    f"{section}.{name}"
    for section in ("data", "model", "train", "cache") for name in SECTIONS[section].model_fields
    if section != "train" or name not in IDLE
)  # fmt: skip


@with_flags(*flags_of(KEYS))
class Lr(Configured):
    details = (
        "It trains for a hundred steps or so while the rate rises, and draws the loss against it: a rate that is good "
        "lies well below the one where the loss is lowest, and far below the one where it runs away. No model is kept."
    )
    examples = (
        "bertune lr papers.csv --text TITLE --text ABSTRACT --out runs/papers-lr",
        "bertune lr reviews.csv --model google-bert/bert-base-uncased --from 1e-7 --to 1e-2 --steps 200 --out runs/lr",
    )

    files: Annotated[
        list[str], typer.Argument(metavar="DATA", help="Files as for bertune train.", show_default=False)
    ]
    out: Annotated[str, typer.Option(metavar="DIR", help="Where figures and picture go.", show_default=False)]
    steps: Annotated[int, typer.Option(metavar="N", help="Steps, each with a higher rate than the one before.")] = 120
    lowest: Annotated[float, typer.Option("--from", metavar="NUMBER", help="Rate of the first step.")] = 1e-6
    highest: Annotated[float, typer.Option("--to", metavar="NUMBER", help="Rate of the last step.")] = 1e-1
    overwrite: Annotated[bool, switch("--overwrite", "Replace the earlier result in --out.")] = False

    def run(self) -> None:
        display = start_display(quiet=self.quiet)
        config = configured(self, Config(), keys=KEYS, say=display.say)
        config = config.updated({"data": {"files": self.files}}, place="DATA")

        from bertune.report.rates import keep_range
        from bertune.training.lr_range import in_words, lr_range

        result = lr_range(
            config, out=self.out, steps=self.steps, lowest=self.lowest, highest=self.highest, overwrite=self.overwrite,
            listener=display,
        )  # fmt: skip
        keep_range(result.found, Path(self.out) / "run")
        if self.as_json:
            print_json({"out": str(result.out), "lr": result.found})
        else:
            print(in_words(result.found))
        display.say(f"The picture is {result.out / 'run' / 'lr-range.png'}.")
