"""Memory of recorded steps: stays, and is given again once nobody sees it."""

import torch

from sidewinder.ops.workspace import Workspace, empty, results_in


def test_memory_that_is_seen_is_not_given_again():
    workspace = Workspace()
    first = workspace.empty((4, 8), torch.float32).fill_(1)
    part = first[1:, ::2]
    address = first.data_ptr()
    del first
    second = workspace.empty((4, 8), torch.float32).fill_(2)
    assert second.data_ptr() != address
    assert (part == 1).all()


def test_memory_that_nobody_sees_is_given_again():
    workspace = Workspace()
    first = workspace.empty((4, 8), torch.float32)
    address = first.view(-1)[3:].data_ptr() - 12
    del first
    second = workspace.empty((2, 8), torch.bfloat16)
    assert second.data_ptr() == address
    assert (second.shape, second.dtype) == ((2, 8), torch.bfloat16)


def test_the_smallest_block_that_fits_is_taken():
    workspace = Workspace()
    sizes = (30_000, 10_000, 20_000)
    blocks = [workspace.empty((size,), torch.uint8) for size in sizes]
    address = blocks[2].data_ptr()
    blocks.clear()
    before = workspace.nbytes
    assert workspace.empty((10_001,), torch.uint8).data_ptr() == address
    assert workspace.nbytes == before


def test_results_lie_in_the_workspace_only_inside():
    workspace = Workspace()
    with results_in(workspace):
        inside = empty((3, 5), torch.float32)
    outside = empty((3, 5), torch.float32)
    assert inside.shape == outside.shape == (3, 5)
    assert workspace.nbytes > 0
    inside.zero_()
    assert inside.data_ptr() != outside.data_ptr()


def test_nothing_needs_no_memory():
    workspace = Workspace()
    assert workspace.empty((0, 7), torch.float32).shape == (0, 7)
    assert workspace.nbytes == 0
