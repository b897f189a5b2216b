"""Items of a response, and the events of each."""

import pytest

from sidewinder.chat import CallPiece, Part
from sidewinder.server.responses.items import Items


@pytest.mark.parametrize("status", ["completed", "incomplete"])
@pytest.mark.parametrize(
    ("parts", "kinds"),
    [
        ([], ["message"]),
        ([Part(reasoning="Why?")], ["reasoning", "message"]),
        ([Part(reasoning="Why?"), Part(content="So."), Part(content=" Yes.")],
         ["reasoning", "message"]),
        ([Part(pieces=[CallPiece("{", "f"), CallPiece("}")])], ["function_call"]),
        ([Part("Why?", "So.", [CallPiece("{}", "f"), CallPiece("{}", "g")]), Part(content="!")],
         ["reasoning", "message", "function_call", "function_call", "message"]),
    ],
    ids=["nothing", "a thought", "a thought and text", "a call", "all"],
)  # fmt: skip
def test_every_item_is_added_and_done(parts, kinds, status):
    items = Items()
    news = [each for part in parts for each in items.add(part)] + list(items.end(status))
    assert [item["type"] for item in items.output] == kinds
    assert items.output[-1]["status"] == status
    for index, item in enumerate(items.output):
        own = [(name, told) for name, told in news if told["output_index"] == index]
        assert own[0][0] == "response.output_item.added"
        assert own[0][1]["item"]["status"] == "in_progress"
        assert own[-1] == ("response.output_item.done", {"output_index": index, "item": item})
        assert item["status"] in ("completed", status)
    order = [told["output_index"] for _, told in news]
    assert order == sorted(order)


def test_a_thought_that_is_cut():
    items = Items()
    list(items.add(Part(reasoning="Why")))
    list(items.end("incomplete"))
    assert [item["status"] for item in items.output] == ["incomplete", "incomplete"]
