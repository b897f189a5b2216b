"""The ways of finishing a Mamba-2 mixer: the same values whatever the ranks, few collectives."""

import pytest
import torch

from sidewinder.layers.gated_output import gated_output
from sidewinder.layers.weights import Weights
from sidewinder.ops.gated_rms_norm.reference import gated_rms_norm
from sidewinder.ops.with_scalar import with_scalar
from sidewinder.sharding.dims import LocalDims
from sidewinder.state.batch import pack
from sidewinder.testing import assert_close, run_ranks, tiny_config

SEQS = pack([[0] * 3], [0]).seqs


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("n_groups", "size", "way"),
    [
        (1, 1, "WholeGroupsOutput"),
        (2, 2, "WholeGroupsOutput"),
        (4, 2, "WholeGroupsOutput"),
        (1, 2, "OneGroupOutput"),
        (1, 3, "OneGroupOutput"),
        (2, 3, "CutGroupsOutput"),
        (2, 4, "CutGroupsOutput"),
    ],
)
def test_every_way_is_the_plain_norm_and_projection(n_groups, size, way, bias):
    config = tiny_config("mamba2", n_groups=n_groups, use_bias=bias)
    d = config.d_inner
    x, z = torch.randn(3, d) * 3, torch.randn(3, d)
    norm, projection, offset = torch.randn(d), torch.randn(config.d_model, d), torch.randn(24)
    normed = gated_rms_norm(x, z, norm, config.norm_eps, d // n_groups)
    expected = normed @ projection.T + offset * bias

    def rank(tp, collectives):
        dims = LocalDims.of(config, tp)
        mine = slice(dims.channels.start, dims.channels.stop)
        tensors = {"norm.weight": norm[mine], "out_proj.weight": projection[:, mine].contiguous()}
        if bias:
            tensors["out_proj.bias"] = offset
        output = gated_output(config, dims, Weights(tensors), collectives)
        assert type(output).__name__ == way
        return output(x[:, mine], z[:, mine], SEQS)

    for result in run_ranks(size, rank):
        assert_close("delta", expected, result, 1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_scalar_travels_in_a_narrow_message_without_losing_precision(dtype):
    partial, scalar = torch.randn(3, 5, 8).to(dtype), torch.rand(3, 5, 1) * 7

    def rank(tp, collectives):
        message = with_scalar(partial[tp.rank], scalar[tp.rank], 1.0, tp.rank, tp.size)
        total = collectives.all_reduce(message)
        return total[:, :8], total[:, 8:].float().sum(1, keepdim=True)

    for total, summed in run_ranks(3, rank):
        assert total.dtype == dtype
        assert_close("partial", partial.double().sum(0), total, 2**-7)
        assert_close("scalar", scalar.double().sum(0), summed, 2e-5)
