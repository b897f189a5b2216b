"""The types that a schema allows, also where it refers to itself."""

import pytest

from sidewinder.chat.schema import MOST_SEEN, takes_text, types_of


@pytest.mark.parametrize(
    ("schema", "types"),
    [
        ({}, []),
        (True, []),
        ({"type": "integer"}, ["integer"]),
        ({"type": ["string", "null"]}, ["string", "null"]),
        ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, ["integer", "null"]),
        ({"oneOf": [{"anyOf": [{"type": "array"}]}, {"type": "null"}]}, ["array", "null"]),
        ({"anyOf": 3}, []),
        ({"enum": [1, None]}, ["number"]),
        ({"enum": [1, "a"]}, []),
        ({"enum": 3}, []),
        ({"const": 3}, ["number"]),
        ({"$ref": "#/$defs/a"}, ["integer"]),
        ({"$ref": "#/$defs/b"}, []),
        ({"$ref": "#"}, ["object"]),
        ({"$ref": "https://example.org"}, []),
        ({"$ref": 3}, []),
    ],
    ids=str,
)
def test_types(schema, types):
    root = {"type": "object", "$defs": {"a": {"type": "integer"}}}
    assert types_of(schema, root) == types
    assert takes_text(schema, root) == (not types or "string" in types)


def test_a_schema_that_refers_to_itself_many_times():
    """Followed without a memory, this would be looked at 50 to the power of 8 times."""
    own = {"$ref": "#/$defs/a"}
    root = {"$defs": {"a": {"anyOf": [*[own] * 50, {"type": "integer"}]}}}
    assert types_of(own, root) == ["integer"]


def test_a_long_chain():
    links = {f"a{i}": {"$ref": f"#/$defs/a{i + 1}"} for i in range(5000)}
    root = {"$defs": links | {"a5000": {"type": "integer"}}}
    assert types_of({"$ref": "#/$defs/a0"}, root) == []
    assert types_of({"$ref": f"#/$defs/a{5001 - MOST_SEEN + 1}"}, root) == ["integer"]
