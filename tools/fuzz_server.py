"""Sends random and malformed requests to a running server, made from its own OpenAPI schema.

    python tools/fuzz_server.py http://127.0.0.1:8000 --requests 10000

Fails (exit status 1) if any answer is a 500, is in another shape than OpenAI's (for messages,
Anthropic's), or if afterwards the server is not ready and idle. The last line is one JSON object.
"""

import argparse
import json
import random
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx

PATIENCE_S = 5.0
"""After so long the client leaves: some requests are valid and long."""

TEXTS = ["", "a", "the def", "é☃", "\x00", "\ud800", "x" * 3000, "{", "(a", "-1", "nan", "null"]
NUMBERS = [0, 1, 2, -1, 7, 0.5, -0.5, 1e308, -1e308, 2**31, 2**63, 2**64, 10**30, 1e-320]
OTHERS: list[Any] = [None, True, False, [], {}, [[]], [None], {"a": {}}]
JUNK = [b"", b"{", b"[" * 5000, b"\xff\xfe", b"null", b'{"a": NaN}', b'{"prompt": "\\ud800"}']


class Maker:
    """Random values of JSON schemas, now and then of no schema at all.

    Args:
        schemas: `components.schemas` of the OpenAPI document.
        drawn: the randomness.
    """

    def __init__(self, schemas: dict[str, Any], drawn: random.Random) -> None:
        self._schemas = schemas
        self._drawn = drawn

    def anything(self) -> Any:
        """A value that has nothing to do with what is asked for."""
        return self._drawn.choice([*TEXTS, *NUMBERS, *OTHERS])

    def value(self, schema: dict[str, Any], depth: int = 0) -> Any:
        """A value of `schema`; one in 25 is another."""
        if self._drawn.random() < 0.04 or depth > 8:
            return self.anything()
        if "$ref" in schema:
            return self.value(self._schemas[schema["$ref"].rpartition("/")[2]], depth + 1)
        if "anyOf" in schema:
            return self.value(self._drawn.choice(schema["anyOf"]), depth + 1)
        if "enum" in schema or "const" in schema:
            return self._drawn.choice(schema.get("enum", [schema.get("const")]))
        return self._typed(schema, depth)

    def body(self, schema: dict[str, Any]) -> Any:
        """A request body: the required fields and a few others; short where it may be."""
        value = self.value(schema)
        if isinstance(value, dict) and self._drawn.random() < 0.9:
            value["model"] = None
            if "max_tokens" in self._resolved(schema).get("properties", {}):
                value["max_tokens"] = self._drawn.randrange(5)
        return value

    def _resolved(self, schema: dict[str, Any]) -> dict[str, Any]:
        name = schema.get("$ref", "").rpartition("/")[2]
        return self._schemas.get(name, schema)

    def _typed(self, schema: dict[str, Any], depth: int) -> Any:
        kind = schema.get("type")
        if kind == "object":
            return self._object(schema, depth)
        if kind == "array":
            most = 3 if depth else 20
            items = schema.get("items", {})
            return [self.value(items, depth + 1) for _ in range(self._drawn.randrange(most))]
        if kind == "string":
            return self._drawn.choice(TEXTS)
        if kind == "boolean":
            return self._drawn.random() < 0.5
        if kind == "integer":
            return self._drawn.choice([self._drawn.randrange(-2, 300), self._drawn.choice(NUMBERS)])
        if kind == "number":
            return self._drawn.choice([self._drawn.uniform(-2, 3), self._drawn.choice(NUMBERS)])
        return None if kind == "null" else self.anything()

    def _object(self, schema: dict[str, Any], depth: int) -> dict[str, Any]:
        properties, required = schema.get("properties", {}), schema.get("required", [])
        chance = 3 / max(3, len(properties))
        value = {
            name: self.value(own, depth + 1)
            for name, own in properties.items()
            if name in required or self._drawn.random() < chance
        }
        if not properties or self._drawn.random() < 0.03:
            value[self._drawn.choice(TEXTS)] = self.anything()
        return value


