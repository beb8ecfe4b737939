"""The sections of the configuration that say how files become rows, and rows a task with its splits; see config.py."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from bertune.sections import Section, flag


class ReadConfig(Section):
    """How a file becomes rows."""

    format: Literal["auto", "csv", "tsv", "jsonl", "parquet", "text"] = Field(
        "auto",
        description="File format; auto goes by the file name and what the file begins with.",
        json_schema_extra=flag("--format", group="Reading"),
    )
    header: Literal["auto", "yes", "no"] = Field(
        "auto",
        description="Whether the first row names the columns.",
        json_schema_extra=flag("--header", group="Reading"),
    )
    columns: list[str] = Field(
        [],
        description="Column names a,b,c for a file without a header, or with --header yes in place of it.",
        json_schema_extra=flag("--columns", group="Reading", metavar="A,B,C"),
    )
    encoding: str | None = Field(
        None,
        description="Text encoding; by default UTF-8 with or without BOM.",
        json_schema_extra=flag("--encoding", group="Reading"),
    )
    quoting: Literal["auto", "quoted", "literal"] = Field(
        "auto",
        description="Whether quotes enclose cells; auto: CSV yes, TSV only where it is consistently quoted.",
        json_schema_extra=flag("--quoting", group="Reading"),
    )
    layout: Literal["auto", "snli", "trec"] = Field(
        "auto",
        description="Official layout of a well-known data set.",
        json_schema_extra=flag("--layout", group="Reading"),
    )
    drop_label: list[str] = Field(
        [],
        description="Leave out rows with this label value, and count them.",
        json_schema_extra=flag("--drop-label", group="Reading", metavar="VALUE"),
    )


class DataConfig(ReadConfig):
    """Which columns are text and label, and which rows train, validate and test."""

    files: list[str] = Field([], description="Files to train on.")
    text: list[str] = Field(
        [],
        description="Text column; repeat to join several.",
        json_schema_extra=flag("--text", group="Data", metavar="COLUMN"),
    )
    text_pair: list[str] = Field(
        [],
        description="Column of the second side of a pair; repeat to join several.",
        json_schema_extra=flag("--text-pair", group="Data", metavar="COLUMN"),
    )
    label: list[str] = Field(
        [],
        description="Label column; several are the 0/1 columns of one multi-label task.",
        json_schema_extra=flag("--label", group="Data", metavar="COLUMN"),
    )
    task: Literal["auto", "single", "multi"] = Field(
        "auto", description="One label a row, or any number.", json_schema_extra=flag("--task", group="Data")
    )
    labels: list[str] = Field(
        [],
        description="All labels in order, a,b,c; by default those found in the data.",
        json_schema_extra=flag("--labels", group="Data", metavar="A,B,C"),
    )
    label_names: str | None = Field(
        None,
        description="File with a label name a line; label cells are then line numbers from 0 or names.",
        json_schema_extra=flag("--label-names", group="Data", metavar="FILE"),
    )
    label_sep: str | None = Field(
        None,
        description="Separator inside a cell that holds several labels.",
        json_schema_extra=flag("--label-sep", group="Data"),
    )
    valid: str | float | None = Field(
        None,
        description="Validation file, or a fraction of the rows.",
        json_schema_extra=flag("--valid", group="Data", metavar="FILE|FRACTION"),
    )
    test: str | float | None = Field(
        None,
        description="Test file, or a fraction of the rows.",
        json_schema_extra=flag("--test", group="Data", metavar="FILE|FRACTION"),
    )
    hold_out: bool = Field(
        True, description="Without --valid and --test, hold out a tenth of the rows for each; otherwise all rows train."
    )
    fold: str | None = Field(
        None, pattern="^[0-9]+/[0-9]+$", description="Fold that is the test split, of how many: 2/5; see --folds."
    )
    share: float = Field(
        1.0, gt=0, le=1, description="Share of the training rows to train on; see bertune curve. Larger ones hold "
        "the smaller ones.",
    )  # fmt: skip
    share_seed: int = Field(0, ge=0, lt=2**32, description="Seed of which rows a share takes.")
    split_seed: int = Field(
        0, ge=0, lt=2**32, description="Seed of the split.", json_schema_extra=flag("--split-seed", group="Data")
    )
    plan: str | None = Field(
        None,
        description="Plan of `bertune check --fix`: rows to leave out of the training, or to label otherwise.",
        json_schema_extra=flag("--plan", group="Data", metavar="FILE.yaml"),
    )
    group: str | None = Field(
        None,
        description="Column whose equal values never fall into two splits.",
        json_schema_extra=flag("--group", group="Data", metavar="COLUMN"),
    )

    @field_validator("fold")
    @classmethod
    def _fold_of_folds(cls, value: str | None) -> str | None:
        if value is not None:
            number, folds = map(int, value.split("/"))
            if not 1 <= number <= folds or folds < 2:
                raise ValueError("of at least 2 folds, the first is 1")
        return value

    @field_validator("valid", "test", mode="before")
    @classmethod
    def _fraction_or_file(cls, value: object) -> object:
        if isinstance(value, str):
            try:
                value = float(value)
            except ValueError:
                return value
        if isinstance(value, int | float) and not 0 < value < 1:
            raise ValueError("a fraction lies between 0 and 1; or name a file")
        return value

    def fractions(self) -> dict[str, float | None]:
        """The share of the main table that each split takes."""
        if self.valid is None and self.test is None:
            share = 0.1 if self.hold_out else None
            return {"valid": share, "test": share}
        return {
            "valid": self.valid if isinstance(self.valid, float) else None,
            "test": self.test if isinstance(self.test, float) else None,
        }
