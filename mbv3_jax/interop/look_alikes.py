"""Networks that look like those of `networks` but are not, recognised by their layers.

Sources: the module names of timm 1.0.31 (models/_efficientnet_blocks.py, models/ghostnet.py),
torchvision 0.28 (models/efficientnet.py) and transformers (models/mobilenet_v1, mobilenet_v2); of
keras 3.15, how many layers of each class a network has (applications/mobilenet.py,
applications/efficientnet.py).
"""

import re
from collections.abc import Iterable

# A layer of each of timm's and torchvision's, which none of our networks has.
_LAYERS = {
    "MobileNetV4": r"\.(dw_start|dw_mid|pw_exp)\.",
    "GhostNet": r"\.ghost1\.",
    "MixNet": r"\.conv_dw\.0\.weight$",
    "EfficientNetV2 or MobileNet-EdgeTPU": r"^blocks\..*\.conv_exp\.",
    "EfficientNet": r"^features\.1\.0\.block\.",
    "MobileNetV1 or V2 of transformers, whose layers have names of its own": (
        r"\.convolution\.weight$"
    ),
    "mobilenetv3_large_150d, with two 1x1 convolutions before pooling": r"^blocks\.6\.1\.conv\.",
}


def look_alike(names: Iterable[str]) -> str | None:
    """The network that tensors of these names belong to, if it is one that is not imported.

    Args:
      names: of the tensors inside the network, see `layout.Located`.
    """
    names = list(names)
    for network, layer in _LAYERS.items():
        if any(re.search(layer, name) for name in names):
            return network
    blocks = {re.sub(r"^(blocks\.\d+\.\d+)\..*", r"\1", n) for n in names if n[:7] == "blocks."}
    if blocks:
        return _of_timm(blocks, set(names))
    counts = dict.fromkeys(("conv2d", "depthwise_conv2d", "batch_normalization"), 0)
    for name in names:
        if found := re.match(r"layers/([a-z0-9_]*?[a-z]\w*?)(_\d+)?/vars/0$", name):
            counts[found[1]] = counts.get(found[1], 0) + 1
    depthwise = counts["depthwise_conv2d"]
    if depthwise and counts["batch_normalization"] == 2 * depthwise + 1:
        return "MobileNet (V1)"  # no expansions: a 1x1 and two BatchNorms for each depthwise layer
    if depthwise and counts["conv2d"] >= 4 * depthwise:
        return "EfficientNet"  # squeeze-and-excite in every block
    return None


def _of_timm(blocks: set[str], names: set[str]) -> str | None:
    with_se = {block for block in blocks if f"{block}.se.conv_reduce.weight" in names}
    if not any(f"{block}.conv_pwl.weight" in names for block in blocks):  # no expansions
        return "LCNet" if with_se else "MobileNetV1"
    return "EfficientNet" if with_se == blocks else None
