"""How a contestant is talked to: it says that it is ready, then answers one request per line.

Requests and answers are JSON objects; answers start with a mark, because libraries print too.
"""

import json
import sys
from collections.abc import Callable
from typing import Any

MARK = "ANSWER "


def serve(answer: Callable[[dict[str, Any]], dict[str, Any]], about: dict[str, Any]) -> None:
    """Announce `about`, then answer requests until standard input ends."""
    print(MARK + json.dumps(about), flush=True)
    for line in sys.stdin:
        print(MARK + json.dumps(answer(json.loads(line))), flush=True)
