"""The data behind `sidewinder plan`: who holds what, what crosses ranks, what it costs in bytes.

Pure functions of `(config, tp, dtypes)`; no weight is read. `plan_report` gives a dictionary that
goes to JSON as it is, `format_plan` the same as text.
"""

import re
from collections.abc import Sequence
from dataclasses import asdict
from math import prod
from typing import Any

import torch

from sidewinder.config import ModelConfig
from sidewinder.parallel.group import TensorParallel
from sidewinder.sharding.dims import LocalDims
from sidewinder.sharding.plan import (
    ONE_OF_EXPERTS,
    parameter_shapes,
    passes,
    sharding_plan,
)
from sidewinder.sharding.sizes import as_stored, parameter_bytes
from sidewinder.sharding.slicing import Bands, Replicate, Rule, local_shape
from sidewinder.sharding.traffic import collectives_of
from sidewinder.state.spec import StateSpec


def describe_rule(rule: Rule) -> str:
    """A rule in a few words."""
    if isinstance(rule, Replicate):
        return "replicate"
    if isinstance(rule, Bands):
        bands = ", ".join(f"{band.name} by {band.unit}" for band in rule.bands)
        return f"bands of dim {rule.dim}: {bands}"
    return f"split dim {rule.dim} by {rule.unit}"


def plan_report(
    config: ModelConfig,
    size: int,
    dtype: torch.dtype,
    state_dtype: torch.dtype = torch.float32,
    weight_dtype: str = "auto",
) -> dict[str, Any]:
    """Everything that `sidewinder plan` shows, as plain data.

    Args:
        config: the model.
        size: number of ranks, `tp`.
        dtype: of weights, activations, convolution state and KV.
        state_dtype: of the SSM state.
        weight_dtype: "auto", or what the large matrices are rounded to (`quantise.BITS`).

    Returns:
        `parameters`: per parameter its global shape, rule, and every rank's shape and bytes;
        `collectives`: see `Collective`; `per_token`: their totals for one decoded token (the
        logits' gather counts once); `ranks`: per rank bytes of weights, of weights that a decode
        step reads (its floor in time is these over the memory's bandwidth), of state per sequence,
        of keys and values per token; `total`: the whole model's parameters and weight bytes.

    Raises:
        ValueError: if the model cannot be split over `size` ranks; names the valid sizes.
    """
    stored = as_stored(config, weight_dtype)
    parameters = _parameters(stored, size, dtype, weight_dtype)
    collectives = collectives_of(config, size, dtype)
    return {
        "model": {
            name: getattr(config, name)
            for name in ("family", "layout", "vocab_size", "d_model", "n_layers", "d_inner",
                         "d_state", "d_conv", "dt_rank", "n_heads", "n_groups", "tie_embeddings")
        },
        "tp": size,
        "dtype": _dtype_name(dtype),
        "weight_dtype": weight_dtype,
        "state_dtype": _dtype_name(state_dtype),
        "parameters": parameters,
        "collectives": [asdict(collective) for collective in collectives],
        "per_token": {
            "collectives": sum(each.layers for each in collectives),
            "elements": sum(each.layers * each.elements for each in collectives),
            "bytes": sum(each.layers * each.bytes for each in collectives),
        },
        "ranks": [
            _rank_bytes(stored, TensorParallel(rank, size), parameters, dtype, state_dtype)
            for rank in range(size)
        ],
        "total": {
            "parameters": sum(prod(shape) for shape in parameter_shapes(config).values()),
            "weight_bytes": sum(
                parameter_bytes(name, shape, dtype, weight_dtype)
                for name, shape in parameter_shapes(stored).items()
            ),
        },
    }  # fmt: skip


def _parameters(
    config: ModelConfig, size: int, dtype: torch.dtype, weight_dtype: str
) -> list[dict[str, Any]]:
    shapes = parameter_shapes(config)
    rows = []
    for name, rule in sharding_plan(config, size).items():
        local = [local_shape(rule, shapes[name], rank) for rank in range(size)]
        rows.append(
            {
                "name": name,
                "shape": list(shapes[name]),
                "rule": describe_rule(rule),
                "local_shapes": [list(shape) for shape in local],
                "bytes": [parameter_bytes(name, shape, dtype, weight_dtype) for shape in local],
            }
        )
    return rows


