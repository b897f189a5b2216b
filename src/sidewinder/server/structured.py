"""The form that a request wants for its text, in OpenAI's or in vLLM's words."""

from typing import Any

from sidewinder.sampling import StructuredOutput
from sidewinder.server.errors import ApiError
from sidewinder.server.schemas import ResponseFormat, Sampling

GUIDED = {
    "guided_json": "json",
    "guided_regex": "regex",
    "guided_choice": "choice",
    "guided_grammar": "grammar",
}
"""vLLM's older fields, and what they mean."""


def structured_output(body: Sampling) -> StructuredOutput | None:
    """What `response_format`, `structured_outputs` and `guided_*` ask for together.

    Raises:
        ApiError: if more than one of them asks for a form, or a part is missing.
        ValueError: for a value that `StructuredOutput` refuses.
    """
    asked: dict[str, dict[str, Any]] = {}
    if body.response_format is not None and body.response_format.type != "text":
        asked["response_format"] = _of_response_format(body.response_format)
    if body.structured_outputs is not None:
        asked["structured_outputs"] = {
            name.rstrip("_"): value for name, value in body.structured_outputs if value is not None
        }
    for field, name in GUIDED.items():
        if (value := getattr(body, field)) is not None:
            asked[field] = {name: value}
    if len(asked) > 1:
        raise ApiError(400, f"{', '.join(asked)} exclude each other; give one", next(iter(asked)))
    for field, values in asked.items():
        try:
            return StructuredOutput(**values)
        except ValueError as error:
            raise ApiError(400, f"{field}: {error}", field) from error
    return None


def _of_response_format(given: ResponseFormat) -> dict[str, Any]:
    if given.type == "json_object":
        return {"json_object": True}
    if given.json_schema is None:
        raise ApiError(400, "response_format: json_schema is missing", "response_format")
    # Without a schema, as with OpenAI, any JSON object fits.
    schema = given.json_schema.schema_
    return {"json_object": True} if schema is None else {"json": schema}
