"""Whether a file of sensitivities holds what its fields say."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

PLAIN: dict[str, tuple[type, str]] = {
    "fingerprint": (str, "a text"),
    "tp": (int, "a whole number"),
    "dtype": (str, "a text"),
    "rotate": (bool, "true or false"),
    "tokens": (int, "a whole number"),
    "sites": (dict, "an object"),
}
"""Type of each field but `together`, and its name in an error."""

LARGEST = 1e300
"""Beyond any KL; and whole numbers may have more digits than a float can."""


def check_types(file: Path, values: Mapping[str, Any], codecs: Collection[str]) -> None:
    """Refuse values of other types.

    Args:
        file: named in the error.
        values: by the names of `Sensitivity`'s fields, all there.
        codecs: those whose costs must be there, and no others.

    Raises:
        ValueError: names the file and the field.
    """

    def check(good: bool, field: str, found: object, wanted: str) -> None:
        if not good:
            raise ValueError(
                f"{file}: {field} is {found!r:.80}, not {wanted}; measure again with: "
                "sidewinder eval MODEL --text FILE --sensitivity"
            )

    for field, (kind, wanted) in PLAIN.items():
        check(type(values[field]) is kind, field, values[field], wanted)
    costs = {f"sites[{site!r}]": costs for site, costs in values["sites"].items()}
    for field, of_codecs in (costs | {"together": values["together"]}).items():
        complete = isinstance(of_codecs, dict) and set(of_codecs) == set(codecs)
        check(complete, field, of_codecs, f"a KL in nats for each of {', '.join(codecs)}")
        for codec, cost in of_codecs.items():
            is_number = type(cost) in (int, float) and abs(cost) < LARGEST
            check(is_number, f"{field}[{codec!r}]", cost, "a finite number")
