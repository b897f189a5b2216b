"""Conversations with models that reason and call functions: what goes into the chat template, how
families write both into their answers, and how that is read, or enforced by a grammar."""

from sidewinder.chat.answer import AnswerReader, Part, ToolCall
from sidewinder.chat.calls import CallPiece
from sidewinder.chat.dialect import Conversation, Dialect
from sidewinder.chat.formats import FORMATS, ToolFormat
from sidewinder.chat.tools import Tool, ToolChoice

__all__ = [
    "FORMATS",
    "AnswerReader",
    "CallPiece",
    "Conversation",
    "Dialect",
    "Part",
    "Tool",
    "ToolCall",
    "ToolChoice",
    "ToolFormat",
]
