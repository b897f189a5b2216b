"""The `sidewinder` command. One file per subcommand; each has `add_parser` and `run`."""

from sidewinder.cli.main import main

__all__ = ["main"]
