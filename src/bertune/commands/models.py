"""bertune models, convert and cache: what lies where on this machine."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from bertune.commands.options import Command, switch, with_flags
from bertune.commands.output import print_json
from bertune.errors import ConfigError
from bertune.progress import start_display


@with_flags()
class Models(Command):
    details = "Any other model folder, archive or hub name can be given to --model as well."
    examples = ("bertune models", "bertune models --json")

    def run(self) -> None:
        from bertune.hub import list_presets

        start_display(quiet=self.quiet)
        presets = list_presets()
        if self.as_json:
            print_json({"models": [asdict(preset) for preset in presets]})
            return
        table = [["name", "model", "size", "licence", "languages", "on this machine"]]
        for preset in presets:
            where = preset.where or "no"
            table.append([preset.name, preset.title, size(preset.size), preset.licence, preset.languages, where])
        print_columns(table)
        print()
        for preset in presets:
            if preset.note:
                print(f"{preset.name}: {preset.note}.".replace("..", "."))


@with_flags()
class Convert(Command):
    details = "The folder holds config.json, model.safetensors and the tokenizer's files. No code from a pickle is run."
    examples = (
        "bertune convert bert.small.torch.zip models/bert-small",
        "bertune convert google-bert/bert-base-chinese models/chinese",
    )

    source: Annotated[
        str, typer.Argument(metavar="SRC", help="Folder, archive, preset or hub name.", show_default=False)
    ]
    out: Annotated[str, typer.Argument(metavar="OUT", help="Folder to write.", show_default=False)]
    revision: Annotated[str | None, typer.Option(metavar="TEXT", help="Hub revision.")] = None
    heads: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Attention heads of an archive of the book, where not the usual."),
    ] = None
    overwrite: Annotated[bool, switch("--overwrite", "Replace the model folder OUT.")] = False

    def run(self) -> None:
        start_display(quiet=self.quiet)

        from bertune.model.source import convert

        done = convert(self.source, Path(self.out), heads=self.heads, overwrite=self.overwrite, revision=self.revision)
        if self.as_json:
            print_json({"source": self.source, "out": self.out})
        elif not self.quiet:
            print(done)


@with_flags()
class Cache(Command):
    details = (
        "It lies where BERTUNE_CACHE says, and takes at most BERTUNE_CACHE_LIMIT (such as 20GB). All of it can be made "
        "again: encoded texts, downloads and converted models."
    )
    examples = ("bertune cache", "bertune cache clear")

    action: Annotated[
        str, typer.Argument(metavar="list|clear", help="clear removes every entry.", show_default=False)
    ] = "list"

    def run(self) -> None:
        if self.action not in ("list", "clear"):
            raise ConfigError(f"bertune cache {self.action}: expected list or clear.")

        from bertune.data.cache import cache_entries, cache_limit, clear_cache
        from bertune.paths import cache_root

        start_display(quiet=self.quiet)
        if self.action == "clear":
            freed = clear_cache()
            if self.as_json:
                print_json({"place": str(cache_root()), "freed": freed})
            elif not self.quiet:
                print(f"Removed {size(freed)} from {cache_root()}.")
            return
        entries = cache_entries()
        taken, limit = sum(entry.bytes for entry in entries), cache_limit()
        if self.as_json:
            listed = [{**asdict(entry), "path": str(entry.path)} for entry in entries]
            print_json({"place": str(cache_root()), "bytes": taken, "limit": limit, "entries": listed})
            return
        print(f"{cache_root()}: {size(taken)} of at most {size(limit)}, {len(entries)} entries")
        if entries:
            table = [["kind", "size", "last used", "entry"]]
            for entry in reversed(entries):
                when = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.used))
                table.append([entry.kind, size(entry.bytes), when, entry.path.name[:12]])
            print_columns(table)


def size(count: int) -> str:
    """Bytes in units that are easy to read: `91 MB`."""
    value = float(count)
    for unit in ("bytes", "KB", "MB", "GB"):
        if value < 1000 or unit == "GB":
            break
        value /= 1000
    return f"{value:.0f} {unit}" if value >= 10 or unit == "bytes" else f"{value:.1f} {unit}"


def print_columns(table: Sequence[Sequence[str]]) -> None:
    """Rows whose columns are aligned left."""
    widths = [max(len(row[index]) for row in table) for index in range(len(table[0]))]
    for row in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
