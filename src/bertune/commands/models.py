"""bertune models, convert and cache: what lies where on this machine.

Nothing here is drawn by chance. `--seed` is taken, as everywhere, so that a script can pass it to every command.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from bertune.commands.options import Configured, configured, flags_of, switch, with_flags
from bertune.commands.output import print_json
from bertune.config import Config
from bertune.errors import ConfigError
from bertune.paths import cache_settings
from bertune.progress import Display, start_display

PLACES = ("cache.folder", "cache.limit")
SEED = flags_of(("train.seed",), {"train.seed": "Taken by every command; changes nothing here."})
SAME = "--seed changes nothing here: nothing is drawn by chance."


def begin(command: Configured, keys: tuple[str, ...], base: Config | None = None) -> tuple[Config, Display]:
    """What the options say, of which `keys` matter, and the display."""
    display = start_display(quiet=command.quiet)
    config = configured(command, base or Config(), keys=(*keys, "train.seed"), say=display.say)
    if getattr(command, SEED[0].attribute):
        display.say(SAME)
    return config, display


@with_flags(*SEED)
class Models(Configured):
    details = (
        "Any other model folder, archive or hub name can be given to --model as well. Of --config and --set the "
        f"place of the cache matters, where downloads lie: cache.folder. {SAME}"
    )
    examples = ("bertune models", "bertune models --json", "bertune models --set cache.folder=/data/cache")

    def run(self) -> None:
        config, _ = begin(self, ("cache.folder",))

        from bertune.hub import list_presets

        with cache_settings(config.cache.folder, None):
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


@with_flags(*flags_of(("model.revision",)), *SEED)
class Convert(Configured):
    details = (
        "The folder holds config.json, model.safetensors and the tokenizer's files. No code from a pickle is run. Of "
        "--config and --set the model matters (model.name, in place of SRC, and model.revision), and the cache, where "
        f"downloads lie (cache.folder, cache.limit). {SAME}"
    )
    examples = (
        "bertune convert bert.small.torch.zip models/bert-small",
        "bertune convert google-bert/bert-base-chinese models/chinese",
        "bertune convert --config recipes/papers-bert.yaml models/bert",
    )

    source: Annotated[
        str,
        typer.Argument(
            metavar="SRC", show_default=False,
            help="Folder, archive, preset or hub name. OUT stands alone where --config or --set names the model.",
        ),
    ]  # fmt: skip
    out: Annotated[str | None, typer.Argument(metavar="OUT", help="Folder to write.", show_default=False)] = None
    heads: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Attention heads of an archive of the book, where not the usual."),
    ] = None
    overwrite: Annotated[bool, switch("--overwrite", "Replace the model folder OUT.")] = False

    def run(self) -> None:
        unnamed = Config().updated({"model": {"name": ""}})  # the default model is for training
        config, display = begin(self, ("model.name", "model.revision", *PLACES), unnamed)
        source, out = self.between(config.model.name)

        from bertune.model.source import convert

        with cache_settings(config.cache.folder, config.cache.limit):
            done = convert(
                source, Path(out), heads=self.heads, overwrite=self.overwrite, revision=config.model.revision
            )
        if self.as_json:
            print_json({"source": source, "out": out})
            display.say(done)
        elif not self.quiet:
            print(done)

    def between(self, named: str) -> tuple[str, str]:
        """SRC and OUT; where one stands alone it is OUT, and the model is the one that the configuration names."""
        if self.out is not None:
            return self.source, self.out
        if not named:
            raise ConfigError(
                f"bertune convert {self.source}: name the model and the folder to write, for example "
                "bertune convert bert.small.torch.zip models/bert-small."
            )
        return named, self.source


@with_flags(*SEED)
class Cache(Configured):
    details = (
        "It lies where cache.folder of --config or --set says, else BERTUNE_CACHE, and takes at most cache.limit, else "
        "BERTUNE_CACHE_LIMIT (such as 20GB). All of it can be made again: encoded texts, downloads and converted "
        f"models. {SAME}"
    )
    examples = ("bertune cache", "bertune cache clear", "bertune cache --set cache.folder=/data/cache")

    action: Annotated[
        str, typer.Argument(metavar="list|clear", help="clear removes every entry.", show_default=False)
    ] = "list"

    def run(self) -> None:
        if self.action not in ("list", "clear"):
            raise ConfigError(f"bertune cache {self.action}: expected list or clear.")
        config, _ = begin(self, PLACES)
        with cache_settings(config.cache.folder, config.cache.limit):
            self.act()

    def act(self) -> None:
        from bertune.data.cache import cache_entries, cache_limit, clear_cache
        from bertune.paths import cache_root

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
