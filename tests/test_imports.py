"""Imports point downwards, and what need not be heavy is light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "src" / "bertune"
# Highest first; a module imports from its own row or from rows below it.
LAYERS = (
    ("__init__", "__main__"),
    ("cli", "commands", "progress"),
    ("estimator",),
    ("api",),
    ("report", "reproduce"),
    ("training",),
    ("ship", "explain"),
    ("model",),
    ("bundle",),
    ("folder",),
    ("doctor",),
    ("evaluate",),
    ("data",),
    ("hub",),
    ("multitaskconfig",),
    ("config",),
    ("dataconfig", "modelconfig", "pretrainconfig", "trainconfig"),
    ("files", "paths", "longtext", "presets", "sections", "settings"),
    ("errors",),
)
RANK = {part: rank for rank, parts in enumerate(LAYERS) for part in parts}
MODULES = sorted(PACKAGE.rglob("*.py"))
HEAVY = {"torch", "polars", "sklearn", "scipy", "pandas", "pyarrow", "matplotlib", "transformers", "captum", "jinja2"}
SERVING = ("bertune.bundle", "bertune.data.tokens", "bertune.data.batch", "bertune.data.tasks", "bertune.ship.predict")


def _name(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def _part(path: Path) -> str:
    """`data` for data/read.py, `config` for config.py."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def _imports(path: Path) -> list[tuple[int, str]]:
    """(line, dotted module) of every import in the file, inside functions too."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{_name(path)} line {node.lineno}: imports in this project are absolute"
            module = node.module or ""
            # `from bertune import hub` names the part as the thing imported.
            found += [(node.lineno, f"{module}.{alias.name}") for alias in node.names]
    return found


def _modules_after(code: str, *arguments: str) -> set[str]:
    """Top-level modules that a fresh interpreter has loaded after `code`."""
    report = "import sys; print('\\n', *sorted({name.partition('.')[0] for name in sys.modules}))"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{report}", *arguments],
        capture_output=True, text=True, encoding="utf-8", timeout=120, check=False,
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split())


def test_the_package_is_there() -> None:
    """So that the tests below cannot pass by looking at nothing."""
    there = {_part(path) for path in MODULES}
    assert set(RANK) - there <= {"__main__"}


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_every_module_has_a_layer(path: Path) -> None:
    assert _part(path) in RANK, f"{_name(path)} belongs to no layer: give it a row in LAYERS"


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_imports_point_downwards(path: Path) -> None:
    own = RANK[_part(path)]
    for line, name in _imports(path):
        root, _, rest = name.partition(".")
        if root != "bertune":
            continue
        part = rest.partition(".")[0]
        if part.startswith("__") and part.endswith("__"):  # `from bertune import __version__`: a word, not a layer
            continue
        other = RANK.get(part, RANK["__init__"])
        assert other >= own, f"{_name(path)} line {line} imports {name}, which lies above it"


@pytest.mark.parametrize("path", sorted((PACKAGE / "data").rglob("*.py")), ids=_name)
def test_data_never_imports_torch(path: Path) -> None:
    assert not [name for _, name in _imports(path) if name.split(".")[0] in {"torch", "transformers", "safetensors"}]


def test_importing_bertune_is_light() -> None:
    assert not _modules_after("import bertune") & (HEAVY | {"numpy", "tokenizers"})


def test_help_is_light() -> None:
    code = "from bertune.cli import main\ntry:\n    main()\nexcept SystemExit as end:\n    assert not end.code"
    assert not _modules_after(code, "--help") & (HEAVY | {"numpy", "tokenizers"})


@pytest.mark.parametrize("module", SERVING)
def test_serving_is_light(module: str) -> None:
    assert not _modules_after(f"import {module}") & HEAVY


def test_serving_needs_no_heavy_package_to_be_installed() -> None:
    """Every module that serves, where importing a heavy package fails as if it were absent."""
    absent = f"import sys\nfor name in {sorted(HEAVY)!r}:\n    sys.modules[name] = None\n"
    # A None in sys.modules makes the import fail and is itself listed, so the exit status alone is the proof.
    assert "bertune" in _modules_after(absent + "\n".join(f"import {module}" for module in SERVING))
