"""Log lines of a server and its ranks: text for people, or one JSON object per line."""

import json
import logging
import sys
import threading
import time
import warnings
from types import TracebackType
from typing import TextIO

logger = logging.getLogger("sidewinder.server")

FIELDS = ("request_id", "method", "path", "status", "duration_s")
"""What a line about a request carries besides its message (`extra=`)."""

OURS = {"sidewinder": logging.INFO, "uvicorn": logging.WARNING}
"""Loggers whose lines are a server's own, and from which level on."""


class JsonFormatter(logging.Formatter):
    """One JSON object per record."""

    def format(self, record: logging.LogRecord) -> str:
        """The record's time, level, message and fields."""
        when = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        values: dict[str, object] = {
            "time": f"{when}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "message": record.getMessage(),
        }
        values |= {name: getattr(record, name) for name in FIELDS if hasattr(record, name)}
        if record.exc_info:
            values["exception"] = self.formatException(record.exc_info)
        return json.dumps(values)


def start_logging(log_format: str, stream: TextIO | None = None) -> None:
    """Send our lines, uvicorn's and Python's warnings to `stream` (standard error).

    With "json", whatever else Python code writes there comes the same way: other libraries'
    loggers, and exceptions that nobody catches. Left are lines of native code that aborts.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    text = logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S")
    handler.setFormatter(JsonFormatter() if log_format == "json" else text)
    for name, level in OURS.items():
        target = logging.getLogger(name)
        target.handlers = [handler]
        target.setLevel(level)
        target.propagate = False
    warnings.showwarning = _show_warning
    if log_format == "json":
        _take_over(handler)


def writes_json() -> bool:
    """Whether `start_logging("json")` holds in this process."""
    handlers = logging.getLogger("sidewinder").handlers
    return any(isinstance(handler.formatter, JsonFormatter) for handler in handlers)


def _take_over(handler: logging.Handler) -> None:
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.WARNING)
    for name in list(root.manager.loggerDict):
        if name.partition(".")[0] not in OURS:
            # transformers and huggingface_hub bring handlers that write text.
            logging.getLogger(name).handlers = []
            logging.getLogger(name).propagate = True
    sys.excepthook = _log_exception
    threading.excepthook = _log_thread
    sys.unraisablehook = _log_unraisable


def _show_warning(message: Warning | str, *_where: object, **_line: object) -> None:
    logger.warning("%s", message)


def _log_exception(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    logger.critical("%s", error or kind.__name__, exc_info=(kind, error, trace))


def _log_thread(args: threading.ExceptHookArgs) -> None:
    name = args.thread.name if args.thread else "?"
    logger.critical("thread %s ended", name, exc_info=args.exc_value)


def _log_unraisable(args: "sys.UnraisableHookArgs") -> None:
    what = args.err_msg or "exception ignored in"
    logger.error("%s %r", what, args.object, exc_info=args.exc_value)
