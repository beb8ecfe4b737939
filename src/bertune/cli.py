"""The command line: commands by name, and how an error ends a program.

Exit codes: 0 done; 1 the work failed; 2 input or usage; 130 interrupted. Typer only parses: what it returns is one of
the dataclasses of `commands`, and that is run here. Nothing heavy is imported before a command runs.
"""

from __future__ import annotations

import importlib
import io
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated

import typer

from bertune import __version__
from bertune.errors import BertuneError, nearest, printable
from bertune.files import is_disk_full

if TYPE_CHECKING:
    from bertune.commands.options import Command

HELP = """Fine-tune BERT-family encoders to classify text: from a table of texts to a tested classifier.

Every command tells more with --help, for example bertune train --help."""
EXAMPLES = (
    "bertune train papers.csv --text TITLE --text ABSTRACT --out runs/papers",
    "bertune evaluate runs/papers more.csv",
    "bertune predict runs/papers new.csv --out scored.csv",
    "echo 'some text' | bertune predict runs/papers -",
    "bertune explain runs/papers 'some text'",
)
# name -> module and class in `commands`, and what it does in a sentence
COMMANDS = {
    "train": ("train", "Train", "Train a classifier on DATA and leave it, tested, in a folder."),
    "multitask": ("multitask", "Multitask", "Train one encoder on several tasks at once, each with a head of its own."),
    "pretrain": ("pretrain", "Pretrain", "Pre-train an encoder further on TEXT without labels, or from scratch."),
    "check": ("check", "Check", "Say what is wrong with DATA before training on it."),
    "evaluate": ("evaluate", "Evaluate", "Measure a trained model on labelled rows."),
    "predict": ("predict", "Predict", "Predict labels for new rows, in their order; no row is left out."),
    "explain": ("explain", "Explain", "Say which words made a label, and which training rows are most alike."),
    "compare": ("compare", "Compare", "Say whether a trained model is better than another, or it is noise."),
    "curve": ("curve", "Curve", "Say what fewer training rows reach, and what twice as many would bring."),
    "reproduce": ("reproduce", "Reproduce", "Make published tables again, and say which of their findings hold here."),
    "lr": ("lr", "Lr", "Say which learning rates a training can take: a short one at rising rates, as a picture."),
    "report": ("report", "Report", "Make the page of a trained model: results, figures, errors, how to run it again."),
    "models": ("models", "Models", "List the models that have a short name: size, licence, and where they are."),
    "convert": ("models", "Convert", "Write any model as a clean folder that can be trained."),
    "cache": ("models", "Cache", "Show the cache of what can be made again, or clear it."),
}


def build(chosen: str | None) -> typer.Typer:
    """The parser. Only the chosen command gets its options, which takes imports; the others are names to list."""
    app = typer.Typer(help=HELP, epilog=listing(EXAMPLES), add_completion=False, rich_markup_mode="rich")
    app.callback()(_common)
    for name, (module, kind, summary) in COMMANDS.items():
        if name == chosen:
            command: type[Command] = getattr(importlib.import_module(f"bertune.commands.{module}"), kind)
            app.command(name, help=f"{summary}\n\n{command.details}", epilog=listing(command.examples))(command)
        else:
            app.command(name, help=summary)(_common)
    return app


def listing(examples: Sequence[str]) -> str:
    return "\n".join(["Examples:", "", *examples])


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"bertune {__version__}")
        raise typer.Exit


def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """What stands before a command."""


def main() -> None:
    """Run the command that sys.argv asks for, and exit."""
    sys.excepthook = report_bug
    prepare_output()
    try:
        code = run(sys.argv[1:] or ["--help"])
        sys.stdout.flush()
    except BertuneError as error:
        code = fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        code = fail("interrupted.", 130)
    except BrokenPipeError:  # the reader of our output went away, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that the flush at exit is silent, too
        code = 1
    except OSError as error:
        code = fail("the disk is full." if is_disk_full(error) else str(error), 1)
    sys.exit(code)


def run(arguments: list[str]) -> int:
    """Parse and run a command line; the exit code. Errors are those of errors.py, or the system's."""
    chosen = next((argument for argument in arguments if not argument.startswith("-")), None)
    parser = typer.main.get_command(build(chosen))
    try:
        parsed = parser.main(arguments, prog_name="bertune", standalone_mode=False, windows_expand_args=False)
    except typer.TyperException as error:
        return fail(usage_sentence(error, f"bertune {chosen}" if chosen in COMMANDS else "bertune"), 2)
    if parsed is None or isinstance(parsed, int):  # the exit code after --help and --version
        return parsed or 0
    parsed.run()
    return 0


def usage_sentence(error: typer.TyperException, path: str) -> str:
    """What is wrong with a command line of `path`; for an unknown option the nearest one."""
    context = getattr(error, "ctx", None)
    option = getattr(error, "option_name", None)
    text = " ".join(error.format_message().split())
    if option is not None and text.startswith("No such option"):
        known = [name for parameter in context.command.params for name in parameter.opts] if context else []
        near = _only_set(option, path) or nearest(option, known)
        text = f"{path}: no option {option}{near or '.'}"
    return f"{text.rstrip('.') + '.' if not text.endswith('?') else text} See {path} --help."


def _only_set(option: str, path: str) -> str:
    """How to pass what is an option of the configuration, but has no flag; an empty string where it is none."""
    sections = {"bertune train": ("train", "model", "data", "decide", "report"), "bertune pretrain": ("pretrain",)}
    if path not in sections:
        return ""
    from bertune.config import Config

    plain, name = Config(), option.lstrip("-").replace("-", "_")
    section = next((section for section in sections[path] if name in type(getattr(plain, section)).model_fields), None)
    return f"; pass --set {section}.{name}=VALUE" if section else ""


def fail(text: str, code: int) -> int:
    """Say what went wrong in a line on stderr; the exit code."""
    print(f"Error: {printable(text)}", file=sys.stderr, flush=True)
    return code


def report_bug(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """The hook for errors that nobody foresaw; Python ends with 1 after it."""
    if os.environ.get("BERTUNE_DEBUG"):
        traceback.print_exception(kind, error, trace)
    last = printable("".join(traceback.format_exception_only(kind, error)).strip())
    print(f"Error: this is a bug in bertune {__version__}; please report it. {last}", file=sys.stderr)
    if not os.environ.get("BERTUNE_DEBUG"):
        print("BERTUNE_DEBUG=1 shows where it happened.", file=sys.stderr)


def prepare_output() -> None:
    """Results are UTF-8 in pipes and files; a console that lacks a character shows another in its place. A stream that
    is closed, as under some service managers, takes what is written and keeps nothing."""
    if sys.stdout is None:
        sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        if sys.stdout.isatty():
            sys.stdout.reconfigure(errors="replace")
        else:
            sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")
    if isinstance(sys.stderr, io.TextIOWrapper):
        sys.stderr.reconfigure(errors="backslashreplace")
