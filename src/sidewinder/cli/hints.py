"""What the command says of options that it does not know."""

import argparse
from collections.abc import Sequence

from sidewinder.elsewhere import meant


def unknown(
    parser: argparse.ArgumentParser, args: argparse.Namespace, arguments: Sequence[str]
) -> str:
    """The error for `arguments` that the command in `args` does not know, with what was meant."""
    chosen = _chosen(parser, args)
    known = [name for action in chosen._actions for name in action.option_strings]
    names = [given.partition("=")[0] for given in arguments]
    hints = [f"{name}: {hint}" for name in names if (hint := meant(name, known))]
    listed = f"{chosen.prog} --help lists the options"
    return "; ".join([f"unrecognized arguments: {' '.join(arguments)}", *hints, listed])


def _chosen(parser: argparse.ArgumentParser, args: argparse.Namespace) -> argparse.ArgumentParser:
    """The parser of the command that `args` are of."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            below: argparse.ArgumentParser = action.choices[getattr(args, action.dest)]
            return _chosen(below, args)
    return parser
