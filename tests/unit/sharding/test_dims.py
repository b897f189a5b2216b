"""Local sizes and shares of every family."""

from dataclasses import replace

import pytest

from sidewinder.parallel.group import TensorParallel
from sidewinder.sharding.dims import LocalDims, attention_shares, check_tp, largest_tp
from sidewinder.testing import TINY, tiny_config


def all_ranks(config, size):
    return [LocalDims.of(config, TensorParallel(rank, size)) for rank in range(size)]


@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize("family", TINY)
def test_shares_add_up(family, size):
    config = tiny_config(family)
    ranks = all_ranks(config, size)
    assert sum(dims.d_inner_local for dims in ranks) == config.d_inner
    assert sum(dims.vocab_local for dims in ranks) == config.vocab_size
    assert all(dims.vocab_sizes[dims.tp.rank] == dims.vocab_local for dims in ranks)
    if config.attention is not None:
        assert sum(dims.n_kv_heads_local for dims in ranks) == config.attention.n_kv_heads
        assert sum(dims.n_attention_heads_local for dims in ranks) == config.attention.n_heads
    if config.mlp is not None:
        assert sum(dims.d_ff_local for dims in ranks) == config.mlp.d_ff


@pytest.mark.parametrize("family", ["mamba", "falcon_mamba"])
def test_one_head_sums_x_proj_over_all_ranks(family):
    for dims in all_ranks(tiny_config(family), 3):
        assert dims.x_proj_partition == ((0, 1, 2),)
        assert [(piece.head, piece.start) for piece in dims.head_pieces] == [(0, 0)]
        assert dims.head_pieces[0].stop == dims.d_inner_local == dims.conv_dim_local


@pytest.mark.parametrize(
    ("heads", "size", "partition", "pieces"),
    [
        # Each rank: (head, local start, local stop) of its pieces; 48 channels.
        (2, 2, ((0,), (1,)), [[(0, 0, 24)], [(1, 0, 24)]]),
        (2, 4, ((0, 1), (2, 3)), [[(0, 0, 12)], [(0, 0, 12)], [(1, 0, 12)], [(1, 0, 12)]]),
        (4, 2, ((0,), (1,)), [[(0, 0, 12), (1, 12, 24)], [(2, 0, 12), (3, 12, 24)]]),
        (4, 3, ((0,), (1,), (2,)), [[(0, 0, 12), (1, 12, 24)], [(2, 0, 12)], [(3, 0, 12)]]),
        (2, 3, ((0, 1, 2),), [[(0, 0, 16)], [(0, 0, 8), (1, 8, 16)], [(1, 0, 16)]]),
    ],
)
def test_zamba_follows_its_mamba_heads(heads, size, partition, pieces):
    ranks = all_ranks(tiny_config("zamba", n_mamba_heads=heads), size)
    for dims, expected in zip(ranks, pieces, strict=True):
        assert dims.x_proj_partition == partition
        found = [(piece.head, piece.start, piece.stop) for piece in dims.head_pieces]
        assert found == expected


def test_zamba_x_proj_heads_are_those_of_the_group():
    aligned = all_ranks(tiny_config("zamba"), 4)
    assert [(dims.x_proj_heads.start, dims.x_proj_heads.stop) for dims in aligned] == [
        (0, 1), (0, 1), (1, 2), (1, 2)]  # fmt: skip
    across = all_ranks(tiny_config("zamba"), 3)
    assert {(dims.x_proj_heads.start, dims.x_proj_heads.stop) for dims in across} == {(0, 2)}


@pytest.mark.parametrize(
    ("groups", "size", "local_groups", "head_groups"),
    [
        (2, 2, [(0, 1), (1, 2)], [(0, 0, 0, 0), (0, 0, 0, 0)]),
        (2, 3, [(0, 1), (0, 2), (1, 2)], [(0, 0, 0), (0, 1, 1), (0, 0)]),
        (1, 3, [(0, 1), (0, 1), (0, 1)], [(0, 0, 0), (0, 0, 0), (0, 0)]),
        (4, 3, [(0, 2), (1, 3), (3, 4)], [(0, 0, 1), (0, 1, 1), (0, 0)]),
        (8, 2, [(0, 4), (4, 8)], [(0, 1, 2, 3), (0, 1, 2, 3)]),
    ],
)
def test_mamba2_keeps_the_groups_its_heads_use(groups, size, local_groups, head_groups):
    config = tiny_config("mamba2", n_groups=groups)
    ranks = all_ranks(config, size)
    assert [(dims.groups.start, dims.groups.stop) for dims in ranks] == local_groups
    assert [dims.head_group for dims in ranks] == head_groups
    for dims in ranks:
        assert dims.d_inner_local == dims.n_heads_local * config.head_dim
        bands = 2 * dims.n_groups_local * config.d_state
        assert dims.conv_dim_local == dims.d_inner_local + bands


