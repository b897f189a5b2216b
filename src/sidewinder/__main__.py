"""The `sidewinder` command, also as `python -m sidewinder`."""

import sys

BAD_USAGE, INTERRUPTED = 2, 130
"""As of `sidewinder.cli.main`, which may be what cannot be imported."""


def main() -> int:
    """Run the process's command line and return its exit status."""
    try:
        from sidewinder.cli import main as run
    except ValueError as error:
        # Operators and kernels read SIDEWINDER_OPS and SIDEWINDER_ISA when they are imported.
        print(f"sidewinder: error: {error}", file=sys.stderr)
        return BAD_USAGE
    except KeyboardInterrupt:  # importing torch takes seconds
        print("sidewinder: interrupted", file=sys.stderr)
        return INTERRUPTED
    return run()


if __name__ == "__main__":
    sys.exit(main())
