"""bertune train: from a table to a tested model in a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from bertune.commands.options import Resumable, configured, flags_of, switch, with_flags
from bertune.commands.output import print_json, print_table, shell_word
from bertune.config import Config
from bertune.errors import ConfigError, listed, printable
from bertune.progress import Display, start_display


@with_flags(*flags_of())
class Train(Resumable):
    details = "Columns, labels, splits and settings that are not given are found or chosen, and said."
    examples = (
        "bertune train papers.csv --text TITLE --text ABSTRACT --out runs/papers",
        "bertune train train.tsv --valid dev.tsv --test test.tsv --out runs/nli",
        "bertune train 'parts/*.csv' --group author --epochs 5 --out runs/parts",
        "bertune train --config recipes/snli-mini.yaml snli_1.0.zip --out runs/snli",
        "bertune train --resume --out runs/papers",
    )

    files: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="DATA", show_default=False,
            help="CSV, TSV, JSON lines, Parquet or Arrow files, also packed with gzip; patterns such as 'parts/*.csv'; "
            "SNLI's zip or folder; hf:// addresses.",
        ),
    ] = None  # fmt: skip
    strict: Annotated[bool, switch("--strict", "Stop where the check of the data warns.")] = False

    folds: Annotated[
        int | None, typer.Option(metavar="K", help="Cross-validate: K models, each row answered by one that has not "
                                 "seen it.")
    ] = None  # fmt: skip

    seeds: Annotated[
        int | None, typer.Option(metavar="K", help="Train with K seeds, keep the best on the validation rows, and tell "
                                 "how far they lie apart.")
    ] = None  # fmt: skip

    keep: Annotated[
        str | None, typer.Option(metavar="best|soup|ensemble", help="Of --seeds: the best one, the mean of the weights "
                                 "of those that are better together, or all, answering together. Default: best.")
    ] = None  # fmt: skip

    def run(self) -> None:
        display = start_display(quiet=self.quiet)
        out = self.folder(self.config, self.files, example="runs/papers")
        record = Path(out) / "run" / "config.yaml"
        resumes = self.resume and record.is_file()
        base = Config.load(record) if resumes and not self.files else Config()
        config = configured(self, base, say=display.say)
        if self.strict:
            config = config.updated({"check": {"strict": True}}, place="--strict")
        if self.files:
            config = config.updated({"data": {"files": self.files}}, place="DATA")
        if not config.data.files:
            if resumes:
                raise ConfigError(
                    f"DATA is missing: the run in {out} was started in Python, with data in memory. "
                    f"Go on with it there: bertune.train(data, out={str(out)!r}, resume=True)."
                )
            also = f", and {out} holds no run to take up" if self.resume else ""
            raise ConfigError(
                f"DATA is missing{also}: name one or more files, "
                "for example bertune train papers.csv --out runs/papers."
            )

        if self.folds is not None and self.seeds is not None:
            raise ConfigError("--folds and --seeds: one at a time; for a seed of all folds, pass --seed.")
        if self.keep is not None and self.seeds is None:
            raise ConfigError(f"--keep {self.keep}: says what is kept of several seeds; pass --seeds with it.")
        if self.folds is not None:
            self.cross_validate(config, out, display)
            return

        from bertune.training.run import run
        from bertune.training.seeds import train_seeds

        how: dict[str, Any] = {"resume": self.resume, "overwrite": self.overwrite, "listener": display}
        if self.seeds is not None:
            result = train_seeds(config, out=out, seeds=self.seeds, keep=self.keep or "best", **how)
        else:
            result = run(config, out=out, **how)
        if config.report.page:
            from bertune.report.write import keep_page

            keep_page(result.out, config, source=None, say=display.say)
        if self.as_json:
            print_json({"out": str(result.out), "task": result.task.to_dict(), "metrics": result.metrics})
        else:
            print_results(result.metrics, result.task.kind)
            print_seeds(result.metrics)
        display.say(f"The model is in {result.out}.")
        display.say(f"Next: bertune predict {shell_word(result.out)} new.csv --out scored.csv")


    def cross_validate(self, config: Config, out: str, display: Display) -> None:
        from bertune.training.folds import cross_validate

        assert self.folds is not None
        result = cross_validate(
            config, out=out, folds=self.folds, resume=self.resume, overwrite=self.overwrite, listener=display
        )
        if self.as_json:
            print_json({"out": str(result.out), "task": result.task.to_dict(), "metrics": result.metrics})
        else:
            print_folds(result.metrics, result.task.kind)
        display.say(f"Every row's answer is in {result.out / 'run' / 'predictions-out-of-fold.parquet'}.")


def print_folds(metrics: dict[str, Any], kind: str) -> None:
    """The table of a cross-validation: all rows together, and the folds."""
    from bertune.evaluate.baseline import TITLES
    from bertune.evaluate.tables import interval_column, result_table

    found = metrics["out_of_fold"]
    columns = {"out of fold": found, **interval_column(metrics["intervals"]["out_of_fold"], "95 %")}
    columns |= {"mean of folds": metrics["mean"], "sd": metrics["sd"]}
    columns |= {f"{TITLES[name]}, mean": values for name, values in metrics["baselines"].items()}
    print_table(result_table(columns, kind))


def print_seeds(metrics: dict[str, Any]) -> None:
    """How far the seeds lie apart, and what their ensemble would bring, in the metric that counts."""
    from bertune.evaluate.tables import gain_in_words

    told, metric = metrics.get("seeds"), metrics["metric"]
    if told is None:
        return
    for split in ("valid", "test"):
        if metric in told.get(split, {}):
            found = told[split][metric]
            print(f"{len(told['all'])} seeds, {metric} on {split}: {found['mean']:.4f} ± {found['sd']:.4f} (sd).")
    kept = {
        "best": "and is kept", "soup": f"and the soup of {listed(told.get('members', []))} is kept",
        "ensemble": "and the ensemble is kept",
    }  # fmt: skip
    print(f"Seed {told['best']} is the best on valid, {kept[told['kept']]}.")
    for key, title in (("ensemble", "Ensemble of all seeds"), ("soup", "Soup")):
        joint = told.get(key, {}).get(metric)
        if joint is not None:
            print(f"{title}, {metric} on test: {joint['value']:.4f}; against seed {told['best']} alone "
                  f"{gain_in_words(joint)}.")  # fmt: skip


def print_results(metrics: dict[str, Any], kind: str) -> None:
    """The table of what was measured, and what it comes to."""
    from bertune.evaluate.tables import result_columns, result_table, verdict

    columns = result_columns(metrics)
    if columns:
        print_table(result_table(columns, kind))
    said = verdict(metrics)
    if said:
        print("", *map(printable, said), sep="\n")
