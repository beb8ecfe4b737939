"""bertune reproduce: published tables made again, with seeds and intervals."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from bertune.commands.options import SECTIONS, Configured, configured, flags_of, switch, with_flags
from bertune.commands.output import print_json
from bertune.config import Config
from bertune.errors import ConfigError, Interrupted, listed, nearest
from bertune.paths import cache_settings, standing
from bertune.progress import start_display

KEYS = tuple(f"{section}.{name}" for section in ("model", "train", "cache") for name in SECTIONS[section].model_fields)
MACHINE = ("model.name", "train.seed", "train.device", "train.precision", "train.threads")


@with_flags(*flags_of(MACHINE))
class Reproduce(Configured):
    details = (
        "NAME is sun2019 (How to Fine-Tune BERT for Text Classification?), snli-small (small encoders on SNLI), or a "
        "YAML file of your own. Every training is kept in --out and made once: stop at any time and run the same "
        "command again. The tables are written to --out as Markdown and JSON, with what is there."
    )
    examples = (
        "bertune reproduce sun2019 --data ../data --out reproductions/sun2019",
        "bertune reproduce sun2019 --table long-text --seeds 1 --hours 2 --data ../data --out reproductions/sun2019",
        "bertune reproduce sun2019 --no-train --out reproductions/sun2019",
    )

    name: Annotated[str, typer.Argument(metavar="NAME", help="sun2019, snli-small, or FILE.yaml.", show_default=False)]
    out: Annotated[str, typer.Option(metavar="DIR", help="Where trainings and tables are kept.", show_default=False)]
    data: Annotated[str, typer.Option(metavar="DIR", help="Folder of the data sets.")] = "data"
    table: Annotated[
        list[str] | None, typer.Option(metavar="TABLE", help="Only this table; may be repeated.", show_default=False)
    ] = None
    seeds: Annotated[int, typer.Option(metavar="K", help="Seeds of every training, from --seed on.")] = 3
    hours: Annotated[
        float | None, typer.Option(metavar="H", help="Begin no training after so many hours.", show_default=False)
    ] = None
    jobs: Annotated[
        int, typer.Option(metavar="N", help="Trainings at a time, each a process of its own with a share of the cores.")
    ] = 1
    no_train: Annotated[bool, switch("--no-train", "Only write the tables of what is there.")] = False

    def run(self) -> None:
        from bertune.reproduce.spec import cells, read_spec

        display = start_display(quiet=self.quiet)
        spec = read_spec(self.name)
        tables = self.table or list(spec.tables)
        for table in tables:
            if table not in spec.tables:
                near = nearest(table, list(spec.tables)) or f"; choose {listed(list(spec.tables), 20)}."
                raise ConfigError(f"--table {table}: {spec.name} has no such table{near}")
        if self.seeds < 1:
            raise ConfigError(f"--seeds {self.seeds}: takes at least 1.")
        if self.jobs < 1:
            raise ConfigError(f"--jobs {self.jobs}: takes at least 1.")
        if self.hours is not None and self.hours <= 0:
            raise ConfigError(f"--hours {self.hours:g}: takes more than 0.")
        base = configured(self, Config(), keys=KEYS, say=display.say)
        own = partial(configured, self, keys=KEYS, say=lambda _: None)  # what there was to say has been said
        wanted = list(cells(spec, tables, seeds=self.seeds, own=own))
        out = Path(self.out)
        _check_out(out)

        from bertune.reproduce.run import make_cells
        from bertune.reproduce.tables import markdown, results
        from bertune.training.loop import Diverged

        lost: Diverged | None = None
        if not self.no_train:
            try:
                with cache_settings(base.cache.folder, base.cache.limit):
                    make_cells(
                        spec, wanted, out=out, data=Path(self.data), hours=self.hours, listener=display, jobs=self.jobs
                    )
            except Diverged as error:
                lost = error  # the others are there, and so are their tables
            except (Interrupted, KeyboardInterrupt):
                raise Interrupted("Stopped; what was done is kept. Go on with the same command.") from None
        elif not (out / "cells").is_dir():
            raise ConfigError(f"--no-train: {out} holds no trainings of a reproduction yet. Leave --no-train out.")
        found = results(spec, wanted, out)
        models = dict.fromkeys(cell.config.model.name for cell in wanted if not cell.encoder)
        text = markdown(spec, found, model=listed(models) or base.model.name, seeds=self.seeds)
        self._write(out, spec.name, text, found)
        if self.as_json:
            print_json({"out": str(out), "tables": found})
        else:
            print(text)
        display.say(f"The tables are {out / spec.name}.md and .json.")
        if lost is not None:
            raise lost

    def _write(self, out: Path, name: str, text: str, found: dict[str, Any]) -> None:
        from bertune.files import write_atomic, write_json

        write_atomic(out / f"{name}.md", text)
        write_json(out / f"{name}.json", found)


def _check_out(out: Path) -> None:
    """Raise ConfigError for a folder that something else lies in: it is not for a reproduction to write into."""
    there = standing(out, f"--out {out}")
    if not there.is_dir():
        raise ConfigError(f"--out {out}: {there} is a file, and a folder is wanted. Choose another name.")
    found = sorted(path.name for path in out.iterdir()) if out.is_dir() else []
    if "cells" not in found and set(found) - {"data", "encoders", "running"}:  # the latter come before the first cell
        raise ConfigError(
            f"--out {out}: the folder holds {listed(found, 5)}, and no reproduction. Choose another one."
        )
