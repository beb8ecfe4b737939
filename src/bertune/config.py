"""Typed configuration: one place declares an option; YAML, `--set a.b=c`, the command line and Python all read it here.

A field's `description` is its help text, and `json_schema_extra={"flag": ...}` gives it a command-line flag of its own;
a field without a flag is reached with `--set section.name=value`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator

from bertune.dataconfig import DataConfig, ReadConfig
from bertune.errors import ConfigError
from bertune.modelconfig import ModelConfig
from bertune.paths import size_in_bytes
from bertune.pretrainconfig import WITHIN_TASK, PretrainConfig
from bertune.sections import Section, flag
from bertune.settings import merge, read_yaml, sentence
from bertune.trainconfig import TrainConfig

__all__ = [
    "PRETRAINING_KEYS", "CacheConfig", "CheckConfig", "Config", "DataConfig", "DecideConfig", "ModelConfig",
    "PretrainConfig", "ReadConfig", "ReportConfig", "TrainConfig",
]  # fmt: skip

# The options that a pre-training depends on; the others have no effect on it.
PRETRAINING_KEYS = (
    "data.files", "data.text", *(f"data.{name}" for name in ("format", "header", "columns", "encoding", "quoting")),
    "model.name", "model.revision", "model.dropout", "report.page", "cache.folder", "cache.limit",
    *(f"pretrain.{name}" for name in PretrainConfig.model_fields if name != "on"),
    *(f"train.{name}" for name in ("seed", "device", "precision", "threads", "token_budget", "kernels", "compile",
                                   "checkpoint_minutes", "checkpoint_steps")),
)  # fmt: skip


class CheckConfig(Section):
    """The look at the data before training."""

    enabled: bool = Field(True, description="Look the data over before training, and say what was found.")
    strict: bool = Field(False, description="What would be a warning ends the run.")
    label_errors: Literal["none", "frozen", "tuned"] = Field(
        "none",
        description="Doubt labels by models that have not seen the row: over the encoder as it is (frozen), or "
        "trained anew for each fold (tuned), which takes as many trainings.",
        json_schema_extra=flag("--label-errors", group="Check"),
    )
    folds: int = Field(5, ge=2, description="Folds of --label-errors.")


class DecideConfig(Section):
    """How logits become answers; what is open here is chosen on the validation rows, and kept with the model."""

    calibration: Literal["auto", "none"] = Field(
        "auto", description="auto: temperatures, and a bias a label, where they lower the log loss of other rows."
    )
    threshold: float | Literal["auto", "half", "global", "label"] = Field(
        "auto",
        description="Where a label of several begins: half, global (one for all), label (one each), or a probability; "
        "auto: the simplest of them that is clearly not worse out of fold.",
        json_schema_extra=flag("--threshold", group="Decision", metavar="auto|half|global|label|P"),
    )
    objective: Literal["auto", "micro_f1", "macro_f1", "sample_f1", "subset_accuracy", "hamming_loss"] = Field(
        "auto", description="What thresholds are chosen for; auto: --metric where it is one of these, else micro_f1."
    )
    precision: float | None = Field(
        None, gt=0, lt=1, description="Give a label only where it was right this often on the validation rows."
    )
    miss_cost: float = Field(1.0, gt=0, description="What a label that is missed costs, a false one costing 1.")
    min_labels: int = Field(0, ge=0, description="Labels that a row gets at least.")
    max_labels: int | None = Field(None, ge=1, description="Labels that a row gets at most.")
    coverage: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Also give sets of labels that hold the right one this often; half of the validation rows are kept "
        "for it.",
        json_schema_extra=flag("--coverage", group="Decision", metavar="P"),
    )
    accuracy: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Ask a person where answers are not right this often; half of the validation rows are kept for it.",
        json_schema_extra=flag("--accuracy", group="Decision", metavar="P"),
    )

    @field_validator("threshold", mode="before")
    @classmethod
    def _number_or_name(cls, value: object) -> object:
        if value in ("auto", "half", "global", "label"):
            return value
        try:
            number = float(str(value))
        except ValueError:
            raise ValueError("expected auto, half, global, label, or a probability") from None
        if not 0 < number < 1:
            raise ValueError("a threshold lies between 0 and 1")
        return number


class ReportConfig(Section):
    """What is measured beside the result."""

    baselines: bool = Field(
        True, description="Also measure TF-IDF with a linear model, and always the same answer, on the same rows."
    )
    slices: list[str] = Field(
        [],
        description="Column by whose values the rows are measured apart; length and truncation always are.",
        json_schema_extra=flag("--slice", group="Report", metavar="COLUMN"),
    )
    page: bool = Field(
        True, description="Draw run/report.html and its figures when training ends; bertune report does so later."
    )


class CacheConfig(Section):
    """Where encoded texts, downloads and converted models are kept. No result depends on it."""

    folder: str | None = Field(None, description="Cache folder; by default BERTUNE_CACHE, else the platform's place.")
    limit: str | None = Field(
        None, description="Most that the cache takes, such as 20GB; 0 switches it off. By default BERTUNE_CACHE_LIMIT."
    )

    @field_validator("folder")
    @classmethod
    def _named(cls, value: str | None) -> str | None:
        if value == "":
            raise ValueError("name a folder, or leave it out for BERTUNE_CACHE, else the platform's place")
        return value

    @field_validator("limit", mode="before")
    @classmethod
    def _size(cls, value: object) -> object:
        if value is None:
            return None
        size_in_bytes(str(value))
        return str(value)


class Config(Section):
    """Everything a run depends on; `run/config.yaml` is one of these and reruns the run."""

    data: DataConfig = Field(default_factory=DataConfig)
    check: CheckConfig = Field(default_factory=CheckConfig)
    model: ModelConfig = Field(default_factory=ModelConfig)
    pretrain: PretrainConfig = Field(default_factory=PretrainConfig)
    train: TrainConfig = Field(default_factory=TrainConfig)
    decide: DecideConfig = Field(default_factory=DecideConfig)
    report: ReportConfig = Field(default_factory=ReportConfig)
    cache: CacheConfig = Field(default_factory=CacheConfig)

    @classmethod
    def load(cls, path: str | Path) -> Config:
        """Read a YAML file; errors are `ConfigError` with the file and the option."""
        return cls().updated(read_yaml(path), place=str(path))

    def updated(self, values: dict[str, Any], *, place: str = "options") -> Config:
        """A copy with nested `values` laid over it, validated; `place` is named in errors."""
        merged = self.model_dump()
        merge(merged, values, place)
        try:
            return Config.model_validate(merged)
        except ValidationError as error:
            raise ConfigError(sentence(error, place)) from None

    def read_files(self) -> list[str]:
        """The names of all files that a run reads, its model aside."""
        data, texts = self.data, [name for name in self.pretrain.on if name != WITHIN_TASK]
        named = (*data.files, data.valid, data.test, data.label_names, data.plan, *texts)
        return [name for name in named if isinstance(name, str)]

    def record(self) -> dict[str, Any]:
        """The sections that a result depends on, as plain values."""
        return self.model_dump(mode="json", exclude={"cache"})

    def changes(self, other: Config) -> list[str]:
        """What a result of `other` would be made with differently: `train.lr (was 0.1, now 0.2)`."""
        before, now = self.record(), other.record()
        return [
            f"{section}.{name} (was {before[section][name]!r}, now {value!r})"
            for section, values in now.items() for name, value in values.items() if before[section][name] != value
        ]  # fmt: skip

    def to_yaml(self) -> str:
        import yaml

        return yaml.safe_dump(self.record(), sort_keys=False, allow_unicode=True)
