"""The codecs: how many bits, how many elements share a scale, how many bytes on the wire.

A `[rows, width]` tensor is cut into groups of `group_size` elements that lie inside rows; the last
group of a row is filled up with zeros. Groups are numbered row by row. A *stripe* is a run of
consecutive groups, and travels as one message:

    payload of every group (`payload_bytes` each) | scale of every group (`scale_bytes` each)

Stripes of one tensor are equally long: groups beyond the last row are zeros.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Codec:
    """One format; see `reference` for its arithmetic.

    Attributes:
        name: as users write it.
        bits: of one element; 16 is bfloat16 without scales.
        group_size: elements that share a scale, a bfloat16.
    """

    name: str
    bits: int
    group_size: int

    @property
    def payload_bytes(self) -> int:
        """Bytes of a group's elements."""
        return self.group_size * self.bits // 8

    @property
    def scale_bytes(self) -> int:
        """Bytes of a group's scale."""
        return 0 if self.bits == 16 else 2

    @property
    def group_bytes(self) -> int:
        """Bytes of a group on the wire."""
        return self.payload_bytes + self.scale_bytes

    @property
    def levels(self) -> int:
        """Integers run from `-levels` to `levels - 1`."""
        return 1 << (self.bits - 1)

    def groups_per_row(self, width: int) -> int:
        """Groups of one row, the last of which may be shorter."""
        return -(-width // self.group_size)

    def stripe_groups(self, rows: int, width: int, stripes: int) -> int:
        """Groups of each of `stripes` equal stripes of a `[rows, width]` tensor."""
        return -(-rows * self.groups_per_row(width) // stripes)

    def stripe_bytes(self, rows: int, width: int, stripes: int) -> int:
        """Bytes of each of `stripes` equal stripes of a `[rows, width]` tensor."""
        return self.stripe_groups(rows, width, stripes) * self.group_bytes


CODECS = {
    codec.name: codec
    for codec in (
        Codec("bf16", 16, 32),
        Codec("int8", 8, 128),
        Codec("int6", 6, 32),
        Codec("int4", 4, 32),
    )
}
"""Every codec by name."""