def make_request(document: dict[str, Any], drawn: random.Random) -> tuple[str, str, bytes]:
    """Method, path and body of a random request."""
    maker = Maker(document["components"]["schemas"], drawn)
    path, methods = drawn.choice(list(document["paths"].items()))
    method, operation = drawn.choice(list(methods.items()))
    path = path.replace("{name}", drawn.choice(["tiny", "x", "a%00b", "..%2f..", "%ff"]))
    if drawn.random() < 0.02:
        method = drawn.choice(["put", "delete", "patch", "options", "head"])
    if "requestBody" not in operation:
        return method, path, b""
    if drawn.random() < 0.05:
        return method, path, drawn.choice(JUNK)
    (content,) = operation["requestBody"]["content"].values()
    body = json.dumps(maker.body(content["schema"])).encode()
    if drawn.random() < 0.03:  # cut, or with a byte changed
        place = drawn.randrange(len(body) + 1)
        body = drawn.choice([body[:place], body[:place] + b"\x80" + body[place + 1 :]])
    return method, path, body


def problem(response: httpx.Response) -> str | None:
    """What is wrong with an answer, if anything is."""
    if response.status_code >= 500:
        return f"status {response.status_code}"
    if response.status_code >= 400 and response.request.method != "HEAD":
        is_message = response.request.url.path.startswith("/v1/messages")
        try:
            whole, error = response.json(), response.json()["error"]
        except (ValueError, KeyError, TypeError):
            return "an error in another shape"
        expected = {"message", "type"} if is_message else {"message", "type", "param", "code"}
        if set(error) != expected or whole.get("type") != ("error" if is_message else None):
            return "an error with other fields"
    return None


def fuzz(client: httpx.Client, n_requests: int, seed: int, threads: int = 4) -> dict[str, Any]:
    """Send `n_requests`; returns counts by status, and every problem with its request."""
    document = client.get("/openapi.json").json()
    found: list[dict[str, Any]] = []
    statuses: Counter[str] = Counter()

    def send(number: int) -> None:
        method, path, body = make_request(document, random.Random(seed * 1_000_003 + number))
        headers = {"Content-Type": "application/json"}
        try:
            response = client.request(
                method, path, content=body, headers=headers, timeout=PATIENCE_S
            )
        except httpx.TimeoutException:
            statuses["left"] += 1
            return
        statuses[str(response.status_code)] += 1
        if (wrong := problem(response)) is not None:
            text = body[:2000].decode(errors="replace")
            found.append({"wrong": wrong, "method": method, "path": path, "body": text})

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(send, range(n_requests)))
    return {"requests": n_requests, "seed": seed, "statuses": dict(statuses), "problems": found}


def gauges(client: httpx.Client, *names: str) -> dict[str, float]:
    """Values of metrics without labels."""
    lines = (line.split() for line in client.get("/metrics").text.splitlines())
    return {line[0]: float(line[1]) for line in lines if line and line[0] in names}


def settle(client: httpx.Client, seconds: float = 30.0) -> bool:
    """Wait until the server is ready and no request is left in it."""
    names = ("sidewinder_requests_running", "sidewinder_requests_waiting")
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        idle = not any(gauges(client, *names).values())
        if idle and client.get("/ready").status_code == 200:
            return True
        time.sleep(0.1)
    return False


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    memory = "process_resident_memory_bytes"
    with httpx.Client(base_url=args.url, timeout=60, trust_env=False) as client:
        fuzz(client, 200, args.seed + 1)  # what grows once, grows here
        before = gauges(client, memory)[memory]
        started = time.perf_counter()
        result = fuzz(client, args.requests, args.seed)
        result["seconds"] = time.perf_counter() - started
        result["idle_and_ready"] = settle(client)
        result["memory_growth_bytes"] = gauges(client, memory)[memory] - before
    for each in result["problems"][:10]:
        print(json.dumps(each), file=sys.stderr)
    print(json.dumps(result | {"problems": len(result["problems"])}))
    return 0 if result["idle_and_ready"] and not result["problems"] else 1


if __name__ == "__main__":
    sys.exit(main())
