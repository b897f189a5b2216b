"""Queries, keys and positions for the tests of rotary positions, and what they turn into."""

import torch
from ops_cases import make_case

POSITIONS = (0, 1, 1000, 105_616, 131_071, 1_048_575, 2**24 - 1)
"""Also where fast sines are wrong, and the last that float32 holds."""
SIZES = ((4, 2, 8, 4), (1, 1, 5, 2), (3, 1, 70, 33), (8, 8, 6, 3), (2, 1, 520, 260))
"""Heads, key-value heads, width, pairs."""


def make_rotary(heads, kv_heads, width, pairs, dtype, seed=0, positions=POSITIONS):
    """The operator's arguments; rows lie apart, with NaN in between."""
    case = make_case([1], seed)
    rows = len(positions)
    return {
        "q": case.strided(rows, heads, width, dtype=dtype),
        "k": case.strided(rows, kv_heads, width, dtype=dtype),
        "positions": torch.tensor(positions),
        "frequencies": 10000.0 ** -(torch.arange(pairs) / pairs),
    }


def turned(q, k, positions, frequencies):
    """Copies of q and k in float64 as they should become, but for rounding: from angles in float32
    their exact cosines."""
    n = len(frequencies)
    angles = (positions[:, None, None].float() * frequencies).double()
    results = []
    for heads in (q.double(), k.double()):
        pairs = torch.complex(heads[..., :n], heads[..., n : 2 * n])
        pairs = pairs * torch.polar(torch.ones_like(angles), angles)
        results.append(torch.cat([pairs.real, pairs.imag, heads[..., 2 * n :]], dim=-1))
    return results


def assert_turned(arguments, before, tolerance):
    """The arguments, written in place, are what `before` should become; the rest is as it was."""
    n = 2 * len(arguments["frequencies"])
    for name, expected in zip("qk", turned(**before), strict=True):
        found = arguments[name].double()
        assert found.isfinite().all()
        error = (found - expected).abs() / expected.abs().clamp(min=1.0)
        assert error.max() <= tolerance, name
        assert torch.equal(arguments[name][..., n:], before[name][..., n:]), "did not stay"
        around = arguments[name].as_strided(
            (len(found), arguments[name].stride(0)), (arguments[name].stride(0), 1), 0
        )
        assert around[:, :3].isnan().all(), "written before the rows"
        assert around[:, -2:].isnan().all(), "written behind the rows"


def copied(arguments):
    """Tensors of their own, with the same strides."""
    copies = dict(arguments)
    for name in "qk":
        wide = arguments[name].untyped_storage().clone()
        copy = torch.empty(0, dtype=arguments[name].dtype).set_(wide)
        copies[name] = copy.as_strided(
            arguments[name].shape, arguments[name].stride(), arguments[name].storage_offset()
        )
    return copies
