"""bertune multitask: one encoder, several tasks, each with its own head and result."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from bertune.commands.options import Resumable, configured, flags_of, switch, with_flags
from bertune.commands.output import print_json, print_table, shell_word
from bertune.config import Config
from bertune.errors import ConfigError
from bertune.multitaskconfig import OWN_MODEL, REFUSED, SHARED, MultiConfig
from bertune.progress import start_display

# The shared options; heads, losses, lengths and the like are written under each task, or for all in the file.
KEYS = tuple(
    f"{section}.{name}"
    for section in SHARED for name in type(getattr(Config(), section)).model_fields
    if f"{section}.{name}" not in REFUSED
)  # fmt: skip
FLAGS = tuple(key for key in KEYS if key.startswith(("model.", "train.")) and key.split(".")[1] not in OWN_MODEL)


@with_flags(*(flag for flag in flags_of(FLAGS) if flag.declared["command"] is None))
class Multitask(Resumable):
    details = (
        "TASKS.yaml has the sections of a configuration file that all tasks share, and under `tasks`, by name, what "
        "each has of its own: data, model (head, pooling, max_length, ...), train (loss, batch_size, ...), decide, "
        "metric and weight. Each step is of one task. The result has the encoder once, and a result of its own for "
        "each task in tasks/."
    )
    examples = (
        "bertune multitask tasks.yaml --out runs/joint",
        "bertune multitask tasks.yaml --sampling sqrt --uncertainty --epochs 3 --out runs/joint",
        "bertune multitask more-tasks.yaml --model runs/joint --out runs/more",
        "bertune multitask --resume --out runs/joint",
        "bertune predict runs/joint new.csv --task reviews --out scored.csv",
    )

    file: Annotated[
        str | None, typer.Argument(metavar="TASKS.yaml", show_default=False, help="The tasks, and what they share.")
    ] = None
    sampling: Annotated[
        str | None,
        typer.Option(
            metavar="proportional|sqrt|temperature", help="How often rows of a task are seen: as it has "
            "training rows, as their square root, or as their 1/T-th power. Default: proportional.",
        ),
    ] = None  # fmt: skip
    temperature: Annotated[
        str | None, typer.Option(metavar="T", help="T of --sampling temperature. Default: 2.")
    ] = None
    uncertainty: Annotated[bool, switch("--uncertainty", "Learn how much each task's loss counts.")] = False
    then_alone: Annotated[
        bool, switch("--then-alone", "Afterwards fine-tune each task alone from the joint encoder; into alone/.")
    ] = False
    alone_lr: Annotated[
        str | None,
        typer.Option(
            metavar="NUMBER", help="Peak learning rate of --then-alone, of encoder and head. Default: as in the file's "
            "section train.",
        ),
    ] = None  # fmt: skip

    def run(self) -> None:
        display = start_display(quiet=self.quiet)
        out = self.folder(self.file, None, example="runs/joint")
        record = Path(out) / "run" / "config.yaml"
        resumes = self.resume and record.is_file() and self.file is None
        if self.file is None and not resumes:
            raise ConfigError("TASKS.yaml is missing: name a file of tasks, for example recipes/multi-task.yaml.")
        config = MultiConfig.load(record if self.file is None else self.file)
        shared = configured(self, config.shared, keys=KEYS, say=display.say)
        given: dict[str, Any] = {
            name: value for name in ("sampling", "temperature", "uncertainty", "then_alone", "alone_lr")
            if (value := getattr(self, name)) not in (None, False)
        }  # fmt: skip
        config = config.updated(given, shared=shared, place="options")
        if resumes and not all(task.data.get("files") for task in config.options.tasks.values()):
            raise ConfigError(
                f"TASKS.yaml is missing: the run in {out} was started in Python, with data in memory. Go on with it "
                f"there: bertune.multitask(tasks, data=data, out={out!r}, resume=True)."
            )

        from bertune.training.multitask import multitask

        result = multitask(config, out=out, resume=self.resume, overwrite=self.overwrite, listener=display)
        if any(config.task(name).report.page for name in config.names):
            from bertune.report.write import keep_pages

            keep_pages(result.out, config, sources={}, say=display.say)
        if self.as_json:
            print_json({"out": str(result.out), "tasks": list(result.tasks), "metrics": result.metrics})
        else:
            print_tasks(result.metrics)
        display.say(f"The tasks are in {result.out / 'tasks'}, and all of them open as {result.out}.")
        display.say(f"Next: bertune predict {shell_word(result.out)} new.csv --task {result.tasks[0]} --out scored.csv")


def print_tasks(metrics: dict[str, Any]) -> None:
    """A line a task: its metric on each split, and what training it alone afterwards made of it."""
    splits = [name for name in ("train", "valid", "test") if any(name in one for one in metrics["tasks"].values())]
    alone = metrics.get("alone", {})
    table = [["task", "rows", "metric", *splits, "95 %", *(f"{name}, alone" for name in splits[1:] if alone)]]
    for name, found in metrics["tasks"].items():
        metric = found["metric"]
        shown = [_figure(found.get(split, {}).get(metric)) for split in splits]
        judged = next((split for split in ("test", "valid") if split in found.get("intervals", {})), None)
        span = found["intervals"][judged][metric] if judged else None
        row = [name, f"{found['train']['rows']:,}", metric, *shown]
        row.append("" if span is None else f"{span[0]:.4f} to {span[1]:.4f}")
        if alone:
            row += [_figure(alone[name].get(split, {}).get(metric)) for split in splits[1:]]
        table.append(row)
    print_table(table)


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
