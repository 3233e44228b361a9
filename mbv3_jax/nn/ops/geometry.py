"""The static part of a convolution: padding, strides, and which input each kernel tap reads.

XLA's own convolution and its gradients are methods of `Geometry`.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp

from mbv3_jax.arch.spec import PADDINGS
from mbv3_jax.core.checks import choose


def pad_amounts(
    size: int, *, kernel: int, stride: int, dilation: int, padding: str
) -> tuple[int, int]:
    """The number of zeros before and after one spatial dimension.

    "same" is TensorFlow's padding: ceil(size / stride) outputs, and an odd zero goes to the end, so
    that an even size is padded asymmetrically at stride 2. "symmetric" is PyTorch's
    `padding=dilation * (kernel - 1) // 2` on both sides. The two agree at stride 1.

    Raises:
      ValueError: `padding` is neither.
    """
    choose("padding", padding, PADDINGS)
    reach = dilation * (kernel - 1)
    if padding == "same":
        outputs = -(-size // stride)
        total = max((outputs - 1) * stride + reach + 1 - size, 0)
        return total // 2, total - total // 2
    return reach // 2, reach // 2


def pad_image(x: jax.Array, pads: Sequence[tuple[int, int]]) -> jax.Array:
    """[N, H, W, C] with zeros around height and width: `pads` is (before, after) of each.

    The barrier keeps XLA from undoing the padding for the taps that stay inside the image: it
    would then compute `x` a second time in the loop that uses it.
    """
    if not any(map(any, pads)):
        return x
    return jax.lax.optimization_barrier(jnp.pad(x, ((0, 0), *pads, (0, 0))))


@dataclasses.dataclass(frozen=True)
class Geometry:
    """How a kernel moves over images of one size; pairs are (height, width).

    Attributes:
      size: of the images.
      kernel: of the kernel.
      stride: the same in both directions.
      dilation: distance of neighbouring taps, the same in both directions.
      pads: zeros (before, after) along height and along width.
    """

    size: tuple[int, int]
    kernel: tuple[int, int]
    stride: int
    dilation: int
    pads: tuple[tuple[int, int], tuple[int, int]]

    @classmethod
    def of(
        cls, x: jax.Array, kernel: jax.Array, stride: int, padding: str, dilation: int = 1
    ) -> "Geometry":
        """The geometry for x [N, H, W, C] and a kernel [k, k, in, out].

        Raises:
          ValueError: see `pad_amounts`.
        """
        (height, width), (rows, columns) = x.shape[1:3], kernel.shape[:2]

        def pads(size: int, taps: int) -> tuple[int, int]:
            return pad_amounts(size, kernel=taps, stride=stride, dilation=dilation, padding=padding)

        return cls(
            size=(height, width),
            kernel=(rows, columns),
            stride=stride,
            dilation=dilation,
            pads=(pads(height, rows), pads(width, columns)),
        )

    def trim(self, kernel: jax.Array) -> tuple["Geometry", jax.Array]:
        """The same convolution without the outer taps that read only padding.

        On a map of 1x1 only the middle one of 5x5 taps reads a pixel, on 2x2 the middle 3x3.

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
            # Removing a tap removes the padding that only it reads.
            first = min(used[0], before // self.dilation)
            surplus = min(k - 1 - used[-1], after // self.dilation)
            spans.append(slice(first, k - surplus))
            pads.append((before - first * self.dilation, after - surplus * self.dilation))
        kernel = kernel[tuple(spans)]
        trimmed = dataclasses.replace(
            self, kernel=(kernel.shape[0], kernel.shape[1]), pads=(pads[0], pads[1])
        )
        return trimmed, kernel

    def outputs(self) -> tuple[int, int]:
        """Height and width of the convolution's output."""
        height, width = (
            (size + sum(pad) - self.dilation * (k - 1) - 1) // self.stride + 1
            for size, pad, k in zip(self.size, self.pads, self.kernel, strict=True)
        )
        return height, width

    def convolve(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
        """XLA's convolution of x [N, H, W, C] by a kernel [k, k, in, out], where `in` may be C or,
        for a grouped (depthwise) convolution, a part of it."""
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

    def input_gradient(self, g: jax.Array, kernel: jax.Array) -> jax.Array:
        """XLA's gradient of a depthwise `convolve` by its input, as autodiff makes it.

        g [N, H', W', C], kernel [k, k, 1, C] -> [N, H, W, C].
        """
        shape = jax.ShapeDtypeStruct((g.shape[0], *self.size, g.shape[3]), g.dtype)
        return jax.linear_transpose(lambda x: self.convolve(x, kernel), shape)(g)[0]

    def kernel_gradient(self, x: jax.Array, g: jax.Array) -> jax.Array:
        """XLA's gradient of a depthwise `convolve` by its kernel, as autodiff makes it.

        x [N, H, W, C], g [N, H', W', C] -> [k, k, 1, C] in the type of `x`.
        """
        shape = jax.ShapeDtypeStruct((*self.kernel, 1, x.shape[3]), x.dtype)
        return jax.linear_transpose(lambda kernel: self.convolve(x, kernel), shape)(g)[0]

    def pad(self, x: jax.Array) -> jax.Array:
        """[N, H, W, C] with the convolution's zeros around it."""
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
        """Which tap reads which input, along one dimension.

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
