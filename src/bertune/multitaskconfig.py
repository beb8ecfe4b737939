"""The configuration of a joint training: the sections that all tasks share, and a section for each task.

    model: {name: bert}
    train: {epochs: 3}
    sampling: sqrt
    tasks:
      reviews: {data: {files: imdb/train.jsonl.gz, valid: 0.1, test: imdb/test.jsonl.gz}, weight: 2}
      questions: {data: {files: trec/train.txt, layout: trec, valid: 0.1}, model: {max_length: 64}, metric: macro_f1}
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from bertune.config import Config
from bertune.errors import ConfigError, listed, nearest
from bertune.sections import Section, check_names
from bertune.settings import read_yaml, sentence

# What a task may have of its own; everything else of `model` and `train` belongs to all of them.
OWN_MODEL = (
    "pooling", "layers", "combine", "head", "head_hidden", "head_dropout", "max_length", "truncation", "long_text",
    "long_text_pair", "join", "chunk_overlap", "max_chunks",
)  # fmt: skip
OWN_TRAIN = (
    "batch_size", "loss", "focal_gamma", "negative_gamma", "negative_margin", "class_weights", "label_smoothing",
    "r_drop", "label_prior",
)  # fmt: skip
SHARED = ("check", "model", "train", "decide", "report", "cache")  # sections for all tasks
# Shared options that mean nothing here, or cannot be had: and what to do instead.
REFUSED = {
    "model.lora": "LoRA's result stands beside a model that is kept as it was, and here all tasks train it. Leave it "
    "out.",
    "train.adversarial": "freelb moves embeddings in several passes of one task's step. Leave it out.",
    "train.evaluate_test": "test splits are measured at the end. Leave it out.",
    "train.metric": "each task has its own: write metric: NAME under the task.",
    "check.label_errors": "doubts the labels of one task: run bertune check on its data.",
}  # fmt: skip


class TaskOptions(Section):
    """One task: its data, head, loss and metric. Sections hold what config.py declares."""

    data: dict[str, Any] = Field({}, description="The section data of this task.")
    model: dict[str, Any] = Field({}, description=f"Of the section model: {', '.join(OWN_MODEL)}.")
    train: dict[str, Any] = Field({}, description=f"Of the section train: {', '.join(OWN_TRAIN)}.")
    decide: dict[str, Any] = Field({}, description="The section decide of this task.")
    report: dict[str, Any] = Field({}, description="The section report of this task.")
    metric: str = Field("auto", description="What chooses the best epoch for this task, with those of the others.")
    weight: float = Field(1.0, gt=0, description="What the loss of this task is multiplied by.")


class JointOptions(Section):
    """What a joint training has beside the sections of config.py."""

    sampling: Literal["proportional", "sqrt", "temperature"] = Field(
        "proportional",
        description="How many rows are seen of a task: as it has training rows, their square root, or their 1/T-th "
        "power.",
    )
    temperature: float = Field(2.0, ge=1, description="T of --sampling temperature: 1 as the rows, the larger the "
                               "more alike.")  # fmt: skip
    uncertainty: bool = Field(False, description="Learn how much each task's loss counts (Kendall et al. 2018).")
    then_alone: bool = Field(False, description="Afterwards fine-tune each task alone from the joint encoder.")
    alone_lr: float | None = Field(
        None, gt=0, description="Peak learning rate of encoder and head in that; by default as the section train says.",
    )  # fmt: skip
    tasks: dict[str, TaskOptions] = Field({}, description="The tasks by name.")

    @field_validator("tasks")
    @classmethod
    def _names(cls, value: dict[str, TaskOptions]) -> dict[str, TaskOptions]:
        check_names(value, "a folder's name")
        return value

    @model_validator(mode="after")
    def _go_together(self) -> JointOptions:
        if self.sampling != "temperature" and "temperature" in self.model_fields_set:
            raise ValueError(f"temperature {self.temperature:g} needs sampling temperature")
        if self.alone_lr is not None and not self.then_alone:
            raise ValueError(f"alone_lr {self.alone_lr:g} needs then_alone")
        for name, task in self.tasks.items():
            if self.uncertainty and task.weight != 1:
                raise ValueError(
                    f"uncertainty learns what the weight of task '{name}', {task.weight:g}, would fix; leave one out"
                )
        return self


@dataclass(frozen=True)
class MultiConfig:
    """A joint training. shared: the sections for all tasks; options: the rest, with the tasks as they were written."""

    shared: Config
    options: JointOptions

    @classmethod
    def load(cls, path: str | Path) -> MultiConfig:
        """Read a YAML file; errors are `ConfigError` with the file and the option."""
        holds = f"sections {', '.join(SHARED)} and tasks"
        return cls.parse(read_yaml(path, what="file of tasks", holds=holds), place=str(path))

    @classmethod
    def parse(cls, values: Mapping[str, Any], *, place: str = "tasks") -> MultiConfig:
        """From a mapping as the YAML file holds it."""
        known = (*JointOptions.model_fields, *SHARED)
        for name in values:
            if name == "data":
                raise ConfigError(f"{place}: 'data' belongs under each task: tasks: NAME: data: files: ...")
            if name == "pretrain":
                raise ConfigError(f"{place}: 'pretrain': run bertune pretrain first, and pass its result as --model.")
            if name not in known:
                near = nearest(str(name), known) or f"; choices: {', '.join(known)}."
                raise ConfigError(f"{place}: '{name}' is not an option{near}")
        shared = Config().updated({name: values[name] for name in SHARED if name in values}, place=place)
        found = cls(shared, JointOptions()).updated(
            {name: value for name, value in values.items() if name in JointOptions.model_fields}, place=place
        )
        for name in found.names:
            found.task(name, place=place)
        return found

    def updated(
        self, values: Mapping[str, Any], *, shared: Config | None = None, place: str = "options"
    ) -> MultiConfig:
        """A copy with other options of `JointOptions`, or other shared sections."""
        before = {name: getattr(self.options, name) for name in self.options.model_fields_set}
        try:
            return MultiConfig(shared or self.shared, JointOptions.model_validate(before | dict(values)))
        except ValidationError as error:
            first = error.errors()[0]
            if first["loc"]:
                raise ConfigError(sentence(error, place)) from None
            raise ConfigError(f"{place}: {first['msg'].removeprefix('Value error, ')}.") from None

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.options.tasks)

    def task(self, name: str, *, place: str = "tasks") -> Config:
        """The configuration of one task: the shared sections, and its own laid over them."""
        own = self.options.tasks[name]
        for section, allowed in (("model", OWN_MODEL), ("train", OWN_TRAIN)):
            for key in getattr(own, section):
                if key not in allowed:
                    raise ConfigError(
                        f"{place}: 'tasks.{name}.{section}.{key}' belongs to all tasks, or is no option; a task may "
                        f"have {listed(allowed, 20)} of its own. Write it in the section {section} beside tasks."
                    )
        sections = {section: getattr(own, section) for section in ("data", "model", "train", "decide", "report")}
        values = {section: found for section, found in sections.items() if found}
        values["train"] = {**own.train, "metric": own.metric}
        return self.shared.updated(values, place=f"{place}, tasks.{name}")

    def check(self) -> None:
        """Raise ConfigError for what is missing, or cannot be had in a joint training."""
        if not self.names:
            raise ConfigError("tasks: none are named; write tasks: NAME: data: files: FILE for each.")
        plain = Config()
        for key, why in REFUSED.items():
            section, option = key.split(".")
            value = getattr(getattr(self.shared, section), option)
            if value != getattr(getattr(plain, section), option):
                raise ConfigError(f"{key} {value}: not in a joint training: {why}")
        for name in self.names:
            model = self.task(name).model
            if "auto" in (model.long_text, model.long_text_pair):
                raise ConfigError(
                    f"tasks.{name}: long_text auto: would try trainings of this task alone. Run bertune train with it, "
                    "then write what it chose."
                )

    def record(self) -> dict[str, Any]:
        """Everything that a result depends on, as the YAML file would hold it."""
        shared = {name: values for name, values in self.shared.record().items() if name in SHARED}
        options = {name: getattr(self.options, name) for name in ("sampling", "uncertainty", "then_alone")}
        if self.options.sampling == "temperature":
            options["temperature"] = self.options.temperature
        if self.options.alone_lr is not None:
            options["alone_lr"] = self.options.alone_lr
        tasks = {name: task.model_dump(mode="json") for name, task in self.options.tasks.items()}
        return {**shared, **options, "tasks": tasks}

    def changes(self, other: MultiConfig) -> list[str]:
        """What a result of `other` would be made with differently: `train.lr (was 0.1, now 0.2)`."""
        before, now = (_flat(config.record()) for config in (self, other))
        return [
            f"{name} (was {before.get(name)!r}, now {now.get(name)!r})"
            for name in dict.fromkeys((*before, *now)) if before.get(name) != now.get(name)
        ]  # fmt: skip

    def to_yaml(self) -> str:
        import yaml

        return yaml.safe_dump(self.record(), sort_keys=False, allow_unicode=True)


def _flat(values: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Nested mappings as one, by dotted names."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= _flat(value, f"{path}{name}.") if isinstance(value, Mapping) and value else {f"{path}{name}": value}
    return found
