"""What the data doctor finds: faults of every kind put into clean data, and time and memory on 100,000 rows.

    python benchmarks/doctor.py --data ../shared/data --json benchmarks/results/doctor.json [--only faults|speed]

faults: papers of one subject (equally many of three, plain English, every text once), the same with a column of 0 and 1
for each subject, and the shipped pairs are the clean controls. Then, a kind at a time, RAISED rows are spoilt, and the
rows that `bertune.check` names are compared with them; over SEEDS draws of rows. speed: 100,000 short texts (SST-2,
GoEmotions) and 100,000 long ones (IMDb, papers) through `bertune check --label-errors none` as a process of its own.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from workers import ROOT, machine

sys.path.insert(0, str(ROOT / "src"))

SEEDS, RAISED = 3, 20
SUBJECTS = ("Computer Science", "Mathematics", "Physics")
FRENCH = "Nous montrons que {} et que la méthode proposée donne de meilleurs résultats que toutes celles qui précèdent."
Row = dict[str, str]
Splits = dict[str, list[Row]]
Places = set[tuple[str, int]]
# Spoils rows of `splits` in place; the rows that have to be named
Spoil = Callable[[Splits, np.random.Generator], Places]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="folder of the data sets")
    parser.add_argument("--json", type=Path, help="file for the result (default: standard output)")
    parser.add_argument("--only", choices=("faults", "speed"), help="one of the two parts")
    parser.add_argument("--kinds", type=lambda text: text.split(","), help="of the faults, only these, a,b,c")
    options = parser.parse_args()
    report: dict[str, Any] = {"machine": machine()}
    if options.json and options.json.is_file():
        report = json.loads(options.json.read_text(encoding="utf-8")) | report
    if options.only != "speed":
        report["faults"] = report.get("faults", {}) | faults(options.data, options.kinds)
    if options.only != "faults":
        report["speed"] = speed(options.data)
    text = json.dumps(report, indent=1)
    if options.json:
        options.json.write_text(text + "\n", encoding="utf-8")
    else:
        print(text)


def faults(data: Path, only: list[str] | None) -> dict[str, Any]:
    """By kind: rows spoilt, of them named, and others named beside them; `clean`: findings without any fault."""
    texts, pairs = papers(data), sample_pairs()
    columns = in_columns(texts)
    report: dict[str, Any] = {
        "clean": {"papers": findings(texts), "columns": findings(columns), "pairs": findings(pairs)}
    }
    for kind, (base, spoil) in kinds(texts, columns, pairs).items():
        if only and kind not in only:
            continue
        counts = {"put_in": 0, "found": 0, "others": 0}
        for seed in range(SEEDS):
            splits = {name: [dict(row) for row in rows] for name, rows in base.items()}
            wanted = spoil(splits, np.random.default_rng(seed))
            told = findings(splits).get(kind, set())
            counts["put_in"] += len(wanted)
            counts["found"] += len(wanted & told)
            counts["others"] += len(told - wanted)
        report[kind] = counts
        print(f"{kind}: {counts}", file=sys.stderr, flush=True)
    report["clean"] = {name: sorted(found) for name, found in report["clean"].items()}
    return report


def findings(splits: Splits) -> dict[str, Places]:
    """Kind -> the rows that are named; of a finding about a whole split, or about labels, the split or count."""
    import bertune

    with tempfile.TemporaryDirectory() as name:
        paths = {split: Path(name) / f"{split}.csv" for split in splits}
        for split, rows in splits.items():
            write(paths[split], rows)
        found = bertune.check(
            paths["train"], valid=paths["valid"], test=paths["test"], label_errors="none",
            settings={"model.max_length": 512},
        )  # fmt: skip
    told: dict[str, Places] = {}
    for finding in found.findings:
        rows = {(place["split"], place["row"]) for place in finding.rows}
        told.setdefault(finding.kind, set()).update(rows or {("", 0)})
    return told


def papers(data: Path) -> Splits:
    """papers of one of three subjects: 500 of each, in plain ASCII without markup, each text once."""
    rows: dict[str, list[Row]] = {subject: [] for subject in SUBJECTS}
    seen = set()
    with (data / "papers" / "papers.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            own = [name for name in row if row[name] == "1" and name not in ("ID", "TITLE", "ABSTRACT")]
            text = row["ABSTRACT"].strip()
            plain = text.isascii() and not any(mark in text for mark in "<&\\$") and len(text) > 200
            if len(own) == 1 and own[0] in rows and plain and text.lower() not in seen and len(rows[own[0]]) < 500:
                seen.add(text.lower())
                rows[own[0]].append({"text": text, "label": own[0]})
    return divided([row for subject in SUBJECTS for row in rows[subject]])


def sample_pairs() -> Splits:
    with (ROOT / "src" / "bertune" / "samples" / "nli.tsv").open(encoding="utf-8", newline="") as file:
        rows = [{key: row[key] for key in ("premise", "hypothesis", "label", "premise_id")}
                for row in csv.DictReader(file, delimiter="\t")]  # fmt: skip
    return divided(rows, group="premise_id")


def divided(rows: list[Row], group: str | None = None) -> Splits:
    groups = np.unique([row[group] for row in rows], return_inverse=True)[1] if group else np.arange(len(rows))
    place = np.random.default_rng(0).permutation(groups.max() + 1)[groups] / (groups.max() + 1)
    parts = {"train": (0.0, 0.7), "valid": (0.7, 0.85), "test": (0.85, 1.0)}
    return {
        name: [{key: cell for key, cell in row.items() if key != group}
               for row, at in zip(rows, place, strict=True) if low <= at < high]
        for name, (low, high) in parts.items()
    }  # fmt: skip


def in_columns(texts: Splits) -> Splits:
    """A column of 0 and 1 for each subject; every seventh row has a second one."""

    def cells(row: Row, number: int) -> Row:
        own = SUBJECTS.index(row["label"])
        has = {own, (own + 1 + number % 2) % len(SUBJECTS)} if number % 7 == 0 else {own}
        return {"text": row["text"], **{name: str(int(place in has)) for place, name in enumerate(SUBJECTS)}}

    return {name: [cells(row, number) for number, row in enumerate(rows)] for name, rows in texts.items()}


def kinds(texts: Splits, columns: Splits, pairs: Splits) -> dict[str, tuple[Splits, Spoil]]:
    """How each kind of fault is put in."""
    return {
        "empty_text": (texts, each(lambda row, number: "")),
        "one_word": (texts, each(lambda row, number: f"Word{number}")),
        "markup": (texts, each(lambda row, number: row["text"].replace(". ", ".<br /><br />", 1) + " <i>q.e.d.</i>")),
        "mojibake": (texts, each(lambda row, number: spoilt_encoding(row["text"]))),
        "control_characters": (texts, each(lambda row, number: row["text"].replace(" ", "\u200b ", 1))),
        "language": (texts, each(lambda row, number: FRENCH.format(f"la suite numéro {number} converge"))),
        "unknown_tokens": (texts, each(lambda row, number: "\u2603\u2602 \u2668 \u2691\u2692 " * (3 + number))),
        "truncation": (texts, each(lambda row, number: " ".join([row["text"]] * 15), count=60)),
        "duplicate": (texts, copies("train", "train", same=True)),
        "near_duplicate": (texts, copies("train", "train", same=False)),
        "leak": (texts, copies("train", "test", same=True)),
        "near_leak": (texts, copies("train", "test", same=False)),
        "contradiction": (texts, contradictions),
        "label_names": (texts, misspelt),
        "rare_label": (texts, rare),
        "label_missing": (texts, whole(lambda rows: [row for row in rows if row["label"] != SUBJECTS[0]], "test")),
        "imbalance": (texts, whole(lambda rows: thinned(rows, 10), "train", "valid", "test")),
        "label_shift": (texts, whole(lambda rows: thinned(rows, 4), "test")),
        "shift": (texts, whole(lambda rows: [{**row, "text": row["text"].replace("we ", "the authors ")
                                              .replace("We ", "The authors ")} for row in rows], "test")),
        "constant_label": (columns, whole(lambda rows: [{**row, "Law": "0"} for row in rows], *columns)),
        "duplicate_label": (
            columns, whole(lambda rows: [{**row, "Sums": row["Mathematics"]} for row in rows], *columns)
        ),
        "swapped_pair": (pairs, swapped),
        "identical_sides": (pairs, identical),
        "second_side_tells": (pairs, whole(give_away, "train", "valid", "test")),
        "swapped_sides": (pairs, exchanged),
    }  # fmt: skip


def each(change: Callable[[Row, int], str], *, count: int = RAISED) -> Spoil:
    def spoil(splits: Splits, random: np.random.Generator) -> Places:
        places = set()
        for number, row in enumerate(random.permutation(len(splits["train"]))[:count].tolist()):
            splits["train"][row]["text"] = change(splits["train"][row], number)
            places.add(("train", row + 1))
        return places

    return spoil


def whole(change: Callable[[list[Row]], list[Row]], *names: str) -> Spoil:
    """A fault of whole splits, which names no rows, or all of them."""

    def spoil(splits: Splits, random: np.random.Generator) -> Places:
        for name in names:
            random.shuffle(splits[name])  # type: ignore[arg-type]
            splits[name] = change(splits[name])
        return {("", 0)}

    return spoil


def copies(source: str, target: str, *, same: bool) -> Spoil:
    """Rows of `source` put in place of rows of `target`, as they are or with three words changed."""

    def spoil(splits: Splits, random: np.random.Generator) -> Places:
        drawn = random.permutation(len(splits[source]))
        into = drawn[RAISED : 2 * RAISED] if source == target else random.permutation(len(splits[target]))[:RAISED]
        named = set()
        for one, other in zip(drawn[:RAISED].tolist(), into.tolist(), strict=True):
            row = dict(splits[source][one])
            if not same:
                words = row["text"].split()
                for place in random.permutation(len(words))[:3].tolist():
                    words[place] = "however"
                row["text"] = " ".join(words)
            splits[target][other] = row
            named.add((target, (max(one, other) if source == target else other) + 1))
        return named

    return spoil


def contradictions(splits: Splits, random: np.random.Generator) -> Places:
    named = set()
    drawn = random.permutation(len(splits["train"])).tolist()
    for one, other in zip(drawn[:RAISED], drawn[RAISED : 2 * RAISED], strict=True):
        row = splits["train"][one]
        label = SUBJECTS[(SUBJECTS.index(row["label"]) + 1) % len(SUBJECTS)]
        splits["train"][other] = {"text": row["text"], "label": label}
        named |= {("train", one + 1), ("train", other + 1)}
    return named


def misspelt(splits: Splits, random: np.random.Generator) -> Places:
    rows = [number for number, row in enumerate(splits["train"]) if row["label"] == "Physics"]
    chosen = random.permutation(rows)[:RAISED].tolist()
    for row in chosen:
        splits["train"][row]["label"] = "physics"
    return {("train", row + 1) for row in chosen}


def rare(splits: Splits, random: np.random.Generator) -> Places:
    chosen = random.permutation(len(splits["train"]))[:5].tolist()
    for row in chosen:
        splits["train"][row]["label"] = "Economics"
    return {("train", row + 1) for row in chosen}


def thinned(rows: list[Row], share: int) -> list[Row]:
    """Only one in `share` rows of the first subject."""
    first = [row for row in rows if row["label"] == SUBJECTS[0]]
    return [row for row in rows if row["label"] != SUBJECTS[0]] + first[: len(first) // share]


def swapped(splits: Splits, random: np.random.Generator) -> Places:
    named = set()
    sources = random.permutation(len(splits["train"])).tolist()
    for one, other in zip(sources, random.permutation(len(splits["test"]))[:RAISED].tolist(), strict=False):
        row = splits["train"][one]
        splits["test"][other] = {"premise": row["hypothesis"], "hypothesis": row["premise"], "label": row["label"]}
        named.add(("test", other + 1))
    return named


def identical(splits: Splits, random: np.random.Generator) -> Places:
    chosen = random.permutation(len(splits["train"]))[:RAISED].tolist()
    for row in chosen:
        splits["train"][row]["hypothesis"] = splits["train"][row]["premise"]
    return {("train", row + 1) for row in chosen}


def give_away(rows: list[Row]) -> list[Row]:
    """Contradictions begin with telling words."""
    return [
        {**row, "hypothesis": f"Nobody thinks: {row['hypothesis']}"} if row["label"] == "contradiction" else row
        for row in rows
    ]


def exchanged(splits: Splits, random: np.random.Generator) -> Places:
    for rows in splits.values():
        for row in rows:
            row["hypothesis"] = f"Hence {row['hypothesis']}"
    for row in splits["test"]:
        row["premise"], row["hypothesis"] = row["hypothesis"], row["premise"]
    return {("", 0)}


def spoilt_encoding(text: str) -> str:
    """Typographic quotes in UTF-8 that was read as Windows-1252."""
    return f"“{text}” – naïve".encode().decode("cp1252", "replace").replace("\ufffd", "")


def speed(data: Path) -> dict[str, Any]:
    """Seconds and peak memory of `bertune check` on 100,000 rows."""
    report = {}
    for name, rows in (("short", short_rows(data)), ("long", long_rows(data))):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "rows.csv"
            write(path, [row for _, row in zip(range(100_000), rows, strict=False)])
            command = [sys.executable, "-m", "bertune", "check", str(path), "--label-errors", "none", "--json"]
            environment = {**os.environ, "BERTUNE_CACHE": str(Path(folder) / "cache"), "PYTHONPATH": str(ROOT / "src")}
            begin = time.perf_counter()
            child = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment)
            assert child.stdout is not None
            found = json.loads(child.stdout.read())["findings"]
            _, status, usage = os.wait4(child.pid, 0)
            seconds = time.perf_counter() - begin
            report[name] = {
                "rows": 100_000, "megabytes": round(path.stat().st_size / 1e6, 1), "seconds": round(seconds, 1),
                "peak_memory_bytes": usage.ru_maxrss * 1024, "exit_code": os.waitstatus_to_exitcode(status),
                "findings": [finding["kind"] for finding in found],
            }  # fmt: skip
            print(f"{name}: {report[name]}", file=sys.stderr, flush=True)
    return report


def short_rows(data: Path) -> Iterator[Row]:
    for name in ("sst2", "goemotions"):
        lines = (data / name / "train.tsv").read_text(encoding="utf-8").splitlines()[name == "sst2" :]
        for line in lines:
            yield {"text": line.split("\t")[0], "label": name}


def long_rows(data: Path) -> Iterator[Row]:
    for name in ("train", "test", "unsup"):
        with gzip.open(data / "imdb" / f"{name}.jsonl.gz", "rt", encoding="utf-8") as file:
            for line in file:
                yield {"text": json.loads(line)["text"], "label": "review"}
    with (data / "papers" / "papers.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            yield {"text": row["ABSTRACT"], "label": "paper"}
    with gzip.open(data / "papers" / "unlabeled.jsonl.gz", "rt", encoding="utf-8") as file:
        for line in file:
            yield {"text": json.loads(line)["abstract"], "label": "paper"}


def write(path: Path, rows: list[Row]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
