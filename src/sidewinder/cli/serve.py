"""`sidewinder serve`: an HTTP server for clients of OpenAI's and Anthropic's."""

import argparse
import os
from dataclasses import fields
from typing import Any

from sidewinder.cli.options import add_engine_options, engine_options, model_of
from sidewinder.server.config import ServerConfig

DESCRIPTION = """\
Serve MODEL over HTTP with OpenAI's endpoints and Anthropic's Messages; requests of all clients
share its steps."""

EXAMPLES = """\
examples:
  sidewinder serve models/mamba --tp 2 --port 8000
  curl http://127.0.0.1:8000/v1/completions -H 'Content-Type: application/json' \\
    -d '{"prompt": "def main(", "max_tokens": 32, "stream": true}'
  python -c 'from openai import OpenAI; client = OpenAI(base_url="http://127.0.0.1:8000/v1",
    api_key="none"); print(client.completions.create(model="models/mamba", prompt="def "))'

endpoints: /v1/models /v1/completions /v1/chat/completions /v1/responses /v1/messages
           /v1/messages/count_tokens /tokenize /detokenize
           /health /ready /metrics /status /version /openapi.json
SIGTERM or Ctrl-C: /ready turns false, open requests finish, then the process ends; a second signal
ends it at once. The API key is also read from SIDEWINDER_API_KEY, where `ps` does not show it.
Exit status: 0 after SIGTERM, 1 when a rank failed, 2 bad usage or input, 130 after Ctrl-C."""

_OPTIONS: list[tuple[str, type, str]] = [
    ("host", str, "address to listen on; 0.0.0.0 is open to the network"),
    ("port", int, "0 takes a free one and logs it"),
    ("served_model_name", str, "what clients call the model (default: MODEL)"),
    ("api_key", str, "what clients must send as bearer token, or as x-api-key"),
    ("max_queue", int, "requests that may wait for a slot; more are answered 429"),
    ("max_request_bytes", int, "largest body of a request"),
    ("max_choices", int, "most texts one request may ask for: prompts times n"),
    ("default_max_tokens", int, "of chats, where neither they nor --max-model-len set a limit"),
    ("drain_s", float, "seconds that open requests get to finish after SIGTERM"),
    ("log_interval_s", float, "seconds between lines about throughput; 0: none"),
    ("log_format", str, "text, or json: one object per line"),
    (
        "tool_call_parser",
        str,
        "how the model writes calls: hermes, qwen3_coder, falcon, jamba, "
        "nemotron, none, or as its chat template says",
    ),
    ("reasoning_parser", str, "think: between <think> and </think>; none; or as the template says"),
]


def add_parser(subparsers: Any) -> None:
    """Register the subcommand."""
    parser = subparsers.add_parser(
        "serve",
        help="serve a model over HTTP, with OpenAI's and Anthropic's endpoints",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_engine_options(parser)
    defaults = {field.name: field.default for field in fields(ServerConfig)}
    group = parser.add_argument_group("server")
    for name, kind, text in _OPTIONS:
        default = defaults[name]
        shown = text if default is None else f"{text} (default: {default})"
        flag = "--" + name.replace("_", "-")
        group.add_argument(flag, type=kind, default=argparse.SUPPRESS, metavar="X", help=shown)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Serve until a signal comes or a rank fails; returns the exit status."""
    given = {name: getattr(args, name) for name, _, _ in _OPTIONS if hasattr(args, name)}
    given.setdefault("api_key", os.environ.get("SIDEWINDER_API_KEY") or None)
    given.setdefault("served_model_name", args.model)
    config = ServerConfig(**given)
    # Imported here: the other commands need no web framework.
    from sidewinder.server.run import serve

    with model_of(args) as model:
        shows_bars = config.log_format == "text"
        return serve(model, config, progress=shows_bars, **engine_options(args))
