"""Which replica a request goes to: pure logic, without Ray."""

import itertools
import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidewinder.scale_out.routing import BLOCK, Beginnings, PrefixTable, beginnings

REPLICAS = ["a", "b", "c"]


def prompt(text, **fields):
    return beginnings(json.dumps({"prompt": text} | fields).encode())


def chat(*texts, **fields):
    messages = [{"role": "user", "content": text} for text in texts]
    return beginnings(json.dumps({"messages": messages} | fields).encode())


def place(table, request_id, text, replicas=REPLICAS, **fields):
    """Where one request goes; it stays open."""
    return table.rank(request_id, prompt(text, **fields), replicas)[0]


@given(st.text(max_size=3000), st.text(max_size=300), st.text(max_size=300))
def test_prompts_share_the_keys_of_what_they_share(common, one, other):
    first, second = prompt(common + one), prompt(common + other)
    n_common = len(common.encode("utf-8", "surrogatepass"))
    n_shared = sum(1 for end in first.ends[:-1] if end <= n_common)
    assert first.keys[:n_shared] == second.keys[:n_shared]
    assert list(first.ends) == sorted(set(first.ends))
    assert len(first.keys) == len(first.ends)


def test_different_beginnings_share_no_key():
    first, second = prompt("x" + "a" * 3000), prompt("y" + "a" * 3000)
    assert not set(first.keys) & set(second.keys)


def test_the_grid_is_fine_relative_to_the_position():
    ends = prompt("a" * 1_000_000).ends
    assert ends[0] == BLOCK
    assert len(ends) < 100
    assert all(b - a <= max(BLOCK, a / 8) for a, b in itertools.pairwise(ends))


def test_salts_share_nothing():
    text = "a" * 500
    assert not set(prompt(text).keys) & set(prompt(text, cache_salt="s").keys)
    assert prompt(text, cache_salt="s") == prompt(text, cache_salt="s", temperature=0.5)


def test_token_ids_and_the_first_of_several_prompts():
    ids = list(range(300))
    assert prompt(ids) == prompt([ids, [5]])
    assert prompt(ids).keys[:3] == prompt([*ids, 7]).keys[:3]
    assert prompt(["a" * 200, "b"]) == prompt("a" * 200)


def test_a_turn_of_a_chat_begins_with_all_of_the_one_before():
    first, second = chat("s" * 300, "u" * 77), chat("s" * 300, "u" * 77, "answer", "v")
    assert first.keys == second.keys[: len(first.keys)]
    assert first.ends[-1] == first.length


def test_tools_and_instructions_come_before_messages():
    tools = [{"type": "function", "function": {"name": "f", "description": "d" * 300}}]
    plain, shown = chat("a" * 300), chat("b" * 300, tools=tools)
    assert not set(plain.keys) & set(chat("a" * 300, tools=tools).keys)
    assert shown.keys[:2] == chat("c" * 300, tools=tools).keys[:2]
    one, other = ({"input": text, "instructions": "i" * 300} for text in ("a", "b"))
    assert (
        beginnings(json.dumps(one).encode()).keys[:2]
        == beginnings(json.dumps(other).encode()).keys[:2]
    )
    items = [{"role": "user", "content": "x" * 300}]
    longer = [*items, {"role": "user", "content": "y"}]
    first, second = (beginnings(json.dumps({"input": each}).encode()) for each in (items, longer))
    assert first.keys == second.keys[: len(first.keys)]


@pytest.mark.parametrize(
    "body",
    [b"", b"nonsense", b"[1]", b"{}", b'{"prompt": 5}', b'{"prompt": []}', b'{"messages": 1}',
     b'{"input": 3}', b'{"prompt": ""}', b'{"prompt": "short"}', b'{"prompt": [[]]}', b"\xff",
     b"[" * 100_000],
)  # fmt: skip
def test_bodies_without_beginnings(body):
    assert not beginnings(body).keys


def test_a_common_beginning_stays_on_one_replica():
    table = PrefixTable()
    places = set()
    for i in range(20):
        places.add(place(table, str(i), "manual " * 100 + f"question {i}"))
        table.finished(str(i))
    assert len(places) == 1


def test_distinct_beginnings_spread():
    table = PrefixTable()
    counts = Counter()
    for i in range(300):
        counts[place(table, str(i), f"{i} " + "text " * 100)] += 1
        table.finished(str(i))
    assert min(counts[name] for name in REPLICAS) > 60


def test_open_requests_spread_evenly():
    table = PrefixTable()
    counts = Counter(place(table, str(i), f"{i} " + "text " * 100) for i in range(30))
    assert set(counts.values()) == {10}
    counts = Counter(table.rank(f"get{i}", Beginnings(), REPLICAS)[0] for i in range(30))
    assert set(counts.values()) == {10}


def test_a_popular_beginning_spills_over_and_is_then_held_twice():
    table = PrefixTable(slack=4, factor=1.25)
    text = "manual " * 100
    counts = Counter(place(table, str(i), text + str(i)) for i in range(60))
    assert max(counts.values()) <= 4 + 1.25 * 61 / 3 + 1
    assert min(counts[name] for name in REPLICAS) >= 5
    for i in range(60):
        table.finished(str(i))
    assert len({name for names in table._holders.values() for name in names}) == 3


def test_the_longest_beginning_decides():
    table = PrefixTable(slack=100)
    system = "s" * 1000
    first, second = chat(system, "a" * 400), chat(system, "b" * 400)
    table.routed("1", first, "a")
    table.routed("2", second, "b")
    assert table.rank("3", chat(system, "a" * 400, "x", "y"), REPLICAS)[0] == "a"
    assert table.rank("4", chat(system, "b" * 400, "x", "y"), REPLICAS)[0] == "b"


def test_a_short_template_draws_nothing():
    table = PrefixTable(slack=100)
    for i in range(100):
        place(table, str(i), "t" * 200 + f" {i} " + "x" * 2000)
    counts = Counter(table._open.values())
    assert min(counts[name] for name in REPLICAS) > 20


def test_replicas_that_are_gone_are_forgotten():
    table = PrefixTable()
    text = "manual " * 100
    gone = place(table, "1", text)
    living = [name for name in REPLICAS if name != gone]
    table.keep(living)
    assert not table._holders
    assert not table._open
    assert place(table, "2", text, living) in living


def test_a_request_that_moves_counts_where_it_is():
    table = PrefixTable()
    table.routed("1", Beginnings(), "a")
    table.routed("1", Beginnings(), "b")
    table.finished("1", "a")
    assert table._open == {"1": "b"}
    table.finished("1", "b")
    table.finished("1", "b")
    assert not table._open


def test_memory_is_bounded():
    table = PrefixTable(max_keys=50)
    for i in range(100):
        place(table, str(i), f"{i} " + "text " * 100)
    assert len(table._holders) == 50


@pytest.mark.parametrize("options", [{"slack": -1}, {"factor": 0.5}, {"max_keys": 0}])
def test_options_that_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        PrefixTable(**options)
