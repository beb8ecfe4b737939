"""bertune report: the page of a result, made or made again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from bertune.commands.models import SAME, SEED, begin
from bertune.commands.options import Configured, switch, with_flags
from bertune.commands.output import check_target, print_json
from bertune.config import DataConfig
from bertune.errors import ConfigError
from bertune.progress import Display

EXPLAINED = 20  # errors
FILES = ("files", "valid", "test")  # of the section data: where the texts are by now


@with_flags(*SEED)
class Report(Configured):
    details = (
        "bertune train makes it by itself, as run/report.html beside run/figures; this command does so for a result "
        "without one, or anew. The texts of wrong answers are read again from the data of the training; where that has "
        f"moved, --set data.files=PLACE (data.valid, data.test) says where it is now. {SAME}"
    )
    examples = (
        "bertune report runs/papers",
        "bertune report runs/papers --out papers.html",
        "bertune report runs/papers --set data.files=moved/papers.csv",
    )

    folder: Annotated[
        str, typer.Argument(metavar="DIR", help="Result of bertune train, or of pretrain.", show_default=False)
    ]
    out: Annotated[
        str | None,
        typer.Option(metavar="FILE.html", help="Write the page there, without files of its figures."),
    ] = None
    explain: Annotated[
        int, typer.Option(metavar="N", help="Of how many of the costliest errors the words are explained; 0 for none.")
    ] = EXPLAINED
    overwrite: Annotated[bool, switch("--overwrite", "Replace an existing --out.")] = False

    def run(self) -> None:
        config, display = begin(self, tuple(f"data.{name}" for name in FILES))
        inputs = config.read_files()
        target = None if self.out is None else check_target(self.out, overwrite=self.overwrite, inputs=inputs)

        if self.explain < 0:
            raise ConfigError(f"--explain {self.explain}: a number of errors; 0 explains none.")
        from bertune.report.pretraining import is_pretraining
        from bertune.report.write import write_pretraining

        folder = Path(self.folder)
        told, usual = config.data.model_dump(), DataConfig().model_dump()
        moved = {name: told[name] for name in FILES if told[name] != usual[name]}
        if is_pretraining(folder):
            if moved or self.explain != EXPLAINED:
                raise ConfigError(
                    f"{folder}: a pre-training has no wrong answers to read again and explain; leave --set and "
                    "--explain out."
                )
            made = write_pretraining(folder, target)
        else:
            made = self.trained(folder, moved, target, display)
        if self.as_json:
            print_json({"report": str(made)})
        display.say(f"The report is in {made}.")

    def trained(self, folder: Path, moved: dict[str, Any], target: Path | None, display: Display) -> Path:
        """The page of a trained classifier."""
        from bertune.report.explained import explained
        from bertune.report.gather import gather
        from bertune.report.write import write_report

        gathered = gather(folder, moved=moved)
        files = moved.get("files") or None
        pieces, remark = explained(gathered, limit=self.explain, quick=False, data=files, work=display.work)
        return write_report(gathered, target, attributions=pieces, remark=remark)