def test_key_value_heads_go_with_their_queries():
    config = tiny_config("zamba", num_key_value_heads=2, num_attention_heads=4)
    assert [dims.n_attention_heads_local for dims in all_ranks(config, 2)] == [2, 2]


@pytest.mark.parametrize(
    ("size", "kv_heads", "queries"),
    [
        (1, [(0, 2)], [12]),
        (2, [(0, 1), (1, 2)], [6, 6]),
        (3, [(0, 1), (0, 1), (1, 2)], [3, 3, 6]),
        (4, [(0, 1), (0, 1), (1, 2), (1, 2)], [3, 3, 3, 3]),
        (5, [(0, 1)] * 3 + [(1, 2)] * 2, [2, 2, 2, 3, 3]),
        (12, [(0, 1)] * 6 + [(1, 2)] * 6, [1] * 12),
    ],
)
def test_more_ranks_than_key_value_heads_share_them(size, kv_heads, queries):
    config = tiny_config(
        "bamba", num_attention_heads=12, num_key_value_heads=2, hidden_size=48, mamba_n_heads=12
    )
    ranks = all_ranks(config, size)
    assert [(dims.kv_heads.start, dims.kv_heads.stop) for dims in ranks] == kv_heads
    assert [dims.n_attention_heads_local for dims in ranks] == queries
    _, shares = attention_shares(config.attention, size)
    assert [share.start for share in shares] == [0, *(share.stop for share in shares[:-1])]
    assert shares[-1].stop == 12


@pytest.mark.parametrize(
    ("family", "overrides", "size", "valid"),
    [
        ("mamba2", {}, 9, "8 SSM heads.*1 to 8"),
        ("zamba", {}, 5, "4 attention heads.*1 to 4"),
        ("zamba", {"num_attention_heads": 1, "num_key_value_heads": 1}, 2, "valid tp: 1"),
        ("zamba2", {}, 5, "8 SSM heads, 4 attention heads, d_ff 44.*1 to 4"),
        ("bamba", {}, 9, "8 SSM heads, 8 attention heads, d_ff 44.*1 to 8"),
        ("bamba", {"attn_layer_indices": []}, 9, "8 SSM heads, d_ff 44.*1 to 8"),
        ("bamba", {"num_attention_heads": 6, "num_key_value_heads": 2}, 7, "6 attention.*1 to 6"),
        ("nemotron_h", {}, 9, "8 SSM heads, 8 attention heads, d_ff 44.*1 to 8"),
        ("falcon_h1", {}, 9, "8 SSM heads, 8 attention heads, d_ff 44.*1 to 8"),
        ("granite_experts", {"intermediate_size": 3}, 4, "' d_ff 3, d_ff 36 beside.*1 to 3"),
        ("nemotron_experts", {"moe_shared_expert_intermediate_size": 2}, 3, "d_ff 2 bes.*1 to 2"),
        ("jamba", {}, 9, "80 channels, 8 attention heads, d_ff 44.*1 to 8"),
        ("jamba_experts", {"intermediate_size": 3}, 4, "d_ff 3, experts' d_ff 3\\).*1 to 3"),
        ("mamba", {}, 49, "48 channels.*1 to 48"),
        ("mamba", {"vocab_size": 9}, 10, "vocabulary 9.*1 to 9"),
        ("mamba", {}, 0, "1 to 48"),
    ],
)
def test_too_many_ranks_name_the_valid_sizes(family, overrides, size, valid):
    with pytest.raises(ValueError, match=rf"tp={size} does not fit .*{valid}$"):
        check_tp(tiny_config(family, **overrides), size)


def test_every_valid_size_leaves_nobody_empty():
    for family in TINY:
        config = replace(tiny_config(family), vocab_size=37)
        for size in range(1, largest_tp(config) + 1):
            for dims in all_ranks(config, size):
                assert dims.vocab_local > 0
                assert dims.d_inner_local > 0
                assert config.mlp is None or dims.d_ff_local > 0
                assert config.attention is None or dims.n_kv_heads_local > 0
