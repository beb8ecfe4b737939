"""bertune pretrain: from texts without labels to an encoder that knows their language."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from bertune.commands.options import Resumable, configured, flags_of, switch, with_flags
from bertune.commands.output import print_json, print_table, shell_word
from bertune.config import PRETRAINING_KEYS, Config
from bertune.evaluate.curves import HELD_OUT
from bertune.progress import start_display


@with_flags(*flags_of(PRETRAINING_KEYS))
class Pretrain(Resumable):
    details = (
        "TEXT is read a row at a time, tokenised once, and kept in the cache. The result is a model folder: --model of "
        "bertune train takes it, and transformers opens it with the heads that were trained."
    )
    examples = (
        "bertune pretrain unlabeled.jsonl.gz --out models/papers",
        "bertune pretrain 'notes/*.txt' --model bert --whole-word --epochs 3 --out models/notes",
        "bertune pretrain wiki.txt.gz --model bert --objective both --max-length 512 --out models/wiki",
        "bertune pretrain books.txt.gz --from-scratch mini --vocab-size 8000 --epochs 4 --out models/books",
        "bertune pretrain --resume --out models/books",
    )

    files: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="TEXT", show_default=False,
            help="Plain text, CSV, TSV, JSON lines, Parquet or Arrow files, also packed with gzip, of any columns; "
            "patterns such as 'parts/*.txt'; hf:// addresses.",
        ),
    ] = None  # fmt: skip
    whole_word: Annotated[bool, switch("--whole-word", "Mask whole words, not single pieces of them.")] = False

    def run(self) -> None:
        display = start_display(quiet=self.quiet)
        out = self.folder(self.config, self.files, example="models/papers")
        record = Path(out) / "run" / "config.yaml"
        resumes = self.resume and record.is_file()
        base = Config.load(record) if resumes and not self.files else Config()
        config = configured(self, base, keys=PRETRAINING_KEYS, say=display.say)
        if self.whole_word:
            config = config.updated({"pretrain": {"whole_word": True}}, place="--whole-word")
        if self.files:
            config = config.updated({"data": {"files": self.files}}, place="TEXT")

        from bertune.training.pretrain import pretrain

        result = pretrain(config, out=out, resume=self.resume, overwrite=self.overwrite, listener=display)
        if config.report.page:
            from bertune.report.write import keep_pretraining_page

            keep_pretraining_page(result.out, say=display.say)
        if self.as_json:
            print_json({"out": str(result.out), "metrics": result.metrics})
        else:
            print_measured(result.metrics)
        display.say(f"The encoder is in {result.out}.")
        display.say(f"Next: bertune train DATA --model {shell_word(result.out)} --out runs/NAME")


def print_measured(metrics: dict[str, Any]) -> None:
    """What the held-out part cost before and after."""
    if "held_out" not in metrics:
        return
    before, after = metrics["before"] or {}, metrics["held_out"]
    rows = [
        [title.lower(), *(f"{found[name]:.4g}" if name in found else "" for found in (before, after))]
        for name, title in HELD_OUT.items() if name in after
    ]  # fmt: skip
    print_table([["held-out part", "before", "after"], *rows])
