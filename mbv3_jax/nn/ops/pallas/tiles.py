"""What the kernels share: the tile that a program owns, its memory, and which tap meets what."""

from collections import defaultdict
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from mbv3_jax.nn.ops.geometry import Geometry

ROWS = 4
COLUMNS = 8  # 112, 56, 28, 14 and 7 columns all fill at least 7 of 8
_CHANNELS = (64, 32, 16)


class Axis(NamedTuple):
    """One dimension of a sum: out[q * write + phase] += input[q * read + offset] * kernel[tap].

    `taps` lists (offset, phase, tap); there are `count` values of q and `out` outputs.
    """

    taps: tuple[tuple[int, int, int], ...]
    read: int
    write: int
    count: int
    out: int


def forward_axis(geometry: Geometry, axis: int) -> Axis:
    """Of the convolution: input is the image."""
    first, out = -geometry.pads[axis][0], geometry.outputs()[axis]
    taps = tuple((first + geometry.dilation * i, 0, i) for i in range(geometry.kernel[axis]))
    return Axis(taps, geometry.stride, 1, out, out)


def backward_axis(geometry: Geometry, axis: int) -> Axis:
    """Of the gradient by the input: input is the cotangent, phases interleave in the image."""
    taps = tuple(
        (offset, phase, tap)
        for offset, at in zip(*geometry.phases(axis), strict=True)
        for phase, tap in enumerate(at)
        if tap is not None
    )
    size, stride = geometry.size[axis], geometry.stride
    return Axis(taps, 1, stride, pl.cdiv(size, stride), size)


def users(rows: Axis, height: int) -> list[tuple[int, list[tuple[int, int, int]]]]:
    """[(position, [(r, phase, tap)])]: which of `height` rows of sums use each row of input."""
    found = defaultdict(list)
    for offset, phase, tap in rows.taps:
        for r in range(height):
            found[r * rows.read + offset].append((r, phase, tap))
    return sorted(found.items())


def by_offset(columns: Axis) -> list[tuple[int, list[tuple[int, int]]]]:
    """[(offset, [(phase, tap)])]: what a column of input is multiplied by."""
    taps = defaultdict(list)
    for offset, phase, tap in columns.taps:
        taps[offset].append((phase, tap))
    return sorted(taps.items())


def channel_block(channels: int) -> int:
    """The block that leaves the fewest channels idle, the largest of those."""
    return min(_CHANNELS, key=lambda block: pl.cdiv(channels, block) * block)


def compiler_params(block: int, *, values_a_thread: int) -> triton.CompilerParams:
    """So many threads that each has that many of a row's values, four (16 bytes) at most."""
    threads = COLUMNS * block // min(4, values_a_thread)
    return triton.CompilerParams(num_warps=max(1, threads // 32), num_stages=1)


class Memory(NamedTuple):
    """Images [N, H, W, C] in a reference of shape [N * H, W * C]."""

    ref: jax.Ref
    height: int
    width: int
    channels: int

    def places(
        self, column: jax.Array, channel: jax.Array, present: jax.typing.ArrayLike = True
    ) -> tuple[jax.Array, jax.Array]:
        """Where in a row of the reference these columns and channels are, and if they exist.

        Args:
          column: [COLUMNS], may lie outside of the image.
          channel: [block], may lie behind the last. Consecutive numbers, and seen to be: Triton
            loads several of them at once only then.
          present: whether the image exists.

        Returns:
          [COLUMNS, block] integers and booleans.
        """
        exists = (column >= 0) & (column < self.width)
        place = column[:, None] * self.channels + channel[None]
        return place, exists[:, None] & ((channel < self.channels) & present)[None]

    def load(self, image: jax.Array, row: jax.Array, places) -> jax.Array:
        """[COLUMNS, block] float32 of one row; zeros where there is nothing."""
        part, mask = self._part(image, row, places)
        return triton.load(part, mask=mask, other=0).astype(jnp.float32)

    def store(self, image: jax.Array, row: jax.Array, places, value: jax.Array) -> None:
        """Writes `value` [COLUMNS, block] to where it is in the image."""
        part, mask = self._part(image, row, places)
        triton.store(part, value.astype(self.ref.dtype), mask=mask)

    def _part(self, image, row, places):
        place, exists = places
        exists &= (row >= 0) & (row < self.height)
        return self.ref.at[image * self.height + row, place], exists
