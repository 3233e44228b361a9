"""The two padding conventions a MobileNet can come with."""

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
