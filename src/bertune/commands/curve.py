"""bertune curve: what fewer rows reach, and whether more would help."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from bertune.commands.options import Configured, configured, flags_of, switch, with_flags
from bertune.commands.output import print_json, print_table
from bertune.config import Config
from bertune.errors import ConfigError
from bertune.progress import start_display


@with_flags(*flags_of())
class Curve(Configured):
    details = (
        "It trains on growing shares of the training rows, measures each training on the same test rows, and "
        "extrapolates a power law to twice the rows. All options of bertune train apply to every training."
    )
    examples = (
        "bertune curve papers.csv --text TITLE --text ABSTRACT --out runs/papers-curve",
        "bertune curve reviews.csv --shares 0.1,0.3,1 --repeats 3 --out runs/reviews-curve",
    )

    files: Annotated[
        list[str], typer.Argument(metavar="DATA", help="Files as for bertune train.", show_default=False)
    ]
    out: Annotated[str, typer.Option(metavar="DIR", help="Where the curve and its trainings go.", show_default=False)]
    shares: Annotated[
        str, typer.Option(metavar="A,B,C", help="Shares of the training rows, at least 3.")
    ] = "0.125,0.25,0.5,1"
    repeats: Annotated[
        int, typer.Option(metavar="N", help="Trainings a share, each with other rows and another seed.")
    ] = 2
    resume: Annotated[bool, switch("--resume", "Go on where an earlier run in --out was stopped.")] = False
    overwrite: Annotated[bool, switch("--overwrite", "Replace the earlier result in --out.")] = False

    def run(self) -> None:
        display = start_display(quiet=self.quiet)
        config = configured(self, Config(), say=display.say).updated({"data": {"files": self.files}}, place="DATA")
        shares = []
        for text in self.shares.split(","):
            try:
                shares.append(float(text))
            except ValueError:
                raise ConfigError(
                    f"--shares {self.shares}: '{text}' is not a number. Pass shares, for example 0.25,0.5,1."
                ) from None

        from bertune.training.curve import in_words, learning_curve

        result = learning_curve(
            config, out=self.out, shares=shares, repeats=self.repeats, resume=self.resume, overwrite=self.overwrite,
            listener=display,
        )  # fmt: skip
        if self.as_json:
            print_json({"out": str(result.out), "task": result.task.to_dict(), "curve": result.curve})
        else:
            print_curve(result.curve)
            print(f"\n{in_words(result.curve)}")
        display.say(f"The picture is {result.out / 'run' / 'learning-curve.png'}.")


def print_curve(curve: dict[str, Any]) -> None:
    """A share of the rows a line, and twice the rows, which nobody has seen, as the last."""
    from bertune.evaluate.baseline import TITLES

    points, twice = curve["points"], curve["twice"]
    simple = list(points[-1]["baselines"])
    table = [["rows", curve["metric"], "95 %", *(TITLES[name] for name in simple)]]
    for point in points:
        told = (f"{point['baselines'][name]:.4f}" if name in point["baselines"] else "-" for name in simple)
        table.append([f"{point['rows']:,}", f"{point['value']:.4f}", _limits(point), *told])
    table.append([f"{twice['rows']:,}, foretold", f"{twice['value']:.4f}", _limits(twice), *("-" for _ in simple)])
    print_table(table)


def _limits(found: dict[str, Any]) -> str:
    return "-" if found["low"] is None else f"{found['low']:.4f} to {found['high']:.4f}"
