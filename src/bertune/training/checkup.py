"""The doctor before training: the data looked over, findings said and kept, and labels doubted where asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bertune.config import CheckConfig, Config
from bertune.data.rows import rows_of
from bertune.data.tokens import Tokenizer
from bertune.doctor.copies import Copies
from bertune.doctor.corpus import Corpus, Part
from bertune.doctor.examine import examine
from bertune.doctor.findings import Finding, by_severity, plural, strictly
from bertune.doctor.plan import Plan, make_plan
from bertune.doctor.relabel import Doubt, doubts_finding, write_queue
from bertune.errors import ConfigError, DataError
from bertune.files import write_json
from bertune.model.load import read_config
from bertune.model.source import open_source
from bertune.paths import cache_settings
from bertune.training.listen import Listener, Silent
from bertune.training.longest import with_way
from bertune.training.opening import check_fit, settle_length, settle_long_text
from bertune.training.prepare import Prepared, read_splits, tokenize

UNCHECKED = CheckConfig(enabled=False).model_dump()  # options of a run over data that was checked


@dataclass(frozen=True)
class Checkup:
    """What was found. findings: the gravest first; doubts: rows whose label is probably wrong, the likeliest first,
    None where nobody asked for them."""

    findings: list[Finding] = field(default_factory=list)
    corpus: Corpus | None = None
    copies: Copies | None = None
    doubts: list[Doubt] | None = None

    def count(self, severity: str) -> int:
        return sum(finding.severity == severity for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON: {"findings": [{kind, severity, count, rows, message, advice}, ...]}."""
        return {"findings": [finding.to_dict() for finding in self.findings]}

    def summary(self) -> str:
        """How many findings of each severity, in a line."""
        told = [plural(self.count(name), name) for name in ("error", "warning", "note") if self.count(name)]
        return f"Check: {', '.join(told)}." if told else "Check: nothing found."

    def plan(self) -> Plan:
        """What could be done to the training rows: which to drop, to relabel, or to look at."""
        assert self.corpus is not None and self.copies is not None, "nothing was looked at"
        return make_plan(self.corpus, self.copies, self.doubts or [])

    def write(self, folder: Path) -> None:
        """check.json, and relabel.csv where labels were doubted."""
        if self.corpus is not None:
            write_json(folder / "check.json", self.to_dict())
        if self.doubts is not None:
            write_queue(folder / "relabel.csv", self.doubts)


def check(config: Config, *, source: Any = None, listener: Listener | None = None) -> Checkup:
    """Read and split the data as `train` would, and look it over. Raises InputError for what cannot be read."""
    heard = listener or Silent()
    with cache_settings(config.cache.folder, config.cache.limit):
        folder, _ = open_source(config.model.name, revision=config.model.revision)
        tokenizer, encoder = Tokenizer.load(folder), read_config(folder)
        check_fit(tokenizer, encoder, folder)
        prepared = read_splits(source, config.data, heard.say)
        if "auto" in (config.model.long_text, config.model.long_text_pair):
            config = with_way(config, "head")  # what would be tried is not known before training
        max_length = settle_length(config, encoder, prepared.task, tokenizer)
        tokenize(
            prepared, tokenizer, max_length=max_length, truncation=config.model.truncation, say=heard.say,
            long_text=settle_long_text(config, prepared.task, tokenizer, max_length), allow_empty=True,
        )  # fmt: skip
        return _check_up(config, prepared, folder, tokenizer, heard)


def look_over(
    config: Config, prepared: Prepared, folder: Path, tokenizer: Tokenizer, listener: Listener
) -> Checkup:
    """The check at the start of a training: errors and warnings are said, and errors end it with DataError."""
    if not config.check.enabled:
        if config.check.strict or config.check.label_errors != "none":
            raise ConfigError("check.enabled: no leaves nothing for --strict and --label-errors to do; leave them out.")
        return Checkup()
    found = _check_up(config, prepared, folder, tokenizer, listener)
    _tell(found, listener.say)
    errors = [finding for finding in found.findings if finding.severity == "error"]
    if errors:
        rest = "" if len(errors) == 1 else f" So do {len(errors) - 1} more: see bertune check."
        way = " Without --strict it would be a warning." if config.check.strict else ""
        raise DataError(f"the check of the data ends this: {errors[0].sentence()}{rest}{way}")
    return found


def _tell(found: Checkup, say: Callable[[str], None]) -> None:
    say(found.summary())
    for finding in found.findings:
        if finding.severity != "note":
            say(f"  {finding.sentence()}")


def _check_up(
    config: Config, prepared: Prepared, folder: Path, tokenizer: Tokenizer, listener: Listener
) -> Checkup:
    parts = {
        name: Part(split.table, rows_of(prepared.task, split.table, allow_empty=True), split.targets, split.tokens)
        for name, split in prepared.splits.items()
    }
    corpus = Corpus(prepared.task, parts)
    with listener.work("Looking the data over", len(corpus)) as advance:
        findings, copies = examine(corpus, unk_id=tokenizer.unk_id)
        advance(len(corpus))
    doubts = None
    if config.check.label_errors != "none":
        from bertune.training.doubt import doubt_labels

        doubts = doubt_labels(config, prepared, corpus, folder, listener)
        findings = by_severity([*findings, *doubts_finding(corpus, doubts)])
    return Checkup(strictly(findings) if config.check.strict else findings, corpus, copies, doubts)
