"""Usage in one line: argparse's own names forty options, and an error stands below all of them."""

import argparse


def shorten_usage(parser: argparse.ArgumentParser) -> None:
    """Let every command show as usage what it must be given, and `[options]`."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                shorten_usage(below)
            return
    places = [str(action.metavar) for action in parser._actions if not action.option_strings]
    needed = [
        _word(action) for action in parser._actions if action.option_strings and action.required
    ]
    for group in parser._mutually_exclusive_groups:
        if group.required:
            needed.append("(" + " | ".join(map(_word, group._group_actions)) + ")")
    parser.usage = " ".join(["%(prog)s", *places, *needed, "[options]"])


def _word(action: argparse.Action) -> str:
    return f"{action.option_strings[-1]} {action.metavar}"
