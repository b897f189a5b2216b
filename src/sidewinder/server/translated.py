"""Requests in other forms than a chat's, which ask for the same: their fields become a chat's."""

import re
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from sidewinder.server import params
from sidewinder.server.errors import ApiError, validation_error
from sidewinder.server.params import Generation
from sidewinder.server.schemas import ChatRequest

_PLACE = re.compile(r"[\w.]+")


def translated(
    chat: dict[str, Any], default_max_tokens: int | None, names: Mapping[str, str]
) -> Generation:
    """What a request asks for.

    Args:
        chat: the fields of the chat that asks for the same.
        default_max_tokens: as `params.chat` has it.
        names: of chats' fields, where the request has others: patterns, and what they are there.

    Raises:
        ApiError: for a value that chats refuse, in the request's words.
    """
    try:
        try:
            return params.chat(ChatRequest(**chat), default_max_tokens)
        except ValidationError as error:
            raise validation_error(error.errors(), n_outer=0) from error
    except ApiError as error:
        raise _in_words(error, names) from error


def _in_words(error: ApiError, names: Mapping[str, str]) -> ApiError:
    """The error with the names of another form; messages begin with the field that is to blame."""

    def renamed(place: str) -> str:
        for ours, theirs in names.items():
            if found := re.match(rf"{ours}(?![\w])", place):
                return found.expand(theirs) + place[found.end() :]
        return place

    place = _PLACE.match(error.message)
    message = error.message
    if place is not None:
        message = renamed(place[0]) + message[place.end() :]
    param = None if error.param is None else renamed(error.param)
    return ApiError(error.status, message, param, error.code)
