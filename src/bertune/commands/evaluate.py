"""bertune evaluate: a trained model on labelled rows."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bertune.commands.opening import DEFAULTS, MACHINE, SEED, open_predictor, trained_task, with_model_columns
from bertune.commands.options import READING, Configured, configured, flags_of, switch, with_flags
from bertune.commands.output import check_target, print_json, print_table
from bertune.config import Config
from bertune.errors import printable
from bertune.progress import Display, start_display

if TYPE_CHECKING:
    import numpy as np

    from bertune.data.tasks import Rows
    from bertune.ship.predict import Predictor

LABELS = ("data.label", "data.label_names", "data.label_sep")
KEYS = (*READING, "data.text", "data.text_pair", *LABELS, "data.group", "report.slices", *MACHINE)
TOLD = SEED | {"data.group": "Column whose equal values are drawn together for the intervals."}
CHUNK = 4096  # rows between two signs of life


@with_flags(*flags_of(KEYS, TOLD), base=DEFAULTS)
class Evaluate(Configured):
    details = "The columns are those it was trained on, unless others are named."
    examples = (
        "bertune evaluate runs/papers more.csv",
        "bertune evaluate runs/nli other.csv --text premise --text-pair hypothesis",
        "bertune evaluate runs/nli test.tsv --config runs/nli/run/config.yaml",
        "bertune evaluate runs/nli dev.tsv test.tsv --json --out metrics.json",
    )

    folder: Annotated[str, typer.Argument(metavar="DIR", help="Result of bertune train.", show_default=False)]
    files: Annotated[
        list[str], typer.Argument(metavar="FILE", help="Labelled files of one layout.", show_default=False)
    ]
    out: Annotated[str | None, typer.Option(metavar="FILE.json", help="Write all metrics there, too.")] = None
    overwrite: Annotated[bool, switch("--overwrite", "Replace an existing --out.")] = False

    def run(self) -> None:
        display = start_display(quiet=self.quiet)
        config = configured(self, DEFAULTS, keys=KEYS, say=display.say)
        target = None if self.out is None else check_target(self.out, overwrite=self.overwrite, inputs=self.files)
        metrics, kind = measure(self.folder, self.files, config, display)
        if target is not None:
            from bertune.files import write_json

            write_json(target, metrics)
            display.say(f"All metrics are in {target}.")
        if self.as_json:
            print_json(metrics)
            return

        from bertune.evaluate.slices import worst_in_words
        from bertune.evaluate.tables import interval_column, label_table, result_table

        print_table(result_table({"value": metrics, **interval_column(metrics["intervals"], "95 %")}, kind))
        print()
        print_table(label_table(metrics))
        worst = worst_in_words(metrics["slices"])
        if worst is not None:
            print(f"\n{printable(worst)}")


def measure(folder: str, files: list[str], config: Config, display: Display) -> tuple[dict[str, Any], str]:
    """The metrics of the model in `folder` on labelled files, and its kind of task."""
    fixed = trained_task(folder)  # a folder that is no result is said to be so before torch is imported

    from bertune.data.read import read_table
    from bertune.data.splits import groups_of
    from bertune.data.tasks import encode_labels, infer_task, rows_of
    from bertune.evaluate.calibrate import calibration
    from bertune.evaluate.metrics import check_metric, evaluate
    from bertune.evaluate.resample import intervals, scores_of
    from bertune.evaluate.slices import attributes, slices
    from bertune.model.machine import peak_memory
    from bertune.ship.predict import readable_task
    from bertune.training.promise import judge_promises

    table = read_table(files, with_model_columns(config.data, fixed, label=True))
    for note in table.notes:
        display.say(note)
    task, sentence = infer_task(table, config.data, fixed=fixed)
    display.say(sentence)
    groups = groups_of(table, config.data.group) if config.data.group else None
    targets = encode_labels(task, table, advice="Fix the row, or leave such rows out with --drop-label.")
    predictor = open_predictor(folder, config)
    rows = rows_of(readable_task(task, table.columns, predictor.tokenizer), table, allow_empty=False)
    begin = time.perf_counter()
    for name in config.report.slices:
        table.column(name)  # rather an error now than at the end
    logits, full_lengths, lengths = logits_of(predictor, rows, display)
    seconds = time.perf_counter() - begin
    rule = predictor.rule
    said = rule.decide(task.kind, logits)
    metrics = evaluate(task.kind, task.labels, rule.calibrated(task.kind, logits), targets, said=said)
    scores = scores_of(rule, task.kind, logits, targets)
    metrics["intervals"] = intervals(scores, groups=groups)
    metric = check_metric("auto", task.kind)
    by = attributes(full_lengths, lengths, {name: table.column(name) for name in config.report.slices})
    metrics["slices"] = slices(scores, metric, by, groups=groups)
    metrics["calibration"] = calibration(task.kind, rule.calibrated(task.kind, logits), targets)
    metrics |= judge_promises(rule, task, logits, targets)
    speed = {"examples_per_second": len(rows) / seconds, "tokens_per_second": int(lengths.sum()) / seconds}
    return {**metrics, "seconds": seconds, **speed, "peak_memory_bytes": peak_memory()}, task.kind


def logits_of(predictor: Predictor, rows: Rows, display: Display) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits [rows, labels], and the tokens of each row before and after cutting; told as it goes."""
    import numpy as np

    parts = []
    with display.measure(len(rows), "rows") as meter:
        for start in range(0, len(rows), CHUNK):
            encoded = predictor.encode(rows.slice(start, start + CHUNK))
            parts.append((predictor.backend.logits(encoded), encoded.full_lengths, encoded.lengths))
            meter.advance(min(start + CHUNK, len(rows)))
    logits, full_lengths, lengths = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return logits, full_lengths, lengths
