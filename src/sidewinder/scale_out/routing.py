"""Which replica should run a request: the one that ran the longest beginning of its prompt.

A state is kept by the replica that computed it (docs/state-cache.md), so a prompt is cheapest where
its beginning ran before. The router remembers who ran what, as hashes of beginnings, and keeps to
that replica as long as its load stays near the others' (in the manner of consistent hashing with
bounded loads, Mirrokni, Thorup and Zadimoghaddam, 2016).
"""

import json
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

BLOCK = 128
"""Bytes of text between two beginnings; shorter prompts run anywhere, they cost next to nothing."""
FRACTION = 8
"""Later, beginnings are at most this fraction of the position apart."""
MIN_SHARE = 4
"""A beginning counts if it is at least this fraction of the prompt: a template that all prompts
share must not draw all of them to one replica."""


@dataclass(frozen=True)
class Beginnings:
    """Hashes of the beginnings of one prompt, the shortest first.

    Attributes:
        keys: one hash per beginning; equal beginnings with equal `cache_salt` have equal hashes.
        ends: where each of them ends, in bytes.
        length: of the whole prompt, in bytes.
    """

    keys: tuple[bytes, ...] = ()
    ends: tuple[int, ...] = ()
    length: int = 0


def beginnings(body: bytes) -> Beginnings:
    """Hash the beginnings of the prompt in a request's JSON body.

    Of several prompts the first counts. A body that is not a valid request has none; saying what is
    wrong with it is the replica's part.
    """
    try:
        request = json.loads(body) if body else None
    except (ValueError, RecursionError):
        return Beginnings()
    if not isinstance(request, dict):
        return Beginnings()
    parts = list(_parts(request))
    text = b"".join(parts)
    message_ends: set[int] = set()
    end = 0
    for part in parts:
        end += len(part)
        message_ends.add(end)
    ends = sorted(end for end in message_ends | set(_grid(len(text))) if end >= BLOCK)
    hasher = blake2b(repr(request.get("cache_salt")).encode(), digest_size=8)
    keys = []
    for start, end in zip([0, *ends], ends, strict=False):
        hasher.update(text[start:end])
        keys.append(hasher.digest())
    return Beginnings(tuple(keys), tuple(ends), len(text))


def _grid(length: int) -> Iterator[int]:
    """Ends of beginnings up to `length`, the same for all prompts."""
    end = BLOCK
    while end <= length:
        yield end
        end += max(BLOCK, end // FRACTION)


def _parts(request: dict[str, Any]) -> Iterator[bytes]:
    """What later prompts may begin with: each message of a chat, or a whole prompt."""
    messages = request.get("messages") or request.get("input")
    if isinstance(messages, str):
        messages = [messages]
    if isinstance(messages, list):
        for name in ("tools", "instructions", "system"):  # templates show them first
            if request.get(name):
                yield json.dumps(request[name], sort_keys=True).encode()
        for message in messages:
            yield json.dumps(message, sort_keys=True).encode()
        return
    prompt = request.get("prompt")
    if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int):
        prompt = prompt[0]
    if isinstance(prompt, str):
        yield prompt.encode("utf-8", "surrogatepass")
    elif isinstance(prompt, list):
        yield b"".join(str(token).encode() + b" " for token in prompt)


class PrefixTable:
    """Who ran which beginnings, and who is how busy.

    Args:
        slack: open requests more than its share that a replica may have and still be preferred.
        factor: of the replicas' mean load, added to `slack`.
        max_keys: hashes that are remembered; the least recently used go first.
    """

    def __init__(self, slack: int = 4, factor: float = 1.25, max_keys: int = 100_000) -> None:
        if slack < 0 or factor < 1 or max_keys < 1:
            raise ValueError(
                f"slack={slack}, factor={factor}, max_keys={max_keys}: use at least 0, 1 and 1"
            )
        self._slack = slack
        self._factor = factor
        self._max_keys = max_keys
        self._holders: OrderedDict[bytes, set[str]] = OrderedDict()
        self._open: dict[str, str] = {}

    def rank(self, request_id: str, prompt: Beginnings, replicas: Sequence[str]) -> list[str]:
        """Order `replicas` for a request, the best first, which is taken to run it from now on.

        First those that ran the longest beginning and are not too busy, then the least busy; equals
        in an order that depends on the prompt alone, so that several routers tend to agree.

        Args:
            request_id: of this request.
            prompt: of `beginnings`.
            replicas: names of those that live, at least one.
        """
        load = dict.fromkeys(replicas, 0)
        for name in list(self._open.values()):
            if name in load:
                load[name] += 1
        limit = self._slack + self._factor * (sum(load.values()) + 1) / len(load)
        matched = self._matched(prompt)
        seed = prompt.keys[-1] if prompt.keys else request_id.encode()

        def order(name: str) -> tuple[int, int, bytes]:
            kept = matched.get(name, 0) if load[name] < limit else 0
            return -kept, load[name], blake2b(seed + name.encode(), digest_size=8).digest()

        ranked = sorted(replicas, key=order)
        self.routed(request_id, prompt, ranked[0])
        return ranked

    def routed(self, request_id: str, prompt: Beginnings, replica: str) -> None:
        """The request runs on `replica`, which will hold its prompt's states."""
        self._open[request_id] = replica
        for key in prompt.keys:
            self._holders.setdefault(key, set()).add(replica)
            self._holders.move_to_end(key)
        while len(self._holders) > self._max_keys:
            self._holders.popitem(last=False)

    def finished(self, request_id: str, replica: str | None = None) -> None:
        """The request is over, or was not taken by `replica` (if that is still where it is)."""
        if replica is None or self._open.get(request_id) == replica:
            self._open.pop(request_id, None)

    def keep(self, replicas: Iterable[str]) -> None:
        """Forget all replicas but these."""
        living = set(replicas)
        for request_id, name in list(self._open.items()):
            if name not in living:
                self._open.pop(request_id, None)
        for key, names in list(self._holders.items()):
            names &= living
            if not names:
                del self._holders[key]

    def _matched(self, prompt: Beginnings) -> dict[str, int]:
        """How many bytes of the prompt each replica has run, where that is a fair part of it."""
        matched: dict[str, int] = {}
        for key, end in zip(prompt.keys, prompt.ends, strict=True):
            if end * MIN_SHARE >= prompt.length:
                matched |= dict.fromkeys(self._holders.get(key, ()), end)
        return matched
