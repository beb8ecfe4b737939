"""bertune predict: labels and probabilities for new rows, in their order, none left out."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from bertune.commands.incoming import spooled, stdin_bytes, tables_of_files, tables_of_lines
from bertune.commands.opening import DEFAULTS, MACHINE, SEED, open_predictor, trained_rule, trained_task
from bertune.commands.options import READING, Configured, configured, flags_of, switch, with_flags
from bertune.commands.output import check_target, print_json
from bertune.commands.sheet import ABSTAIN, FORMS, SET, Sheet, check_columns, format_of, promised_columns
from bertune.config import Config
from bertune.errors import ConfigError, listed, nearest
from bertune.folder import joint_tasks
from bertune.progress import Display, is_terminal, start_display
from bertune.sections import split_list

if TYPE_CHECKING:
    import numpy as np

    from bertune.data.read import Table
    from bertune.data.tasks import Task
    from bertune.ship.predict import Predictor

# --drop-label is not among them: no row is left out.
KEYS = (*(key for key in READING if key != "data.drop_label"), "data.text", "data.text_pair", *MACHINE)
MIX = "estimate|FILE.yaml|A=P,B=P"  # what --label-mix takes


@with_flags(*flags_of(KEYS, SEED), base=DEFAULTS)
class Predict(Configured):
    details = (
        "The output has the columns of the input, then `prediction`, then `prob:<label>` for each label: calibrated "
        "probabilities, and the decision rule that was chosen when the model was trained. Several "
        "labels in a cell of CSV or TSV are joined by the separator of the training data, or by | (by ; where a label "
        "holds that); in JSON lines they are a list. Without --out it goes to stdout."
    )
    examples = (
        "bertune predict runs/papers new.csv --out scored.csv",
        "echo 'some text' | bertune predict runs/papers -",
        "printf 'A man sleeps.\\tHe is awake.\\n' | bertune predict runs/nli - --json",
        "bertune predict runs/papers - --format jsonl --out scored.jsonl < new.jsonl",
        "bertune predict runs/joint new.csv --task reviews --out scored.csv",
    )

    folder: Annotated[
        str, typer.Argument(metavar="DIR", help="Result of bertune train or multitask.", show_default=False)
    ]
    files: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE", show_default=False,
            help="Files of one layout; or - for stdin: one text a line, a pair separated by a tab, or with --format a "
            "table.",
        ),
    ]  # fmt: skip
    out: Annotated[str | None, typer.Option(metavar="FILE", help="Where the rows go: .csv, .tsv or .jsonl.")] = None
    output_format: Annotated[
        str | None,
        typer.Option(metavar="|".join(FORMS), help="By default as --out ends; on stdout csv, or lines for texts."),
    ] = None
    overwrite: Annotated[bool, switch("--overwrite", "Replace an existing --out.")] = False
    threshold: Annotated[
        float | None,
        typer.Option(metavar="P", help="Give a label from this probability on, in place of the model's thresholds."),
    ] = None
    label_mix: Annotated[
        str | None,
        typer.Option(
            metavar=MIX,
            help="How frequent labels are among these rows, where not as in training; or estimate it from them.",
        ),
    ] = None
    task: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Of a result of bertune multitask: one of its tasks; by default all."),
    ] = None
    raw: Annotated[bool, switch("--raw", "`logit:<label>` columns in place of the probabilities.")] = False

    def run(self) -> None:
        display = start_display(quiet=self.quiet)
        config = configured(self, DEFAULTS, keys=KEYS, say=display.say)
        if self.label_mix == "":
            raise ConfigError(f"--label-mix: is empty; expected {MIX}, or leave the option out.")
        tasks = joint_tasks(self.folder)
        if self.task is not None:
            self.folder = folder_of_task(self.folder, self.task, tasks)
        elif tasks:
            self.predict_all(tasks, config, display)
            return
        piped = self.files == ["-"]
        as_lines = piped and config.data.format in ("auto", "text") and config.data.layout == "auto"
        form = self.form(as_lines)
        mix = self.label_mix
        inputs = [*self.files, mix] if mix is not None and Path(mix).is_file() else self.files
        target = None if self.out is None else check_target(self.out, overwrite=self.overwrite, inputs=inputs)
        task = trained_task(self.folder)
        with ExitStack() as stack:
            if as_lines:
                self.refuse_table_flags()
                placed, tables = tables_of_lines(stdin_bytes(), config.data, task, display)
            else:
                files = [stack.enter_context(spooled())] if piped else self.files
                placed, tables = tables_of_files(files, config.data, task)
            first = next(tables)  # what is wrong with the columns is said before torch is imported
            extra = self.promised()
            check_columns(first, placed, raw=self.raw, extra=extra)
            predictor = open_predictor(self.folder, config)
            tables = chain([first], tables)
            known = None
            if self.label_mix == "estimate":
                if as_lines:
                    raise ConfigError("--label-mix estimate: reads the rows twice; name a file, or pass --format.")
                import numpy as np

                known = [predictor.logits_of_table(table, placed) for table in tables]
                predictor = with_mix(predictor, predictor.estimated_mix(np.concatenate(known)), display)
                placed, tables = tables_of_files(files, config.data, task)
            elif self.label_mix is not None:
                predictor = with_mix(predictor, read_mix(self.label_mix), display)
            if self.threshold is not None:
                predictor = predictor.with_threshold(self.threshold)
            sheet = Sheet(stack.enter_context(output(target)), form, first.columns, placed, raw=self.raw, extra=extra)
            show = target is not None or not is_terminal(sys.stdout)
            rows = fill(sheet, predictor, placed, tables, display, show=show, known=known)
        if target is not None:
            display.say(f"{rows:,} rows are in {target}.")
            if self.as_json:
                print_json({"out": str(target), "rows": rows, "labels": list(task.labels)})

    def predict_all(self, tasks: tuple[str, ...], config: Config, display: Display) -> None:
        """All tasks of a joint training over the same rows."""
        from bertune.commands.predict_all import predict_all

        piped = self.files == ["-"]
        for name, given in (("--threshold", self.threshold), ("--label-mix", self.label_mix)):
            if given is not None:
                raise ConfigError(f"{name}: is for one task; pass --task, one of {listed(tasks, 20)}.")
        if piped and config.data.format in ("auto", "text") and config.data.layout == "auto":
            raise ConfigError(
                f"-: one text a line is read for one task; pass --task, one of {listed(tasks, 20)}, or --format csv or "
                "jsonl for a table."
            )
        form = self.form(False)
        if form == "lines":
            raise ConfigError("--output-format lines: is for one task; pass --task, or csv, tsv or jsonl.")
        target = None if self.out is None else check_target(self.out, overwrite=self.overwrite, inputs=self.files)
        with ExitStack() as stack:
            files = [stack.enter_context(spooled())] if piped else self.files
            rows = predict_all(
                self.folder, tasks, files, config, form, raw=self.raw, display=display,
                open_output=lambda: stack.enter_context(output(target)),
                show=target is not None or not is_terminal(sys.stdout),
            )  # fmt: skip
        if target is not None:
            display.say(f"{rows:,} rows are in {target}.")
            if self.as_json:
                print_json({"out": str(target), "rows": rows, "tasks": list(tasks)})

    def promised(self) -> list[str]:
        """The columns of what the model promises; --threshold gives other answers than those it promised about, and
        --label-mix is for other rows."""
        if self.label_mix is not None:
            return []
        columns = promised_columns(trained_rule(self.folder))
        return [name for name in columns if name != ABSTAIN or self.threshold is None]

    def refuse_table_flags(self) -> None:
        """ConfigError for a flag that says how to read a table, where stdin holds one text a line."""
        for flag in self.flags:
            if flag.section == "data" and flag.field not in ("format", "encoding") and getattr(self, flag.attribute):
                raise ConfigError(f"{flag.name}: - is read as one text a line; pass --format csv or jsonl for a table.")

    def form(self, as_lines: bool) -> str:
        """One of FORMS."""
        if "-" in self.files and len(self.files) > 1:
            raise ConfigError("'-' is stdin and stands alone; name files, or pipe them in.")
        if self.output_format is None:
            if self.out is not None:
                return format_of(self.out)
            return "jsonl" if self.as_json else "lines" if as_lines else "csv"
        if self.output_format not in FORMS:
            near = nearest(self.output_format, FORMS) or f"; expected {', '.join(FORMS)}."
            raise ConfigError(f"--output-format: no format '{self.output_format}'{near}")
        if self.as_json and self.out is None and self.output_format != "jsonl":
            raise ConfigError(f"--json writes JSON lines on stdout; leave out --output-format {self.output_format}.")
        return self.output_format


def folder_of_task(folder: str, task: str, tasks: tuple[str, ...]) -> str:
    """The result of one task of a joint training."""
    if not tasks:
        raise ConfigError(f"--task {task}: {folder} is not the result of bertune multitask; leave it out.")
    if task not in tasks:
        near = nearest(task, tasks) or "."
        raise ConfigError(f"--task {task}: not a task of this model{near} Tasks: {listed(tasks, 20)}.")
    return str(Path(folder) / "tasks" / task)


def read_mix(text: str) -> dict[str, float]:
    """`A=0.2,B=0.8`, or a YAML file of such a mapping."""
    from bertune.settings import read_yaml

    pairs: list[tuple[str, Any]]
    if "=" not in text or Path(text).is_file():
        pairs = list(read_yaml(text, what="file of a label mix", holds="labels and shares").items())
    else:
        pairs = [(name.strip(), share) for name, _, share in (part.rpartition("=") for part in split_list(text))]
    found = {}
    for name, share in pairs:
        try:
            found[str(name)] = float(share)
        except (TypeError, ValueError):
            raise ConfigError(f"--label-mix {text}: '{share}' is no share; write LABEL=0.2,LABEL=0.8.") from None
    return found


def with_mix(predictor: Predictor, mix: dict[str, float], display: Display) -> Predictor:
    """The predictor for this mix, which is said."""
    mixed = predictor.with_label_mix(mix)
    was = dict(zip(predictor.labels, predictor.rule.shares, strict=True))
    told = [f"{label} {100 * share:.1f} % (was {100 * was[label]:.1f} %)" for label, share in mix.items()]
    display.say(f"Label mix: {listed(told, 8)}.")
    return mixed


def fill(
    sheet: Sheet, predictor: Predictor, task: Task, tables: Iterator[Table], display: Display, *, show: bool,
    known: Sequence[np.ndarray] | None = None,
) -> int:  # fmt: skip
    """Predict table after table and write each; the number of rows. show: tell how far it is; known: logits of each
    table, where they are."""
    done, number = 0, 0
    with display.measure(None, "rows") if show else nullcontext() as meter:
        for table in tables:
            logits = predictor.logits_of_table(table, task) if known is None else known[number]
            number += 1
            cells = [table.column(name) for name in table.columns]
            values = logits if sheet.raw else predictor.probabilities(logits)
            promised: dict[str, Sequence[Any]] = {}
            if SET in sheet.extra:
                promised[SET] = predictor.sets(logits)
            if ABSTAIN in sheet.extra:
                promised[ABSTAIN] = predictor.rule.abstains(predictor.task.kind, logits).tolist()
            sheet.write(cells, predictor.names(logits), values, promised)
            sheet.stream.flush()
            done += len(table)
            if meter is not None:
                meter.advance(done)
    return done


@contextmanager
def output(target: Path | None) -> Iterator[TextIO]:
    """Where rows are written: stdout, or a file that appears whole at the end or not at all."""
    if target is None:
        yield sys.stdout
        return
    from bertune.files import atomic_path

    # Half a character in a cell must not cost the file; in JSON its escape means the same.
    with (
        atomic_path(target) as temporary,
        temporary.open("w", encoding="utf-8", errors="backslashreplace", newline="") as stream,
    ):
        yield stream
