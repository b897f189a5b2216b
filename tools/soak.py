"""Keeps a running server busy with a mix of requests, and watches its memory.

    python tools/soak.py http://127.0.0.1:8000 --seconds 600 --pid PID

Workers complete, stream, chat, constrain, share prefixes, break off and send nonsense. Fails (exit
status 1) if a request fails that should not, or if requests are left afterwards. The last line is
one JSON object, with the memory of the server's processes over time.
"""

import argparse
import json
import random
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
from fuzz_server import settle

SCHEMA = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"]}
STALL_S = 3.0
"""A wait that takes so much longer than asked means that all processes were stopped."""

WORDS = ["the", "def", "return", "in", "self", "ing", "er", "on", "at", "import", "class", "else"]


def tree(pid: int) -> list[int]:
    """A process and all below it."""
    found = [pid]
    for own in found:
        for task in Path(f"/proc/{own}/task").glob("*/children"):
            found += [int(child) for child in task.read_text().split()]
    return found


def resident_bytes(pid: int) -> int:
    """Private and file-backed memory of a server and its ranks."""
    total = 0
    for own in tree(pid):
        for line in Path(f"/proc/{own}/status").read_text().splitlines():
            if line.startswith(("RssAnon:", "RssFile:")):
                total += int(line.split()[1]) * 1024
    return total


def slope(samples: list[dict[str, float]]) -> tuple[float, float]:
    """Bytes per second by least squares, and their standard error."""
    n = len(samples)
    times, sizes = ([sample[key] for sample in samples] for key in ("at_s", "bytes"))
    mean_time, mean_size = sum(times) / n, sum(sizes) / n
    spread = sum((at - mean_time) ** 2 for at in times)
    pairs = list(zip(times, sizes, strict=True))
    rate = sum((at - mean_time) * (size - mean_size) for at, size in pairs) / spread
    rest = sum((size - mean_size - rate * (at - mean_time)) ** 2 for at, size in pairs)
    return rate, (rest / max(1, n - 2) / spread) ** 0.5