def _rank_bytes(
    config: ModelConfig,
    tp: TensorParallel,
    parameters: list[dict[str, Any]],
    dtype: torch.dtype,
    state_dtype: torch.dtype,
) -> dict[str, int]:
    spec = StateSpec.of(config, LocalDims.of(config, tp))
    read = [each["bytes"][tp.rank] * passes(config, each["name"]) for each in parameters]
    return {
        "rank": tp.rank,
        "weight_bytes": sum(each["bytes"][tp.rank] for each in parameters),
        "decode_weight_bytes": int(sum(read)),
        "state_bytes_per_sequence": spec.slot_bytes(dtype, state_dtype),
        "kv_bytes_per_token": spec.page_bytes(dtype, page_size=1),
    }


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def format_plan(report: dict[str, Any]) -> str:
    """`plan_report`'s result as text; layers that are split alike share a line."""
    model = report["model"]
    rounded = "" if report["weight_dtype"] == "auto" else f" (large ones {report['weight_dtype']})"
    header = (
        f"{model['family']}, {model['n_layers']} layers, d_model {model['d_model']}, d_inner "
        f"{model['d_inner']}, vocabulary {model['vocab_size']}; tp={report['tp']}, "
        f"{report['dtype']} weights{rounded}, {report['state_dtype']} SSM state"
    )
    sections = [
        format_table(("parameter", "count", "shape", "rule", "local shape", "bytes per rank"),
               _parameter_lines(report["parameters"])),
        _collective_section(report),
        _rank_section(report["ranks"]),
        f"whole model: {report['total']['parameters']:,} parameters, "
        f"{format_bytes(report['total']['weight_bytes'])}",
    ]  # fmt: skip
    return "\n\n".join([header, *sections])


def _rank_section(ranks: list[dict[str, Any]]) -> str:
    columns = ("weight_bytes", "decode_weight_bytes", "state_bytes_per_sequence",
               "kv_bytes_per_token")  # fmt: skip
    lines = [
        (str(rank["rank"]), *(format_bytes(rank[column]) for column in columns)) for rank in ranks
    ]
    titles = ("rank", "weights", "read per decode step", "state per sequence", "KV per token")
    return format_table(titles, lines)


def _parameter_lines(parameters: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """One line per kind of parameter: the same name in all layers and of all experts, the same
    shapes and rule."""
    kinds: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for parameter in parameters:
        generic = re.sub(r"^layers\.\d+\.", "layers.*.", parameter["name"])
        generic = ONE_OF_EXPERTS.sub(".experts.*.", generic)
        key = (generic, str(parameter["shape"]), parameter["rule"], str(parameter["local_shapes"]))
        kinds.setdefault(key, []).append(parameter)
    return [
        (
            name,
            str(len(members)),
            shape,
            rule,
            _distinct([str(local) for local in members[0]["local_shapes"]]),
            _distinct([format_bytes(len(members) * count) for count in members[0]["bytes"]]),
        )
        for (name, shape, rule, _), members in kinds.items()
    ]


def _distinct(values: list[str]) -> str:
    """One value if all ranks agree, else the values of runs of ranks: `A (0-2), B (3)`."""
    if len(set(values)) == 1:
        return values[0]
    runs: list[tuple[str, int, int]] = []
    for rank, value in enumerate(values):
        if runs and runs[-1][0] == value:
            runs[-1] = (value, runs[-1][1], rank)
        else:
            runs.append((value, rank, rank))
    return ", ".join(
        f"{value} ({first}-{last})" if last > first else f"{value} ({first})"
        for value, first, last in runs
    )


def _collective_section(report: dict[str, Any]) -> str:
    if not report["collectives"]:
        return "collectives: none (one rank)"
    lines = [
        (each["name"], each["operation"], str(each["layers"]), str(each["ranks"]),
         str(each["elements"]), format_bytes(each["bytes"]), each["per"])
        for each in report["collectives"]
    ]  # fmt: skip
    columns = ("collective", "operation", "count", "ranks", "elements", "bytes", "per")
    total = report["per_token"]
    return format_table(columns, lines) + (
        f"\nper decoded token: {total['collectives']} collectives, {total['elements']:,} elements, "
        f"{format_bytes(total['bytes'])}"
    )


def format_table(columns: tuple[str, ...], lines: Sequence[tuple[str, ...]]) -> str:
    """Columns as wide as their widest cell, under their titles."""
    widths = [max(len(line[index]) for line in [columns, *lines]) for index in range(len(columns))]
    rows = [columns, tuple("-" * width for width in widths), *lines]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def format_bytes(count: int) -> str:
    """Bytes in binary units, three digits."""
    value, unit = float(count), "B"
    for larger in ("KiB", "MiB", "GiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{count} B" if unit == "B" else f"{value:.2f} {unit}"
