"""The command line's first lines: python -m bertune, and the `bertune` command."""

import sys


def main() -> None:
    """Run the command line; Ctrl-C while it is still being loaded ends like any other."""
    try:
        from bertune.cli import main as run
    except KeyboardInterrupt:
        print("Error: interrupted.", file=sys.stderr)
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()
