"""Width multipliers: the number of channels of each layer when a network is scaled by alpha."""

import dataclasses
import math

from mbv3_jax.arch.spec import NetSpec, make_divisible
from mbv3_jax.core.checks import choose


@dataclasses.dataclass(frozen=True, kw_only=True)
class WidthRule:
    """How a code base scales MobileNetV3; they differ once alpha is not 1.

    Attributes:
      expansion: "ratio" keeps expansion / input and rounds its product with the scaled input;
        "absolute" rounds alpha * expansion.
      last: the same choice for the last 1x1 before pooling, as a ratio to the last block's output.
      head: whether the layer before the logits is scaled: only "above_one", "always" or "never".
      fixed_stem_below: for alphas below this, the stem keeps its number of filters.
    """

    expansion: str
    last: str
    head: str
    fixed_stem_below: float


WIDTH_RULES = {
    # TensorFlow slim, the authors' code: nets/mobilenet/mobilenet_v3.py.
    "slim": WidthRule(expansion="ratio", last="absolute", head="above_one", fixed_stem_below=0),
    # keras.applications: the V3 stem has 16 filters at every width.
    "keras": WidthRule(
        expansion="ratio", last="ratio", head="above_one", fixed_stem_below=math.inf
    ),
    "torchvision": WidthRule(expansion="absolute", last="ratio", head="always", fixed_stem_below=0),
    "timm": WidthRule(expansion="ratio", last="absolute", head="never", fixed_stem_below=0.75),
}
# MobileNetV2, which all four scale in the same way: expansions are factors of the input.
_HEADLESS = WidthRule(expansion="ratio", last="absolute", head="never", fixed_stem_below=0)
# MobileNetV2 widens its last 1x1 for alpha > 1 (section 4); no code base widens MnasNet's.
_FIXED_LAST = ("mnasnet_a1",)


def scale_width(spec: NetSpec, alpha: float, rule: str = "slim") -> NetSpec:
    """Multiplies the channels of every layer by `alpha`, rounded to multiples of 8.

    The rules differ only for networks with a head (MobileNetV3). In the others (MobileNetV2,
    MnasNet, the original last stage) `last` is the widest layer, and is never scaled below its
    table width (MobileNetV2 section 4).

    Args:
      spec: the network at width 1.0.
      alpha: the width multiplier.
      rule: a key of `WIDTH_RULES`.

    Raises:
      ValueError: the rule is unknown, or alpha is so small that a layer would get fewer than 4
        channels before rounding, so that rounding to 8 would more than double its width.
    """
    choose("width_rule", rule, WIDTH_RULES)
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 < alpha < math.inf:
        raise ValueError(f"width: got {alpha!r}, expected a positive number")
    narrowest = min(spec.stem.out, *(b.out for b in spec.blocks))
    if alpha * narrowest < 4:
        raise ValueError(
            f"width: {alpha} gives the narrowest layer of {spec.name} {alpha * narrowest:g} "
            f"channels, which rounding to a multiple of 8 would more than double; "
            f"the smallest valid width is {4 / narrowest:g}"
        )
    if alpha == 1:
        return spec
    scaling = WIDTH_RULES[rule] if spec.head else _HEADLESS
    keeps_stem = alpha < scaling.fixed_stem_below
    stem = spec.stem.out if keeps_stem else make_divisible(alpha * spec.stem.out)
    blocks, block_input = [], stem
    for old_input, block in zip(spec.block_inputs(), spec.blocks, strict=True):
        if block.expansion == old_input:
            expansion = block_input  # a block without expansion stays one
        elif scaling.expansion == "ratio":
            expansion = make_divisible(block_input * block.expansion / old_input)
        else:
            expansion = make_divisible(alpha * block.expansion)
        out = make_divisible(alpha * block.out)
        blocks.append(dataclasses.replace(block, expansion=expansion, out=out))
        block_input = out

    last, head = spec.last.out, spec.head
    if head is None:
        last = last if spec.name in _FIXED_LAST else make_divisible(last * max(alpha, 1))
    elif scaling.last == "ratio":
        last = make_divisible(block_input * last / spec.blocks[-1].out)
    else:
        last = make_divisible(alpha * last)
    if head and (scaling.head == "always" or (scaling.head == "above_one" and alpha > 1)):
        head = dataclasses.replace(head, out=make_divisible(alpha * head.out))
    return spec.replace(
        stem=dataclasses.replace(spec.stem, out=stem),
        blocks=tuple(blocks),
        last=dataclasses.replace(spec.last, out=last),
        head=head,
    )
