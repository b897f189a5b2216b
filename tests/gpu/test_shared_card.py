"""Ranks that share one card: symmetric memory, quantised sums, and both in CUDA graphs."""

import pytest
import torch

from sidewinder.parallel.devices import SHARE_VARIABLE
from sidewinder.parallel.process_executor import ProcessExecutor

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.xdist_group("shared_card"),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture(scope="module", params=[2, 4])
def ranks(request):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(SHARE_VARIABLE, "1")
        executor = ProcessExecutor(
            request.param, "gpu_toys:build_toy", None, None, device="cuda", transport="staged"
        )
        yield executor
        executor.close()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_sums(ranks, dtype):
    ranks.call("check_sums", dtype)


def test_gathers_and_exchanges(ranks):
    ranks.call("check_gathers")


@pytest.mark.parametrize("codec", ["int8", "int6", "int4"])
def test_quantised_sums(ranks, codec):
    ranks.call("check_codec", codec)


@pytest.mark.parametrize("codec", ["int8", "int4"])
def test_quantised_sums_in_a_graph_normed_and_not(ranks, codec):
    if "symmetric memory" not in ranks.call("path"):
        pytest.skip("ranks cannot share this card's memory: no CUDA IPC")
    ranks.call("check_normed", codec)


def test_sums_in_a_graph(ranks):
    if "symmetric memory" not in ranks.call("path"):
        pytest.skip("ranks cannot share this card's memory: no CUDA IPC")
    ranks.call("check_graph")
