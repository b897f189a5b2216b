"""Server-sent events, and the JSON in them."""

import json
from typing import Any

DONE = b"data: [DONE]\n\n"
"""The last event of a completion's or a chat's stream that ended well."""

COMMENT = b": waiting\n\n"
"""Clients of server-sent events skip lines that begin with a colon."""

_ENCODE = json.JSONEncoder(separators=(",", ":")).encode


def to_json(value: Any) -> bytes:
    """JSON in ASCII: also texts of strangers that are no valid Unicode stay valid JSON."""
    return _ENCODE(value).encode("ascii")


def event(value: Any) -> bytes:
    """One event without a name."""
    return b"data: " + to_json(value) + b"\n\n"


def named_event(name: str, value: Any) -> bytes:
    """One event with a name."""
    return b"event: " + name.encode("ascii") + b"\n" + event(value)
