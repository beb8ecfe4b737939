"""Folders that look like models, and what finding a model that is not there says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bertune.errors import ModelError
from bertune.hub import resolve


def make_folder(path: Path, *names: str) -> Path:
    """A new folder with files of these names."""
    path.mkdir(parents=True)
    for name in names:
        (path / name).write_text("{}", encoding="utf-8")
    return path


def failure(name: str | Path, **options: Any) -> str:
    """The error text of looking for model `name`."""
    with pytest.raises(ModelError) as caught:
        resolve(name, **options)
    assert caught.value.exit_code == 2
    return str(caught.value)
