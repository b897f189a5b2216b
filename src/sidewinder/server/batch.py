"""Files of requests in OpenAI's batch format, answered without a network."""

import asyncio
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from sidewinder.llm import LLM
from sidewinder.server.app import build_app
from sidewinder.server.config import ServerConfig
from sidewinder.server.run import load_tokenizer, start_service

URLS = ("/v1/completions", "/v1/chat/completions", "/v1/responses")
"""Endpoints that a batch may ask."""

JSON = {"Content-Type": "application/json"}
ANSWER_BEGINS = b'{"id": "batch_req_'

AT_ONCE = 512
"""Requests that are in the queue at the same time, whatever the batch size of the engine is."""


@dataclass(frozen=True)
class BatchRequest:
    """One line of a batch.

    Attributes:
        custom_id: names it; the only one with that name in its file.
        url: one of `URLS`.
        body: of the request.
    """

    custom_id: str
    url: str
    body: dict[str, Any]

    @property
    def content(self) -> bytes:
        """The body as it is sent: what it has that is no number or no Unicode, too, so that its
        answer says so."""
        return json.dumps(self.body).encode()


def read_batch(path: Path) -> list[BatchRequest]:
    """The requests of a JSONL file, all of them checked.

    Raises:
        ValueError: for a file without requests, or a line that is none; the message names it.
    """
    requests: dict[str, BatchRequest] = {}
    for number, line in _lines(path):
        request = _request(line, f"{path}, line {number}")
        if request.custom_id in requests:
            raise ValueError(
                f"{path}, line {number}: custom_id {request.custom_id!r} is there twice; "
                "answers are told apart by it"
            )
        requests[request.custom_id] = request
    if not requests:
        raise ValueError(f"{path} has no requests; give one JSON object a line")
    return list(requests.values())


def answered(path: Path) -> set[str]:
    """The `custom_id` of every request that a file of answers has; of none if there is no file. A
    last line that a killed run left unfinished is cut off.

    Raises:
        ValueError: for a line that is no answer, nor the beginning of one; the file is as it was.
    """
    if not path.exists():
        return set()
    *lines, last = path.read_bytes().split(b"\n")
    found = {_answered(line, path, number) for number, line in enumerate(lines, 1) if line.strip()}
    if last.strip() and _begins_answer(last):
        os.truncate(path, path.stat().st_size - len(last))
    elif last.strip():
        found.add(_answered(last, path, len(lines) + 1))
        with path.open("ab") as file:
            file.write(b"\n")
    return found


def _begins_answer(line: bytes) -> bool:
    """Whether it is an answer that was not written to its end."""
    if not line.startswith(ANSWER_BEGINS) and not ANSWER_BEGINS.startswith(line):
        return False
    try:
        json.loads(line)
    except ValueError:
        return True
    return False


def _answered(line: bytes, path: Path, number: int) -> str:
    try:
        answer = json.loads(line)
        custom_id, _ = answer["custom_id"], answer["response"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path}, line {number} is no answer of a batch; name another output file"
        ) from error
    return str(custom_id)


def run_batch(
    llm: LLM,
    requests: Sequence[BatchRequest],
    write: Callable[[dict[str, Any]], None],
    name: str,
) -> None:
    """Answer requests, many at once.

    Args:
        llm: loaded; nothing else may use it.
        requests: to be answered.
        write: takes each answer when it is complete, in OpenAI's form.
        name: what bodies call the model.

    Raises:
        RuntimeError: if the engine fails; answers that were complete have been written.
    """
    load_tokenizer(llm)
    asyncio.run(_run(llm, requests, write, name))


async def _run(
    llm: LLM,
    requests: Sequence[BatchRequest],
    write: Callable[[dict[str, Any]], None],
    name: str,
) -> None:
    # Limits are for strangers.
    most = 1 << 40
    config = ServerConfig(max_queue=most, max_request_bytes=most, max_choices=most)
    service, metrics = start_service(llm, config, name)
    transport = httpx.ASGITransport(build_app(service, metrics))
    places = asyncio.Semaphore(AT_ONCE)

    async def answer(client: httpx.AsyncClient, request: BatchRequest) -> None:
        async with places:
            response = await client.post(request.url, content=request.content, headers=JSON)
        if service.engine.failure is not None:
            raise RuntimeError(service.engine.failure)
        write(_answer(request, response))

    try:
        async with (
            httpx.AsyncClient(transport=transport, base_url="http://batch", timeout=None) as client,
            asyncio.TaskGroup() as group,
        ):
            for request in requests:
                group.create_task(answer(client, request))
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
    finally:
        service.engine.close()
        service.close()


def _answer(request: BatchRequest, response: httpx.Response) -> dict[str, Any]:
    reply = {
        "status_code": response.status_code,
        "request_id": response.headers.get("X-Request-Id"),
        "body": response.json(),
    }
    return {
        "id": f"batch_req_{reply['request_id']}",
        "custom_id": request.custom_id,
        "response": reply,
        "error": None,
    }


def _request(line: str, where: str) -> BatchRequest:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{where} is no JSON object")
    custom_id, url, body = (value.get(key) for key in ("custom_id", "url", "body"))
    if not isinstance(custom_id, str) or not custom_id:
        raise ValueError(f"{where}: custom_id is missing, or no text")
    if any("\ud800" <= character <= "\udfff" for character in custom_id):
        raise ValueError(f"{where}: custom_id {custom_id!r} is not valid Unicode")
    if value.get("method") != "POST" or url not in URLS:
        raise ValueError(f"{where}: give method POST and a url of {', '.join(URLS)}")
    if not isinstance(body, dict):
        raise ValueError(f"{where}: body is missing, or no JSON object")
    if body.get("stream"):
        raise ValueError(f"{where}: stream is for servers; leave it out")
    return BatchRequest(custom_id, url, body)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines that are not blank, and their numbers."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, line
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: {error}") from error
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from error
