"""Every option of the server, validated in one place."""

import math
from dataclasses import dataclass

from sidewinder.chat.formats import REASONING_PARSERS, TOOL_PARSERS

LOG_FORMATS = ("text", "json")


@dataclass(frozen=True)
class ServerConfig:
    """Options of `sidewinder serve` beyond the engine's.

    Attributes:
        host, port: where to listen; port 0 takes a free one.
        served_model_name: what clients call the model; None: MODEL as it was given.
        api_key: what clients must send as bearer token; None lets everyone in.
        max_queue: requests that may wait for a slot; more are answered 429.
        max_request_bytes: largest body of a request.
        max_choices: most texts that one request may ask for (prompts times n).
        default_max_tokens: length of a chat answer where neither the request nor `max_model_len`
            limits it.
        drain_s: seconds that open requests get to finish after SIGTERM.
        log_interval_s: seconds between lines about throughput; 0 writes none.
        log_format: "text" or "json", one object per line.
        tool_call_parser: how the model writes calls of functions: a name of
            `sidewinder.chat.FORMATS`; "auto": as its chat template says; "none": not at all.
        reasoning_parser: "think": answers may reason between think tags; "auto": where the chat
            template speaks of them; "none": think tags are text.

    Raises:
        ValueError: if an option has a value that it cannot have.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    served_model_name: str | None = None
    api_key: str | None = None
    max_queue: int = 1024
    max_request_bytes: int = 16 * 2**20
    max_choices: int = 256
    default_max_tokens: int = 1024
    drain_s: float = 30.0
    log_interval_s: float = 10.0
    log_format: str = "text"
    tool_call_parser: str = "auto"
    reasoning_parser: str = "auto"

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ValueError(f"port={self.port} is out of range; use 0 (any free port) to 65535")
        for name in ("max_request_bytes", "max_choices", "default_max_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.max_queue < 0:
            raise ValueError(f"max_queue={self.max_queue} must be 0 or more")
        for name in ("drain_s", "log_interval_s"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise ValueError(f"{name}={value} must be a number of seconds, 0 or more")
        for name in ("api_key", "served_model_name", "host"):
            if getattr(self, name) == "":
                raise ValueError(f"{name} is empty; leave it out or give one")
        choices = {
            "log_format": LOG_FORMATS,
            "tool_call_parser": TOOL_PARSERS,
            "reasoning_parser": REASONING_PARSERS,
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name}={getattr(self, name)!r} is not supported; use {', '.join(allowed)}"
                )
