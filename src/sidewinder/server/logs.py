"""Log lines of the server: text for people, or one JSON object per line."""

import json
import logging
import sys
import time
from typing import TextIO

logger = logging.getLogger("sidewinder.server")

FIELDS = ("request_id", "method", "path", "status", "duration_s")
"""What a line about a request carries besides its message (`extra=`)."""


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
    """Send the server's lines, uvicorn's warnings included, to `stream` (standard error)."""
    handler = logging.StreamHandler(stream or sys.stderr)
    text = logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S")
    handler.setFormatter(JsonFormatter() if log_format == "json" else text)
    for name, level in (("sidewinder", logging.INFO), ("uvicorn", logging.WARNING)):
        target = logging.getLogger(name)
        target.handlers = [handler]
        target.setLevel(level)
        target.propagate = False