class Soak:
    """The workers and what they have seen.

    Attributes:
        stalled_s: how long the machine stood still, which is not counted as work.
        cut_off: requests that broke because of that: connections time out meanwhile.

    Args:
        url: of the server.
        seed: of the mix.
    """

    def __init__(self, url: str, seed: int) -> None:
        self.url = url
        self.done: Counter[str] = Counter()
        self.failures: list[str] = []
        self.stalled_s = 0.0
        self.stall_ended = -1e9
        self.cut_off = 0
        self._stop = threading.Event()
        self._seed = seed

    def run(self, seconds: float, workers: int, pid: int | None) -> list[dict[str, float]]:
        """Work for so long; returns samples of memory."""
        threads = [threading.Thread(target=self._work, args=(n,)) for n in range(workers)]
        for thread in threads:
            thread.start()
        started, samples, pause = time.monotonic(), [], min(10.0, seconds / 5)
        while (now := time.monotonic() - started - self.stalled_s) < seconds:
            if pid is not None:
                samples.append({"at_s": round(now, 1), "bytes": resident_bytes(pid)})
            self._tick(pause)
        self._stop.set()
        for thread in threads:
            thread.join()
        return samples

    def _tick(self, seconds: float) -> None:
        """Wait, and notice when all processes stood still meanwhile."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            asked = min(left, 0.5)
            before = time.monotonic()
            self._stop.wait(asked)
            late = time.monotonic() - before - asked
            if late > STALL_S:
                self.stalled_s += late
                self.stall_ended = time.monotonic()
                end += late

    def _work(self, number: int) -> None:
        drawn = random.Random(self._seed * 1000 + number)
        with httpx.Client(base_url=self.url, timeout=120, trust_env=False) as client:
            while not self._stop.is_set():
                kind = drawn.choice([self.whole, self.stream, self.chat, self.form, self.leave,
                                     self.nonsense])  # fmt: skip
                try:
                    kind(client, drawn)
                    self.done[kind.__name__] += 1
                except (httpx.HTTPError, AssertionError) as error:
                    time.sleep(1.0)  # so that a stall is known, if this was one
                    if isinstance(error, httpx.HTTPError) and (
                        time.monotonic() - self.stall_ended < 5
                    ):
                        self.cut_off += 1
                        continue
                    self.failures.append(f"{kind.__name__}: {error!r}"[:300])

    def _post(
        self, client: httpx.Client, body: dict[str, Any], path: str = "/v1/completions"
    ) -> Any:
        reply = client.post(path, json=body)
        assert reply.status_code == 200, reply.text
        return reply.json()

    def whole(self, client: httpx.Client, drawn: random.Random) -> None:
        """A completion; many share one of three beginnings."""
        prompt = WORDS[drawn.randrange(3)] * 40 + " ".join(drawn.choices(WORDS, k=10))
        body = {"prompt": prompt, "max_tokens": drawn.randrange(1, 30), "ignore_eos": True}
        reply = self._post(client, body | {"n": drawn.randrange(1, 4), "seed": 1})
        assert reply["usage"]["completion_tokens"] == body["max_tokens"] * len(reply["choices"])

    def stream(self, client: httpx.Client, drawn: random.Random) -> None:
        """A stream that is read to its end, slowly now and then."""
        body = {"prompt": drawn.choice(WORDS), "max_tokens": 20, "stream": True}
        with client.stream("POST", "/v1/completions", json=body) as reply:
            lines = []
            for line in reply.iter_lines():
                lines.append(line)
                if drawn.random() < 0.02:
                    time.sleep(0.05)
        assert "data: [DONE]" in lines

    def chat(self, client: httpx.Client, drawn: random.Random) -> None:
        """A conversation of three turns."""
        messages: list[dict[str, str]] = []
        for _ in range(3):
            messages.append({"role": "user", "content": " ".join(drawn.choices(WORDS, k=8))})
            body = {"messages": messages, "max_tokens": 8, "logprobs": True}
            reply = self._post(client, body, "/v1/chat/completions")
            messages.append(
                {"role": "assistant", "content": reply["choices"][0]["message"]["content"]}
            )

    def form(self, client: httpx.Client, drawn: random.Random) -> None:
        """A structured output, mostly with a grammar never seen before."""
        body = {"prompt": "a", "max_tokens": 60, "guided_regex": f"x{{{drawn.randrange(1, 9)}}}y"}
        if drawn.random() < 0.3:
            body = {"prompt": "a", "max_tokens": 60, "guided_json": SCHEMA}
        self._post(client, body)

    def leave(self, client: httpx.Client, drawn: random.Random) -> None:
        """A stream that its client leaves in the middle."""
        body = {"prompt": "in on", "max_tokens": 2000, "ignore_eos": True, "stream": True}
        n_lines = drawn.randrange(8)
        with client.stream("POST", "/v1/completions", json=body) as reply:
            for number, _ in enumerate(reply.iter_lines()):
                if number >= n_lines:
                    break

    def nonsense(self, client: httpx.Client, drawn: random.Random) -> None:
        """Something that is refused."""
        body = drawn.choice([{"prompt": []}, {"prompt": "a", "top_p": 5}, {"x": 1}, []])
        assert client.post("/v1/completions", json=body).status_code == 400


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--pid", type=int, help="of the server, to watch its memory")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    soak = Soak(args.url, args.seed)
    samples = soak.run(args.seconds, args.workers, args.pid)
    with httpx.Client(base_url=args.url, timeout=60, trust_env=False) as client:
        idle = settle(client)
    result: dict[str, Any] = {
        "seconds": args.seconds,
        "requests": dict(soak.done),
        "failures": len(soak.failures),
        "stalled_s": round(soak.stalled_s, 1),
        "cut_off_by_stalls": soak.cut_off,
        "idle_and_ready": idle,
    }
    if samples:
        second_half = samples[len(samples) // 2 :]
        rate, error = slope(second_half)
        result |= {
            "growth_in_second_half_bytes": samples[-1]["bytes"] - second_half[0]["bytes"],
            "bytes_per_s_in_second_half": round(rate),
            "standard_error": round(error),
            "memory": samples,
        }
    for failure in soak.failures[:10]:
        print(failure, file=sys.stderr)
    print(json.dumps(result))
    return 0 if idle and not soak.failures else 1


if __name__ == "__main__":
    sys.exit(main())
