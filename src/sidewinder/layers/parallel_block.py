"""A Mamba-2 mixer and attention side by side (Falcon-H1), on one rank.

Both read one normed stream, and their results are added: a rank adds its terms of both projections
first, so that one sum over ranks, at the mixer's site, serves both.
"""

from copy import copy

from torch import Tensor

from sidewinder.collectives.base import Pending
from sidewinder.layers.attention import Attention
from sidewinder.layers.gated_output import NormedOutput
from sidewinder.layers.mamba2 import Mamba2Mixer
from sidewinder.layers.rotary import Rotation
from sidewinder.ops.add_rows import add_rows
from sidewinder.state.batch import Sequences
from sidewinder.state.decode_index import DecodeIndex
from sidewinder.state.kv import PagedKV
from sidewinder.state.kv_index import KVIndex
from sidewinder.state.pool import LayerState
from sidewinder.state.prompt_index import PromptIndex

Attends = tuple[PagedKV, int, KVIndex | DecodeIndex | PromptIndex, Rotation | None]
"""What attention needs beside its input: see `Attention`."""


class ParallelBlock:
    """`mixer(hidden) + attention(hidden)`.

    Args:
        mixer: whose norm, if it has one, is complete before its projection (`gated_output`).
        attention: of the same collectives.
    """

    def __init__(self, mixer: Mamba2Mixer, attention: Attention) -> None:
        assert isinstance(mixer.output, NormedOutput), "the sum cannot be scaled for one of both"
        self.mixer, self.output, self.attention = mixer, mixer.output, attention
        self.projection = copy(mixer.output.out_proj)
        if attention.o.bias is not None:
            of_mixer = mixer.output.out_proj.bias
            both = attention.o.bias if of_mixer is None else attention.o.bias + of_mixer
            self.projection.bias = both

    def __call__(
        self, hidden: Tensor, state: LayerState, seqs: Sequences, attends: Attends
    ) -> Tensor:
        """The layer's delta `[T, d_model]` from the normed `hidden` `[T, d_model]`."""
        return self.projection.delta(self._partial(hidden, state, seqs, attends), seqs)

    def start(
        self, hidden: Tensor, state: LayerState, seqs: Sequences, attends: Attends
    ) -> Pending:
        """The call, with its sum begun."""
        return self.projection.start_delta(self._partial(hidden, state, seqs, attends), seqs)

    def _partial(
        self, hidden: Tensor, state: LayerState, seqs: Sequences, attends: Attends
    ) -> Tensor:
        """This rank's terms of both, `[T, d_model]`."""
        scanned = self.output.partial(*self.mixer.scanned(hidden, state, seqs))
        return add_rows(scanned, self.attention.partial(hidden, *attends))
