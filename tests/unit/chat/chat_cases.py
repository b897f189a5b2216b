"""Tools, and answers that call them in every format."""

from sidewinder.chat import FORMATS, Tool
from sidewinder.testing import save_tiny, save_tokenizer

TAGS = ["<think>", "</think>", "<tool_call>", "</tool_call>"]
"""Special tokens of the model that `save_talker` writes; their ids begin at 1."""
END_THINK = TAGS.index("</think>") + 1

WEATHER = Tool(
    "get_weather",
    {
        "type": "object",
        "properties": {
            "city": {"type": "string", "maxLength": 12},
            "days": {"type": "integer", "minimum": 1, "maximum": 14},
            "unit": {"enum": ["C", "F"]},
        },
        "required": ["city"],
        "additionalProperties": False,
    },
    "The weather of some days.",
)
NOW = Tool("now", {"type": "object", "properties": {}, "additionalProperties": False})
TOOLS = (WEATHER, NOW)

BODIES = {
    "json": '{"name": "get_weather", "arguments": {"city": "Bern", "days": 3}}',
    "xml": "<function=get_weather>\n<parameter=city>\nBern\n</parameter>\n"
    "<parameter=days>\n3\n</parameter>\n</function>",
}
"""A call of `get_weather` with city Bern and days 3, between the tags."""


def call_text(name, body=None):
    """One call in the format `name`, tags included; `body` is what is between them."""
    format_ = FORMATS[name]
    inside = format_.before + BODIES[format_.body] + format_.after if body is None else body
    return format_.begin + inside + format_.end


TEMPLATE = (
    "{% if tools %}tools:{% for t in tools %} {{ t.function.name }}{% endfor %}{{ '\n' }}"
    "Answer with <tool_call> and </tool_call>.{{ '\n' }}{% endif %}"
    "{% for m in messages %}{{ m.role }}: {{ m.content }}"
    "{% for c in m.tool_calls or [] %} {{ c.function.name }}({{ c.function.arguments.city }})"
    "{% endfor %}{{ '\n' }}{% endfor %}assistant:"
)
"""Shows tools and calls; its calls are in the format `hermes`."""

THINKING = (
    TEMPLATE
    + "{% if enable_thinking is defined %}<think>{{ '\n' }}{% else %}<think></think>{% endif %}"
)
"""Opens reasoning where the option `enable_thinking` is there."""


def save_talker(folder, template=THINKING):
    """Write a tiny random model that can be made to reason and to call; return its folder."""
    save_tiny("mamba", folder, vocab_size=291, tie_word_embeddings=False)
    return save_tokenizer(folder, special=TAGS, template=template)
