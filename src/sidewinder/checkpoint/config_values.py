"""Typed access to the values of a `config.json`, with errors that name file, key and limit."""

import math
from collections.abc import Iterable
from typing import Any

DTYPES = ("float32", "bfloat16", "float16")
UNLIMITED = (0.0, math.inf)
"""What dt may be where a model does not clamp it."""

LARGEST_SIZE = 1 << 24
"""No width, vocabulary or count of heads comes near it; a config that says more is broken."""
MOST_LAYERS = MOST_EXPERTS = 1 << 12
"""Of a model, and of a layer: their parameters are listed one by one."""
MOST_SHOWN = 400
"""Characters of an error's message."""


class ConfigValues:
    """The values of one JSON object. `source` names it in errors; a `null` counts as absent.

    Every getter takes the key and the default, and raises ValueError if the value does not fit.
    A default of None means that the key is required (where None is not a possible value).
    """

    def __init__(self, values: dict[str, Any], source: str) -> None:
        self._values = values
        self._source = source

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def names(self) -> Iterable[str]:
        return self._values.keys()

    def error(self, message: str) -> ValueError:
        """A ValueError that names the source; of a long message, as of a long value, the middle is
        left out."""
        if len(message) > MOST_SHOWN:
            message = f"{message[: MOST_SHOWN // 2]} ... {message[-MOST_SHOWN // 2 :]}"
        return ValueError(f"{self._source}: {message}")

    def get(self, name: str) -> Any:
        """The raw value, None if absent."""
        return self._values.get(name)

    def section(self, name: str) -> "ConfigValues":
        """A nested object; empty if absent."""
        value = self.get(name) or {}
        if not isinstance(value, dict):
            raise self.error(f"{name}={value!r} is not an object")
        return ConfigValues(value, f"{self._source}: {name}")

    def _value(self, name: str, default: Any) -> Any:
        value = self.get(name)
        if value is None:
            if default is None:
                raise self.error(f"{name} is missing")
            return default
        return value

    def size(
        self, name: str, default: int | None, minimum: int = 1, maximum: int = LARGEST_SIZE
    ) -> int:
        """An integer of at least `minimum` and at most `maximum`."""
        value = self._value(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
            raise self.error(f"{name}={value!r} is not an integer of at least {minimum}")
        if value > maximum:
            raise self.error(f"{name}={value} is too large; at most {maximum} is supported")
        return value

    def scaled(self, name: str, default: float, width: int) -> int:
        """`width` times the (whole or fractional) factor `name`, as a positive integer."""
        factor = self.positive(name, default)
        if factor * width < 1:
            raise self.error(f"{name}={factor} times {width} is not a positive size")
        if factor * width > LARGEST_SIZE:
            raise self.error(
                f"{name}={factor} times {width} is too large; at most {LARGEST_SIZE} is supported"
            )
        return int(factor * width)

    def rank(self, name: str, d_model: int) -> int:
        """The rank of the dt projection; "auto" (the default) is d_model / 16, rounded up."""
        if self.get(name) in (None, "auto"):
            return math.ceil(d_model / 16)
        return self.size(name, None)

    def divisor(self, name: str, default: int | None, of: str, total: int) -> int:
        """A positive integer that divides `total`, which `of` names."""
        value = self.size(name, default)
        if total % value:
            raise self.error(f"{name}={value} does not divide {of} ({total})")
        return value

    def positive(self, name: str, default: float | None) -> float:
        """A positive finite number."""
        value = self._number(name, self._value(name, default))
        if not 0 < value < math.inf:
            raise self.error(f"{name}={value!r} is not a positive number")
        return value

    def multipliers(self, name: str, count: int) -> tuple[float, ...]:
        """So many positive finite numbers in a list; ones if absent."""
        value = self._value(name, [1.0] * count)
        if not isinstance(value, list) or len(value) != count:
            raise self.error(f"{name}={value!r} is not a list of {count} numbers")
        numbers = tuple(self._number(name, each) for each in value)
        if not all(0 < each < math.inf for each in numbers):
            raise self.error(f"{name}={value!r} must be {count} positive numbers")
        return numbers

    def non_negative(self, name: str, default: float) -> float:
        """A finite number of at least zero."""
        value = self._number(name, self._value(name, default))
        if not 0 <= value < math.inf:
            raise self.error(f"{name}={value!r} is not a number of at least 0")
        return value

    def _number(self, name: str, value: Any) -> float:
        # JSON has no infinity: it is written bare, as text, or as {"__float__": "Infinity"}.
        if isinstance(value, dict) and set(value) == {"__float__"}:
            value = value["__float__"]
        if isinstance(value, str):
            try:
                value = float(value)
            except ValueError:
                raise self.error(f"{name}={value!r} is not a number") from None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.error(f"{name}={value!r} is not a number")
        try:
            return float(value)
        except OverflowError:
            raise self.error(f"{name} has more digits than a number here can have") from None

    def flag(self, name: str, default: bool) -> bool:
        value = self._value(name, default)
        if not isinstance(value, bool):
            raise self.error(f"{name}={value!r} is not true or false")
        return value

    def choice(self, name: str, default: str | None, choices: tuple[str, ...]) -> str:
        """One of `choices`."""
        value = self._value(name, default)
        if value not in choices:
            raise self.error(f"{name}={value!r} is not supported; supported: {', '.join(choices)}")
        return str(value)

    def limits(self, name: str, default: tuple[float, float]) -> tuple[float, float]:
        """A pair `low <= high`, either of which may be infinite."""
        value = self._value(name, default)
        if not isinstance(value, list | tuple) or len(value) != 2:
            raise self.error(f"{name}={value!r} is not a pair of numbers")
        low, high = (self._number(name, edge) for edge in value)
        if not 0 <= low <= high:
            raise self.error(f"{name}={value!r} must be two numbers, 0 <= low <= high")
        return low, high

    def token(self, name: str, default: int | None) -> int | None:
        """A token id; absent takes the default, `null` means none."""
        value = self._values.get(name, default)
        return None if value is None else self._token(name, value)

    def tokens(self, name: str, default: int | None) -> tuple[int, ...]:
        """One token id or a list of them; `null` means none."""
        value = self._values.get(name, default)
        if value is None:
            return ()
        return tuple(
            self._token(name, token) for token in (value if isinstance(value, list) else [value])
        )

    def _token(self, name: str, value: Any) -> int:
        is_integer = isinstance(value, int) and not isinstance(value, bool)
        if not is_integer or not 0 <= value < LARGEST_SIZE:
            raise self.error(
                f"{name}={value!r} is not a token id; those are 0 to {LARGEST_SIZE - 1}"
            )
        return int(value)

    def dtype(self) -> str:
        """The dtype of the stored weights (`dtype`, formerly `torch_dtype`), else float32."""
        value = str(self.get("dtype") or self.get("torch_dtype") or "float32")
        value = value.removeprefix("torch.")
        if value not in DTYPES:
            raise self.error(f"dtype={value!r} is not supported; supported: {', '.join(DTYPES)}")
        return value
