"""The `sidewinder` command, also as `python -m sidewinder`."""

import os
import signal
import sys

BAD_USAGE, INTERRUPTED = 2, 130
"""As of `sidewinder.cli.main`, which may be what cannot be imported."""


def main() -> int:
    """Run the process's command line and return its exit status."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)
    try:
        from sidewinder.cli import main as run
    except ValueError as error:
        # Operators and kernels read SIDEWINDER_OPS and SIDEWINDER_ISA when they are imported.
        print(f"sidewinder: error: {error}", file=sys.stderr)
        return BAD_USAGE
    finally:
        signal.signal(signal.SIGINT, before)
    return run()


def _leave(*_: object) -> None:
    """End at once. Imports take seconds, in which libraries swallow a KeyboardInterrupt."""
    os.write(2, b"sidewinder: interrupted\n")
    os._exit(INTERRUPTED)


if __name__ == "__main__":
    sys.exit(main())
