"""Attention over pages: Triton's kernels and torch's version against the definition."""

import pytest
import torch
from ops_cases import make_case
from triton_cases import DTYPES, TOLERANCE, on_device, overridden

from sidewinder.ops.paged_attention import reference, triton, vectorized
from sidewinder.testing import assert_close

IMPLEMENTATIONS = {"torch": vectorized, "triton": triton}


@DTYPES
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("split", [16, 2], ids="splits of {}".format)
@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim"), [(2, 2, 29), (4, 2, 8), (4, 1, 128), (1, 1, 464)], ids=str
)
def test_is_the_reference_over_scattered_places(
    dtype, split, implementation, heads, kv_heads, head_dim
):
    case = make_case([1], seed=head_dim)
    lengths = torch.tensor([1, 37, 16])
    n_places, longest = 64, 48
    k = case.randn(n_places, kv_heads, head_dim, dtype=dtype)
    v = case.randn(n_places, kv_heads, head_dim, dtype=dtype)
    places = torch.randperm(n_places - 1, generator=case.generator)[:longest]
    read = places.repeat(3, 1)
    # Beyond a sequence's length the table may name what holds no numbers.
    read[torch.arange(longest) >= lengths[:, None]] = n_places - 1
    k[-1] = v[-1] = torch.nan
    q = case.strided(3, heads, head_dim, dtype=dtype)
    k[places[36]] = 0.2 * q[1, :kv_heads]  # The last token's score is the largest.
    arguments = {
        "q": q,
        "k": k,
        "v": v,
        "read": read,
        "lengths": lengths,
        "scale": (head_dim / 2) ** -0.5,
    }
    expected = reference.paged_attention(**arguments)
    with overridden(paged_attention={"split": split, "tile": 256}):
        result = on_device(IMPLEMENTATIONS[implementation].paged_attention, **arguments)
    assert_close("y", expected, result, TOLERANCE[dtype])
