"""The static part of a convolution: padding, strides, and which input each tap sees."""

import dataclasses
from collections.abc import Iterator

import jax
import jax.numpy as jnp

PADDINGS = ("same", "symmetric")


def pad_amounts(
    size: int, *, kernel: int, stride: int, dilation: int, padding: str
) -> tuple[int, int]:
    """Zeros to put before and after one spatial dimension.

    "same" is TensorFlow's: ceil(size / stride) outputs, the odd zero at the end, so that an even
    size is padded asymmetrically at stride 2. "symmetric" is PyTorch's `padding=dilation *
    (kernel - 1) // 2` on both sides. The two agree at stride 1.

    Raises:
      ValueError: `padding` is neither.
    """
    reach = dilation * (kernel - 1)
    if padding == "same":
        outputs = -(-size // stride)
        total = max((outputs - 1) * stride + reach + 1 - size, 0)
        return total // 2, total - total // 2
    if padding == "symmetric":
        return reach // 2, reach // 2
    listed = ", ".join(repr(p) for p in PADDINGS)
    raise ValueError(f"padding: got {padding!r}, expected one of {listed}")


def pad_image(x: jax.Array, pads) -> jax.Array:
    """Zeros around the height and width of [N, H, W, C].

    The barrier keeps XLA from undoing the padding for the taps that stay inside the image: it
    would then compute whatever made `x` a second time in the loop that uses it.
    """
    if not any(map(any, pads)):
        return x
    return jax.lax.optimization_barrier(jnp.pad(x, ((0, 0), *pads, (0, 0))))


@dataclasses.dataclass(frozen=True)
class Geometry:
    """How a kernel moves over images of one size; lengths along height and width.

    `size` is the images', `kernel` the kernel's, `pads` the zeros (before, after).
    """

    size: tuple[int, int]
    kernel: tuple[int, int]
    stride: int
    dilation: int
    pads: tuple[tuple[int, int], tuple[int, int]]

    @classmethod
    def of(cls, x, kernel, stride: int, padding: str, dilation: int = 1) -> "Geometry":
        """For x [N, H, W, C] and a kernel [k, k, in, out].

        Raises:
          ValueError: see `pad_amounts`.
        """
        pads = tuple(
            pad_amounts(size, kernel=k, stride=stride, dilation=dilation, padding=padding)
            for size, k in zip(x.shape[1:3], kernel.shape[:2], strict=True)
        )
        return cls(x.shape[1:3], kernel.shape[:2], stride, dilation, pads)

    def trim(self, kernel: jax.Array) -> tuple["Geometry", jax.Array]:
        """The same convolution without the outer taps that see nothing but padding.

        On a map of 1x1 only the middle one of 5x5 taps does anything, on 2x2 the middle 3x3.

        Args:
          kernel: [k, k, in, out].

        Returns:
          The geometry of the smaller kernel, and that kernel.
        """
        spans, pads = [], []
        lengths = zip(self.size, self.kernel, self.pads, self.outputs(), strict=True)
        for size, k, (before, after), outputs in lengths:
            starts = [i * self.dilation - before for i in range(k)]
            used = [
                i
                for i, start in enumerate(starts)
                if any(0 <= start + o * self.stride < size for o in range(outputs))
            ] or [0, k - 1]
            # A tap goes together with its part of the padding.
            first = min(used[0], before // self.dilation)
            surplus = min(k - 1 - used[-1], after // self.dilation)
            spans.append(slice(first, k - surplus))
            pads.append((before - first * self.dilation, after - surplus * self.dilation))
        kernel = kernel[tuple(spans)]
        return dataclasses.replace(self, kernel=kernel.shape[:2], pads=tuple(pads)), kernel

    def outputs(self) -> tuple[int, int]:
        """Height and width of what the convolution returns."""
        return tuple(
            (size + sum(pad) - self.dilation * (k - 1) - 1) // self.stride + 1
            for size, pad, k in zip(self.size, self.pads, self.kernel, strict=True)
        )

    def convolve(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
        """XLA's convolution; depthwise where the kernel has one input channel."""
        groups = x.shape[3] // kernel.shape[2]
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            (self.stride, self.stride),
            self.pads,
            rhs_dilation=(self.dilation, self.dilation),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )

    def pad(self, x: jax.Array) -> jax.Array:
        """[N, H, W, C] with the convolution's zeros around."""
        return pad_image(x, self.pads)

    def views(self, padded: jax.Array) -> Iterator[tuple[tuple[int, int], jax.Array]]:
        """Yields each tap (i, j) and the [N, H', W', C] part of `padded` that it multiplies."""
        last = [(o - 1) * self.stride for o in self.outputs()]
        for i in range(self.kernel[0]):
            for j in range(self.kernel[1]):
                top, left = i * self.dilation, j * self.dilation
                yield (
                    (i, j),
                    jax.lax.slice(
                        padded,
                        (0, top, left, 0),
                        (padded.shape[0], top + last[0] + 1, left + last[1] + 1, padded.shape[3]),
                        (1, self.stride, self.stride, 1),
                    ),
                )

    def phases(self, axis: int) -> tuple[list[int], list[list[int | None]]]:
        """Which tap reaches which input, along one dimension.

        Input stride * q + phase receives tap i of output q + offset where stride * offset =
        phase + pad - dilation * i.

        Returns:
          The offsets that occur, and for each the tap (or None) of every phase.
        """
        tap_at = {}
        for phase in range(self.stride):
            for tap in range(self.kernel[axis]):
                offset, rest = divmod(phase + self.pads[axis][0] - self.dilation * tap, self.stride)
                if rest == 0:
                    tap_at[offset, phase] = tap
        offsets = sorted({offset for offset, _ in tap_at})
        return offsets, [[tap_at.get((o, p)) for p in range(self.stride)] for o in offsets]
