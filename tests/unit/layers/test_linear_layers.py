import pytest
import torch

from sidewinder.collectives.base import SingleRank
from sidewinder.layers.embedding import VocabParallelEmbedding, VocabParallelLogits
from sidewinder.layers.linear import ColumnParallelLinear, RowParallelLinear
from sidewinder.layers.weights import Weights
from sidewinder.sharding.shares import split_units
from sidewinder.state.batch import pack
from sidewinder.testing import assert_close, run_ranks

SEQS = pack([[0] * 5], [0]).seqs


def test_weights_are_seen_by_the_rest_of_their_names():
    weights = Weights({"layers.1.mixer.D": torch.ones(2)}).under("layers.1").under("mixer")
    assert weights.name == "layers.1.mixer"
    assert torch.equal(weights["D"], torch.ones(2))
    assert weights.get("conv.bias") is None
    with pytest.raises(KeyError, match=r"layers\.1\.mixer\.A_log"):
        weights["A_log"]


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("biased", [True, False])
def test_columns_then_rows_are_the_plain_product_with_each_bias_once(size, biased):
    x = torch.randn(5, 6)
    up, down = torch.randn(7, 6), torch.randn(4, 7)
    up_bias, down_bias = torch.randn(7), torch.randn(4)
    expected = x @ up.T + up_bias * biased
    expected = expected @ down.T + down_bias * biased

    def rank(tp, collectives):
        share = split_units(7, size)[tp.rank]
        mine = slice(share.start, share.stop)
        tensors = {"up.weight": up[mine], "down.weight": down[:, mine].contiguous()}
        if biased:
            tensors |= {"up.bias": up_bias[mine], "down.bias": down_bias}
        weights = Weights(tensors)
        hidden = ColumnParallelLinear(weights.under("up"))(x)
        return RowParallelLinear(weights.under("down"), collectives)(hidden, SEQS)

    for result in run_ranks(size, rank):
        assert_close("y", expected, result, 1e-5)


@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_embedding_over_ranks_is_exact_and_logits_are_whole(size, dtype):
    table = torch.randn(11, 6).to(dtype)
    token_ids = torch.tensor([0, 10, 3, 5, 7, 10])
    rows = split_units(11, size)

    def rank(tp, collectives):
        share = rows[tp.rank]
        mine = table[share.start : share.stop]
        sizes = [other.size for other in rows]
        embedded = VocabParallelEmbedding(mine, share, collectives)(token_ids)
        return embedded, VocabParallelLogits(mine, sizes, collectives)(embedded)

    for embedded, logits in run_ranks(size, rank):
        assert torch.equal(embedded, table[token_ids])
        assert logits.dtype == torch.float32
        assert_close("logits", (table[token_ids].double() @ table.double().T), logits, 2**-8)


def test_one_rank_needs_no_sum():
    x = torch.randn(5, 3)
    weights = Weights({"weight": torch.eye(3)})
    assert torch.equal(RowParallelLinear(weights, SingleRank())(x, SEQS), x)
