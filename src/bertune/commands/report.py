"""bertune report: the page of a result, made or made again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bertune.commands.options import Command, switch, with_flags
from bertune.commands.output import check_target, print_json
from bertune.progress import start_display


@with_flags()
class Report(Command):
    details = (
        "bertune train makes it by itself, as run/report.html beside run/figures; this command does so for a result "
        "without one, or anew. The texts of wrong answers are read again from the data of the training, if it is still "
        "where it was."
    )
    examples = (
        "bertune report runs/papers",
        "bertune report runs/papers --out papers.html",
    )

    folder: Annotated[str, typer.Argument(metavar="DIR", help="Result of bertune train.", show_default=False)]
    out: Annotated[
        str | None,
        typer.Option(metavar="FILE.html", help="Write the page there, without files of its figures."),
    ] = None
    overwrite: Annotated[bool, switch("--overwrite", "Replace an existing --out.")] = False

    def run(self) -> None:
        display = start_display(quiet=self.quiet)
        target = None if self.out is None else check_target(self.out, overwrite=self.overwrite, inputs=())

        from bertune.report.gather import gather
        from bertune.report.write import write_report

        gathered = gather(Path(self.folder))
        made = write_report(gathered, target)
        if self.as_json:
            print_json({"report": str(made)})
        display.say(f"The report is in {made}.")
