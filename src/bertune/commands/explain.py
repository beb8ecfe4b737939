"""bertune explain: which words made the model say a label, and which training rows it sees as most alike."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from bertune.commands.incoming import stdin_bytes, tables_of_lines
from bertune.commands.models import PLACES, SEED, begin
from bertune.commands.opening import DEFAULTS, open_predictor
from bertune.commands.options import Configured, flags_of, with_flags
from bertune.commands.output import print_json
from bertune.config import Config
from bertune.errors import ConfigError
from bertune.paths import cache_settings
from bertune.progress import Display

if TYPE_CHECKING:
    from bertune.data.rows import Rows
    from bertune.data.tasks import Task

KEYS = ("train.device", "train.threads")


@with_flags(*flags_of(KEYS), *SEED, base=DEFAULTS)
class Explain(Configured):
    details = (
        "Integrated gradients give every word a score: what it adds to the logit of the label, beside the same text "
        "with padding in place of its words. The scores add up to the whole difference; what is missing is told. Then "
        "come the nearest training rows by the model's own representation, read again from the files of the training. "
        "Needs pip install 'bertune\\[explain]'."
    )
    examples = (
        "bertune explain runs/papers 'A proof of the twin prime conjecture'",
        "bertune explain runs/nli 'A man sleeps.' 'He is awake.' --label contradiction",
        "bertune explain runs/papers - --json --neighbors 0 < texts.txt",
    )

    folder: Annotated[str, typer.Argument(metavar="DIR", help="Result of bertune train.", show_default=False)]
    texts: Annotated[
        list[str],
        typer.Argument(
            metavar="TEXT", show_default=False,
            help="The text, or both texts of a pair; or - for stdin: one text a line, a pair separated by a tab.",
        ),
    ]  # fmt: skip
    label: Annotated[
        str | None, typer.Option(metavar="NAME", help="The label to explain. Default: what the model says.")
    ] = None
    steps: Annotated[
        int | None, typer.Option(metavar="N", help="Steps of the integration. Default: 32 to 512, until it is exact.")
    ] = None
    neighbors: Annotated[int, typer.Option(metavar="N", help="How many training rows to show; 0 for none.")] = 3
    data: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE", help="Where the training files lie now, if they moved; may be repeated."),
    ] = None

    def run(self) -> None:
        config, display = begin(self, (*KEYS, *PLACES), DEFAULTS)
        with cache_settings(config.cache.folder, config.cache.limit):
            self.act(config, display)

    def act(self, config: Config, display: Display) -> None:
        from bertune.bundle import Bundle
        from bertune.explain.explain import check_explainable, check_options, explain_rows

        bundle = Bundle.read(self.folder, verify=False)
        check_options(bundle.task.labels, label=self.label, steps=self.steps, neighbors=self.neighbors)
        rows = self.rows(bundle.task, config, display)
        check_explainable(bundle)
        found = explain_rows(
            open_predictor(self.folder, config), rows, label=self.label, steps=self.steps, neighbors=self.neighbors,
            data=self.data or None, work=display.work,
        )  # fmt: skip
        if self.as_json:
            print_json({"explanations": [explanation.to_dict() for explanation in found]})
            return

        from bertune.commands.coloured import show

        for place, explanation in enumerate(found):
            if place:
                print()
            show(explanation, sys.stdout, numbered=len(rows) > 1)

    def rows(self, task: Task, config: Config, display: Display) -> Rows:
        """What is to be explained: the texts given, or lines of stdin."""
        from bertune.data.rows import Rows, rows_from_python, rows_of

        if self.texts == ["-"]:
            placed, tables = tables_of_lines(stdin_bytes(), config.data, task, display)
            return Rows.stacked([rows_of(placed, table, allow_empty=True) for table in tables])
        if task.is_pair and len(self.texts) != 2:
            raise ConfigError(
                f"bertune explain: the model reads pairs, found {len(self.texts)} text"
                f"{'' if len(self.texts) == 1 else 's'}; give both sides: bertune explain DIR 'first' 'second'."
            )
        if not task.is_pair and len(self.texts) != 1:
            raise ConfigError(
                f"bertune explain: the model reads one text, found {len(self.texts)}; put the text in quotes."
            )
        return rows_from_python(task, [tuple(self.texts) if task.is_pair else self.texts[0]])
