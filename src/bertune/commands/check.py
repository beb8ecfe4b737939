"""bertune check: what is wrong with the data, before a minute is spent training on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from bertune.commands.opening import MACHINE
from bertune.commands.options import READING, SECTIONS, Configured, configured, flags_of, switch, with_flags
from bertune.commands.output import check_target, print_json, print_table
from bertune.config import Config
from bertune.errors import ConfigError, DataError, listed
from bertune.progress import start_display

if TYPE_CHECKING:
    from bertune.doctor.findings import Finding
    from bertune.training.checkup import Checkup

DEFAULTS = Config().updated({"check": {"label_errors": "frozen"}})
KEYS = (
    *(f"data.{name}" for name in SECTIONS["data"].model_fields if name != "files"), *READING,
    "model.name", "model.revision", "model.max_length", "model.truncation", "model.long_text", "model.long_text_pair",
    "model.chunk_overlap", "model.max_chunks", "check.label_errors", "check.folds",
    *MACHINE,
)  # fmt: skip
TUNED = tuple(f"{section}.{name}" for section in ("model", "train") for name in SECTIONS[section].model_fields)


@with_flags(*flags_of(KEYS), base=DEFAULTS)
class Check(Configured):
    details = (
        "It reads and splits the data as bertune train would, with the same options. Findings are errors (training "
        "would be meaningless), warnings (results may mislead) or notes. --label-errors none leaves out the part that "
        "takes longest. Errors end with code 2."
    )
    examples = (
        "bertune check papers.csv --text TITLE --text ABSTRACT",
        "bertune check train.tsv --valid dev.tsv --test test.tsv --label-errors none --strict",
        "bertune check reviews.csv --queue relabel.csv --fix plan.yaml --page check.html",
        "bertune train reviews.csv --plan plan.yaml --out runs/reviews",
    )

    files: Annotated[
        list[str], typer.Argument(metavar="DATA", help="Files as for bertune train.", show_default=False)
    ]
    strict: Annotated[bool, switch("--strict", "Warnings are errors.")] = False
    fix: Annotated[
        str | None, typer.Option(metavar="PLAN.yaml", help="Write what could be done to the training rows, to review.")
    ] = None
    queue: Annotated[
        str | None, typer.Option(metavar="FILE.csv", help="Write the rows with doubted labels, the likeliest first.")
    ] = None
    page: Annotated[
        str | None, typer.Option(metavar="FILE.html", help="Write all findings as a page that is opened in a browser.")
    ] = None
    overwrite: Annotated[bool, switch("--overwrite", "Replace an existing --fix, --queue or --page.")] = False

    def run(self) -> None:
        display = start_display(quiet=self.quiet)
        config = configured(self, DEFAULTS, keys=(*KEYS, *TUNED), say=display.say)
        config = config.updated({"data": {"files": self.files}, "check": {"strict": self.strict}})
        if self.queue is not None and config.check.label_errors == "none":
            raise ConfigError("--queue: lists doubted labels; --label-errors none doubts none. Leave one of them out.")
        targets = {
            name: check_target(out, overwrite=self.overwrite, inputs=config.read_files(), option=f"--{name}")
            for name, out in (("fix", self.fix), ("queue", self.queue), ("page", self.page)) if out is not None
        }  # fmt: skip
        if len({path.resolve() for path in targets.values()}) < len(targets):
            raise ConfigError("--fix, --queue and --page: two of them are the same file; name one for each.")

        from bertune.doctor.relabel import write_queue
        from bertune.training.checkup import check

        found = check(config, listener=display)
        if self.as_json:
            print_json(found.to_dict())
        else:
            print_findings(found)
        if "queue" in targets:
            write_queue(targets["queue"], found.doubts or [])
            display.say(f"Rows with doubted labels: {len(found.doubts or []):,}, in {targets['queue']}.")
        if "fix" in targets:
            plan = found.plan()
            plan.write(targets["fix"])
            told = ", ".join(f"{count:,} to {action}" for action, count in sorted(plan.counts().items())) or "nothing"
            display.say(f"The plan in {targets['fix']}: {told}. Review it, then: bertune train ... --plan {self.fix}")
        if "page" in targets:
            from bertune.report.write import write_findings

            write_findings(found, targets["page"], self.files)
            display.say(f"The page of all findings is in {targets['page']}.")
        if found.count("error"):
            kinds = listed(dict.fromkeys(finding.kind for finding in found.findings if finding.severity == "error"))
            raise DataError(f"the check found errors: {kinds}.")


def print_findings(found: Checkup) -> None:
    """A table of all findings, and below it what each means."""
    if found.findings:
        print_table([["finding", "severity", "count", "rows"], *map(_row, found.findings)])
        print()
    for finding in found.findings:
        print_sentence(f"{finding.kind}: {finding.message}.", finding.advice)
    print_sentence(found.summary())


def _row(finding: Finding) -> Sequence[str]:
    from bertune.doctor.findings import places_in_words

    where = places_in_words(finding.rows) if finding.rows else "-"
    return finding.kind, finding.severity, f"{finding.count:,}", where


def print_sentence(*parts: str) -> None:
    from bertune.errors import printable

    print(printable(" ".join(parts)))
