"""What a JSON schema says of an argument: is it written as plain text, or as JSON?"""

from typing import Any

MOST_SEEN = 100
"""References and alternatives that are followed; a schema may refer to itself, or a chain of
thousands be sent by a stranger."""


def takes_text(schema: Any, root: Any) -> bool:
    """Whether the XML format has an argument with this schema as plain text: where texts are
    allowed, or nothing is said. `root` is what references are looked up in."""
    types = types_of(schema, root)
    return not types or "string" in types


def types_of(schema: Any, root: Any) -> list[Any]:
    """The types that a schema allows at its top; [] if it does not say."""
    types: list[Any] = []
    seen: set[int] = set()
    waiting = [schema]
    while waiting and len(seen) < MOST_SEEN:
        each = waiting.pop(0)
        if not isinstance(each, dict) or id(each) in seen:
            continue
        seen.add(id(each))
        choices = next((each[key] for key in ("anyOf", "oneOf") if key in each), None)
        if "$ref" in each:
            waiting.insert(0, _referred(each["$ref"], root))
        elif named := each.get("type"):
            types += named if isinstance(named, list) else [named]
        elif isinstance(choices, list):
            waiting[:0] = choices
        elif _only_others(each):
            types.append("number")
    return types


def _only_others(schema: dict[str, Any]) -> bool:
    """Whether a schema without types lists values, and no text among them."""
    values = schema["enum"] if isinstance(schema.get("enum"), list) else [schema.get("const")]
    return values != [None] and not any(isinstance(value, str) for value in values)


def _referred(reference: Any, root: Any) -> Any:
    """What `#/$defs/name` means; None if there is no such thing."""
    if not isinstance(reference, str) or not reference.startswith("#"):
        return None
    found = root
    for name in reference[1:].split("/")[1:]:
        found = found.get(name) if isinstance(found, dict) else None
    return found
