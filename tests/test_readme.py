"""What the READMEs and the other pages show: commands that parse, equal code in both languages, links to real files."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer

from bertune.cli import build
from bertune.commands.options import Command

ROOT = Path(__file__).resolve().parents[1]
READMES = ("README.md", "README.zh-CN.md")
PAGES = (*READMES, "CHANGELOG.md", "CONTRIBUTING.md", *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")))


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def code_blocks(page: str) -> list[str]:
    """Indented and fenced blocks, in order, without comments."""
    found = re.findall(r"^```\w*\n(.*?)^```$|((?:^    \S[^\n]*\n)+)", read(page), re.MULTILINE | re.DOTALL)
    blocks = [fenced or indented for fenced, indented in found]
    return [re.sub(r"[ \t]*#.*", "", block).strip() for block in blocks]


def commands(page: str) -> list[list[str]]:
    """What stands after `bertune` in each command of the code blocks."""
    found = []
    for block in code_blocks(page):
        for line in block.replace("\\\n", " ").splitlines():
            if re.search(r"(^|\| )bertune ", line):
                words = shlex.split(line)
                found.append(words[words.index("bertune") + 1 :])
    return found


def links(page: str) -> list[str]:
    """Links to files of the project."""
    return [link for link in re.findall(r"\]\(([^)#\s]+)", read(page)) if "://" not in link]


def test_the_readme_shows_commands_of_every_step() -> None:
    shown = {words[0] for words in commands("README.md")}
    assert shown == {
        "check", "train", "evaluate", "predict", "explain", "compare", "curve", "pretrain", "multitask", "lr",
        "reproduce",
    }  # fmt: skip


@pytest.mark.parametrize("words", [words for page in PAGES for words in commands(page)], ids=" ".join)
def test_every_command_shown_parses(words: list[str]) -> None:
    parser = typer.main.get_command(build(words[0]))
    parsed = parser.main(words, prog_name="bertune", standalone_mode=False)
    assert isinstance(parsed, Command)


def test_both_languages_show_the_same_code() -> None:
    english, chinese = map(code_blocks, READMES)
    assert len(english) > 5
    assert english == chinese


def test_both_languages_link_to_the_same_files() -> None:
    english, chinese = map(links, READMES)
    assert english == chinese


@pytest.mark.parametrize("page", PAGES)
def test_every_relative_link_leads_to_a_file(page: str) -> None:
    assert [link for link in links(page) if not (ROOT / page).parent.joinpath(link).exists()] == []


def test_the_first_two_commands_are_those_to_begin_with() -> None:
    first = [line.strip() for line in code_blocks("README.md")[0].splitlines()]
    assert first == ["make demo", "make test"]
