"""bertune compare: is one trained model better than another?"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Annotated, Any

import typer

from bertune.commands.options import Configured, configured, flags_of, switch, with_flags
from bertune.commands.output import check_target, print_json, print_table
from bertune.config import Config
from bertune.errors import ConfigError
from bertune.progress import start_display

KEYS = ("train.metric", "train.seed")
TOLD = {
    "train.metric": "What a run is called better or worse by. Default: what the first run was chosen by.",
    "train.seed": "Seed of the draws behind intervals and p values. Default: 0.",
}
SPLITS = ("test", "valid")


@with_flags(*flags_of(KEYS, TOLD))
class Compare(Configured):
    details = (
        "Every later run is compared with the first, on the same rows: each metric's difference with its 95 % "
        "interval, a test (McNemar's, or a paired permutation), and the rows that only one of them gets right. "
        "--metric names what decides, by default what the first run was chosen by; --seed is that of the draws."
    )
    examples = (
        "bertune compare runs/papers runs/papers-2",
        "bertune compare runs/a runs/b runs/c --metric macro_f1",
        "bertune compare runs/a runs/b --split valid --flips flips.csv",
    )

    runs: Annotated[
        list[str], typer.Argument(metavar="DIR", help="Results of bertune train, two or more.", show_default=False)
    ]
    split: Annotated[str, typer.Option(metavar="test|valid", help="Rows to compare on.")] = "test"
    flips: Annotated[
        str | None, typer.Option(metavar="FILE.csv", help="Write the rows that only one gets right.")
    ] = None
    overwrite: Annotated[bool, switch("--overwrite", "Replace an existing --flips.")] = False

    def run(self) -> None:
        display = start_display(quiet=self.quiet)
        config = configured(self, Config(), keys=KEYS, say=display.say)
        if self.split not in SPLITS:
            raise ConfigError(f"--split {self.split}: expected {' or '.join(SPLITS)}.")
        target = None
        if self.flips is not None:
            target = check_target(self.flips, overwrite=self.overwrite, inputs=(), option="--flips")

        from bertune.training.outcome import compare_runs

        found = compare_runs(list(self.runs), split=self.split, metric=config.train.metric, seed=config.train.seed)
        if target is not None:
            write_flips(target, found)
            display.say(f"The rows that only one gets right are in {target}.")
        if self.as_json:
            print_json({"comparisons": found})
            return
        for place, result in enumerate(found):
            if place:
                print()
            print_table(difference_table(result))
            print("", *in_words(result), sep="\n")


def difference_table(result: dict[str, Any]) -> list[list[str]]:
    """A metric a row: both values, the difference with its interval, and the chance of one as large."""
    from bertune.evaluate.tables import shown

    table = [["", result["first"], result["second"], "difference", "95 %", "p"]]
    for name, values in result["metrics"].items():
        known = values["low"] is not None
        limits = f"{values['low']:+.4f} to {values['high']:+.4f}" if known else "-"
        apart = f"{values['difference']:+.4f}" if known else "-"
        table.append([name, shown(values["first"]), shown(values["second"]), apart, limits, shown(values["p"])])
    return table


def in_words(result: dict[str, Any]) -> list[str]:
    """What a comparison comes to, in a few sentences."""
    metric, first, second = result["metric"], result["first"], result["second"]
    values = result["metrics"][metric]
    chance = "" if result["p"] is None else f"; p = {result['p']:.3g}, {result['test']}"
    if values["low"] is None:
        line = f"{metric} is undefined on these rows, so nothing can be said."
    else:
        measured = f"{values['difference']:+.4f} ({values['low']:+.4f} to {values['high']:+.4f}{chance})"
        if result["judgement"] == "noise":
            line = f"The difference in {metric} between {second} and {first} is noise: {measured}."
        else:
            line = f"{second} is {result['judgement']} than {first} in {metric}: {measured}."
    rows = f"Of {result['rows']:,} {result['split']} rows, only {first} gets {len(result['only_first']):,} right, "
    return [line, f"{rows}only {second} {len(result['only_second']):,}."]


def write_flips(path: Path, found: list[dict[str, Any]]) -> None:
    """A CSV of the rows that only one of two runs gets right."""
    from bertune.files import atomic_path

    def cell(value: Any) -> str:
        return "|".join(value) if isinstance(value, list) else str(value)

    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["first", "second", "right", "file", "row", "label", "first_says", "second_says"])
        for result in found:
            for right in ("first", "second"):
                for row in result[f"only_{right}"]:
                    said = (cell(row[key]) for key in ("label", "first", "second"))
                    writer.writerow([result["first"], result["second"], right, row["file"], row["row"], *said])
