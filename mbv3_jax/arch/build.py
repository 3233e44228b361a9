"""From a network's name and options to its spec; the order of edits is decided here."""

from collections.abc import Sequence

from mbv3_jax.arch import edits
from mbv3_jax.arch.spec import NetSpec
from mbv3_jax.arch.tables import TABLES
from mbv3_jax.arch.width import scale_width
from mbv3_jax.core.checks import Resolution, choose


def build(
    name: str,
    *,
    width: float = 1.0,
    width_rule: str = "slim",
    resolution: Resolution = 224,
    num_classes: int = 1000,
    in_channels: int = 3,
    padding: str = "same",
    nonlinearity: str = "paper",
    se: str = "paper",
    se_ratio: float | None = None,
    se_of: str | None = None,
    se_divisor: int | None = None,
    se_gate: str | None = None,
    stem_filters: int | None = None,
    stem_act: str | None = None,
    last_stage: str = "paper",
    kernels: str = "paper",
    expansions: Sequence[int] | None = None,
    shortcut: bool = True,
    head_filters: int | None = None,
    last_se: bool = False,
    bn_eps: float = 1e-3,
    bn_decay: float = 0.99,
    dropout: float = 0.2,
    drop_path: float = 0.0,
) -> NetSpec:
    """The spec of a published network with ablations applied.

    Channel counts (`stem_filters`, `expansions`, `head_filters`) are those at width 1.0; the
    width multiplier is applied last. None, "paper" and True keep what the paper's table says.

    Args:
      name: a key of `tables.TABLES`.
      width: multiplier of all channels; the paper has 0.35, 0.5, 0.75, 1.0 and 1.25 (figure 7).
      width_rule: which code base's rounding to use when width is not 1 (`width.WIDTH_RULES`).
      resolution: side of the square input in pixels, or (height, width); the paper has squares of
        96 to 256 (figure 7).
      num_classes: number of logits.
      in_channels: channels of the input.
      padding: "same" (TensorFlow, the paper's) or "symmetric" (PyTorch).
      nonlinearity: see `edits.nonlinearity`.
      se, se_ratio, se_of, se_divisor, se_gate: see `edits.squeeze_excite`.
      stem_filters, stem_act: see `edits.stem`.
      last_stage: see `edits.last_stage`.
      kernels: see `edits.kernels`.
      expansions: see `edits.expansions`.
      shortcut: see `edits.shortcut`.
      head_filters: see `edits.head_filters`.
      last_se: see `edits.last_se`.
      bn_eps, bn_decay, dropout, drop_path: see `spec.NetSpec`. The decay of 0.99 is the paper's.

    Raises:
      ValueError: an option's value is out of range; the message names the option and its choices.
    """
    spec = TABLES[choose("name", name, TABLES)]()
    spec = edits.last_stage(spec, last_stage)
    spec = edits.kernels(spec, kernels)
    spec = edits.squeeze_excite(
        spec, se, ratio=se_ratio, of=se_of, divisor=se_divisor, gate=se_gate
    )
    spec = edits.stem(spec, stem_filters)  # before "h_swish@N", which counts these filters
    spec = edits.expansions(spec, expansions)
    spec = edits.nonlinearity(spec, nonlinearity)
    spec = edits.stem(spec, act=stem_act)
    if head_filters is not None:
        spec = edits.head_filters(spec, head_filters)
    spec = edits.last_se(spec, last_se)
    spec = edits.shortcut(spec, shortcut)
    spec = scale_width(spec, width, width_rule)
    return spec.replace(
        resolution=resolution,
        num_classes=num_classes,
        in_channels=in_channels,
        padding=padding,
        bn_eps=bn_eps,
        bn_decay=bn_decay,
        dropout=dropout,
        drop_path=drop_path,
    )
