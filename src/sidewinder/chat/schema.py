"""What a JSON schema says of an argument: is it written as plain text, or as JSON?"""

from typing import Any

MAX_DEPTH = 16
"""References and alternatives that are followed; a schema may refer to itself."""


def takes_text(schema: Any, root: Any) -> bool:
    """Whether the XML format has an argument with this schema as plain text: where texts are
    allowed, or nothing is said. `root` is what references are looked up in."""
    types = types_of(schema, root)
    return not types or "string" in types


def types_of(schema: Any, root: Any, depth: int = MAX_DEPTH) -> list[Any]:
    """The types that a schema allows at its top; [] if it does not say."""
    if not isinstance(schema, dict) or not depth:
        return []
    if "$ref" in schema:
        return types_of(_referred(schema["$ref"], root), root, depth - 1)
    if named := schema.get("type"):
        return named if isinstance(named, list) else [named]
    for key in ("anyOf", "oneOf"):
        if isinstance(choices := schema.get(key), list):
            return [name for each in choices for name in types_of(each, root, depth - 1)]
    values = schema["enum"] if isinstance(schema.get("enum"), list) else [schema.get("const")]
    return ["number"] if values != [None] and not any(isinstance(v, str) for v in values) else []


def _referred(reference: Any, root: Any) -> Any:
    """What `#/$defs/name` means; None if there is no such thing."""
    if not isinstance(reference, str) or not reference.startswith("#"):
        return None
    found = root
    for name in reference[1:].split("/")[1:]:
        found = found.get(name) if isinstance(found, dict) else None
    return found
