"""The networks of timm, torchvision and Keras as specs, and how each library builds them.

BatchNorm constants and padding differ between the libraries; they are part of what a trained
network computes. PyTorch's "momentum" m is a decay of 1 - m.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

from mbv3_jax.arch import edits
from mbv3_jax.arch.build import build
from mbv3_jax.arch.spec import BlockSpec, ConvSpec, NetSpec, SESpec
from mbv3_jax.arch.tables import TABLES
from mbv3_jax.arch.width import scale_width
from mbv3_jax.core.checks import choose, sides
from mbv3_jax.core.errors import UsageError

LIBRARIES = ("timm", "torchvision", "keras")
# Widths that are tried for the libraries that scale any network, in this order.
WIDTHS = (1.0, 0.75, 0.5, 0.35, 0.25, 1.25, 1.3, 1.4, 1.5, 2.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Network:
    """A network of a library.

    library: one of `LIBRARIES`.
    name: the library's name for it.
    spec: the same network as a spec.
    width: the scaling argument of torchvision (width_mult) and Keras (alpha).
    """

    library: str
    name: str
    spec: NetSpec
    width: float = 1.0

    @property
    def label(self) -> str:
        """The name with the width, as in "MobileNetV2 (width 0.5)"."""
        return self.name if self.width == 1 else f"{self.name} (width {self.width:g})"


# Networks that the tables of the papers do not print. Each is a stack of inverted residuals.

# MnasNet's squeeze-and-excite, see `arch.tables.mnasnet_a1`.
_MNASNET_SE = SESpec(of="input", divisor=1, gate="sigmoid")

# Columns: kernel, expansion factor, out, squeeze-and-excite, repeats, stride of the first.
# tensorflow/tpu models/official/mnasnet `mnasnet_b1` and `mnasnet_small`.
_B1 = (
    (3, 1, 16, False, 1, 1),
    (3, 3, 24, False, 3, 2),
    (5, 3, 40, False, 3, 2),
    (5, 6, 80, False, 3, 2),
    (3, 6, 96, False, 2, 1),
    (5, 6, 192, False, 4, 2),
    (3, 6, 320, False, 1, 1),
)
_SMALL = (
    (3, 1, 8, False, 1, 1),
    (3, 3, 16, False, 1, 2),
    (3, 6, 16, False, 2, 2),
    (5, 6, 32, True, 4, 2),
    (3, 6, 32, True, 3, 1),
    (5, 6, 88, True, 3, 2),
    (3, 6, 144, False, 1, 1),
)

# How many blocks each stage has: timm, and torchvision for MNASNet, number blocks by stage.
STAGES = {
    "mobilenet_v3_large": (1, 2, 3, 4, 2, 3),
    "mobilenet_v3_large_minimalistic": (1, 2, 3, 4, 2, 3),
    "mobilenet_v3_rw": (1, 2, 3, 4, 2, 3),
    "mobilenet_v3_small": (1, 2, 3, 2, 3),
    "mobilenet_v3_small_minimalistic": (1, 2, 3, 2, 3),
    "mobilenet_v2": (1, 2, 3, 4, 3, 3, 1),
    "mobilenet_v2_110d": (1, 3, 4, 5, 4, 4, 1),
    "mobilenet_v2_120d": (1, 3, 5, 6, 5, 5, 1),
    "mnasnet_a1": (1, 2, 3, 4, 2, 3, 1),
    "mnasnet_b1": tuple(row[4] for row in _B1),
    "mnasnet_small": tuple(row[4] for row in _SMALL),
}


def _mnasnet(name: str, rows: Sequence[tuple], stem: int) -> NetSpec:
    blocks: list[BlockSpec] = []
    channels = stem
    for kernel, factor, out, has_se, repeats, stride in rows:
        for i in range(repeats):
            blocks.append(
                BlockSpec(
                    kernel=kernel,
                    expansion=channels * factor,
                    out=out,
                    act="relu",
                    stride=1 if i else stride,
                    se=_MNASNET_SE if has_se else None,
                )
            )
            channels = out
    return NetSpec(
        name=name,
        stem=ConvSpec(kernel=3, out=stem, act="relu", stride=2),
        blocks=tuple(blocks),
        last=ConvSpec(kernel=1, out=1280, act="relu"),
        head=None,
    )


def mnasnet_b1(width: float = 1.0) -> NetSpec:
    """MnasNet-B1, which has no squeeze-and-excite, and 1280 features at every width."""
    return _fixed_last(scale_width(_mnasnet("mnasnet_b1", _B1, 32), width), 1280)


def mnasnet_small() -> NetSpec:
    """MnasNet-Small."""
    return _mnasnet("mnasnet_small", _SMALL, 8)


def mobilenet_v3_rw() -> NetSpec:
    """timm's first MobileNetV3-Large, written before the authors' code was public.

    Its squeeze-and-excite rounds to whole channels and uses the block's nonlinearity; the first
    block has no shortcut; the head has no bias (ours is zero).
    """
    large = TABLES["mobilenet_v3_large"]()
    blocks = [
        dataclasses.replace(b, se=b.se and SESpec(divisor=1, act=b.act)) for b in large.blocks
    ]
    blocks[0] = dataclasses.replace(blocks[0], shortcut=False)
    return large.replace(name="mobilenet_v3_rw", blocks=tuple(blocks))


def deep_v2(name: str, width: float) -> NetSpec:
    """timm's MobileNetV2 with more blocks in each stage; only stem and last 1x1 are not wider.

    Args:
      name: a key of `STAGES`.
      width: the width multiplier of the blocks.
    """
    plain = TABLES["mobilenet_v2"]()
    blocks: list[BlockSpec] = []
    start = 0
    for old, new in zip(STAGES["mobilenet_v2"], STAGES[name], strict=True):
        stage = plain.blocks[start : start + old]
        blocks += stage + stage[-1:] * (new - old)
        start += old
    wide = scale_width(plain.replace(name=name, blocks=tuple(blocks)), width)
    return _fixed_last(edits.stem(wide, plain.stem.out), plain.last.out)


def _fixed_last(spec: NetSpec, out: int) -> NetSpec:
    return spec.replace(last=dataclasses.replace(spec.last, out=out))


# The networks of each library.


def _timm(table: str, width: float = 1.0) -> NetSpec:
    return build(table, width=width, width_rule="timm")


_TIMM: dict[str, Callable[[], NetSpec]] = {
    "mobilenetv3_large_100": lambda: _timm("mobilenet_v3_large"),
    "mobilenetv3_large_075": lambda: _timm("mobilenet_v3_large", 0.75),
    "mobilenetv3_small_100": lambda: _timm("mobilenet_v3_small"),
    "mobilenetv3_small_075": lambda: _timm("mobilenet_v3_small", 0.75),
    "mobilenetv3_small_050": lambda: _timm("mobilenet_v3_small", 0.5),
    "mobilenetv3_rw": mobilenet_v3_rw,
    "tf_mobilenetv3_large_100": lambda: _timm("mobilenet_v3_large"),
    "tf_mobilenetv3_large_075": lambda: _timm("mobilenet_v3_large", 0.75),
    "tf_mobilenetv3_large_minimal_100": lambda: _timm("mobilenet_v3_large_minimalistic"),
    "tf_mobilenetv3_small_100": lambda: _timm("mobilenet_v3_small"),
    "tf_mobilenetv3_small_075": lambda: _timm("mobilenet_v3_small", 0.75),
    "tf_mobilenetv3_small_minimal_100": lambda: _timm("mobilenet_v3_small_minimalistic"),
    "mobilenetv2_100": lambda: _timm("mobilenet_v2"),
    "mobilenetv2_035": lambda: _timm("mobilenet_v2", 0.35),
    "mobilenetv2_050": lambda: _timm("mobilenet_v2", 0.5),
    "mobilenetv2_075": lambda: _timm("mobilenet_v2", 0.75),
    "mobilenetv2_140": lambda: _timm("mobilenet_v2", 1.4),
    "mobilenetv2_110d": lambda: deep_v2("mobilenet_v2_110d", 1.1),
    "mobilenetv2_120d": lambda: deep_v2("mobilenet_v2_120d", 1.2),
    "semnasnet_100": lambda: _timm("mnasnet_a1"),
    "semnasnet_050": lambda: _timm("mnasnet_a1", 0.5),
    "semnasnet_075": lambda: _timm("mnasnet_a1", 0.75),
    "semnasnet_140": lambda: _timm("mnasnet_a1", 1.4),
    "mnasnet_100": mnasnet_b1,
    "mnasnet_050": lambda: mnasnet_b1(0.5),
    "mnasnet_075": lambda: mnasnet_b1(0.75),
    "mnasnet_140": lambda: mnasnet_b1(1.4),
    "mnasnet_small": mnasnet_small,
}
# The width is in the name of torchvision's MNASNets; its other networks take `width_mult`.
_TORCHVISION_MNASNET = {
    "mnasnet1_0": 1.0,
    "mnasnet0_5": 0.5,
    "mnasnet0_75": 0.75,
    "mnasnet1_3": 1.3,
}
_TORCHVISION = ("mobilenet_v3_large", "mobilenet_v3_small", "mobilenet_v2")
_KERAS = {
    "MobileNetV3Large": "mobilenet_v3_large",
    "MobileNetV3Small": "mobilenet_v3_small",
    "MobileNetV3Large_minimalistic": "mobilenet_v3_large_minimalistic",
    "MobileNetV3Small_minimalistic": "mobilenet_v3_small_minimalistic",
    "MobileNetV2": "mobilenet_v2",
}
NAMES = {
    "timm": tuple(_TIMM),
    "torchvision": (*_TORCHVISION, *_TORCHVISION_MNASNET),
    "keras": tuple(_KERAS),
}
# Networks that people may ask for, and why they are not available.
UNSUPPORTED = {
    "mobilenetv3_large_150d": "it has two 1x1 convolutions before pooling, where a NetSpec has one",
}


def get(library: str, name: str, *, width: float = 1.0) -> Network:
    """A network by its name in the library.

    Args:
      library: one of `LIBRARIES`.
      name: one of `NAMES[library]`. Keras builds its minimalistic networks with an argument; here
        they have names.
      width: torchvision's width_mult or Keras' alpha.

    Raises:
      UsageError: the library has no such network, or the network does not come in this width.
    """
    choose("library", library, LIBRARIES)
    if name in UNSUPPORTED:
        raise UsageError(f"--network={name}: {UNSUPPORTED[name]}")
    if name not in NAMES[library]:
        listed = ", ".join(NAMES[library])
        raise UsageError(
            f"--network={name}: no such network of {library}; expected one of {listed}"
        )
    if width != 1 and (library == "timm" or name in _TORCHVISION_MNASNET):
        raise UsageError(f"--width={width:g}: {library}'s {name} has its width in its name")
    try:
        spec = _spec(library, name, width)
    except ValueError as e:
        raise UsageError(f"--{e}") from e
    return Network(library=library, name=name, spec=spec, width=width)


def _spec(library: str, name: str, width: float) -> NetSpec:
    if library == "timm":
        is_tf = name.startswith("tf_")
        return _TIMM[name]().replace(
            padding="same" if is_tf else "symmetric",
            bn_eps=1e-3 if is_tf or name == "mobilenetv3_rw" else 1e-5,
            bn_decay=0.9,
            dropout=0.0,
        )
    if library == "keras":
        table = _KERAS[name]
        dropout = 0.0 if table == "mobilenet_v2" else 0.2
        return build(table, width=width, width_rule="keras", bn_decay=0.999, dropout=dropout)
    if name in _TORCHVISION_MNASNET:
        spec = mnasnet_b1(_TORCHVISION_MNASNET[name])
        return spec.replace(padding="symmetric", bn_eps=1e-5, bn_decay=0.9997)
    is_v2 = name == "mobilenet_v2"
    return build(
        name,
        width=width,
        width_rule="torchvision",
        padding="symmetric",
        bn_eps=1e-5 if is_v2 else 1e-3,
        bn_decay=0.9 if is_v2 else 0.99,
    )


def candidates(
    library: str, name: str | None = None, width: float | None = None
) -> Iterator[Network]:
    """Yields the networks of a library that fit a name and a width, where these are known.

    Raises:
      UsageError: as for `get`.
    """
    for each in NAMES[library] if name is None else (name,):
        fixed = library == "timm" or each in _TORCHVISION_MNASNET
        if width is not None and not (fixed and name is None):
            yield get(library, each, width=width)
        elif fixed:
            yield get(library, each)
        else:
            yield from (get(library, each, width=w) for w in WIDTHS)


def construction(network: Network, spec: NetSpec, *, preprocessing_inside: bool = True) -> str:
    """The Python expression with which the library builds a network.

    Args:
      network: the library's network, which has the layers of `spec`.
      spec: gives the number of classes and of channels, the BatchNorm constants and the padding.
      preprocessing_inside: whether Keras' V3 networks take pixels from 0 to 255.
    """
    name, default, options = network.name, network.spec, [f"num_classes={spec.num_classes}"]
    bn_differs = (spec.bn_eps, spec.bn_decay) != (default.bn_eps, default.bn_decay)
    momentum = round(1 - spec.bn_decay, 9)
    if network.library == "timm":
        if bn_differs:
            options += [f"bn_eps={spec.bn_eps:g}", f"bn_momentum={momentum:g}"]
        if spec.padding != default.padding:
            options.append(f"pad_type={'same' if spec.padding == 'same' else ''!r}")
        if spec.in_channels != default.in_channels:
            options.append(f"in_chans={spec.in_channels}")
        return f"timm.create_model({name!r}, {', '.join(options)})"
    if network.library == "torchvision":
        if network.width != 1:
            options.append(f"width_mult={network.width:g}")
        if bn_differs and not name.startswith("mnasnet"):
            norm = f"torch.nn.BatchNorm2d, eps={spec.bn_eps:g}, momentum={momentum:g}"
            options.append(f"norm_layer=functools.partial({norm})")
        return f"torchvision.models.{name}({', '.join(options)})"
    base, _, minimalistic = name.partition("_")
    options = [f"alpha={network.width:g}", "weights=None", f"classes={spec.num_classes}"]
    if base.startswith("MobileNetV3"):
        options += [f"minimalistic={bool(minimalistic)}"]
        options += [f"include_preprocessing={preprocessing_inside}"]
    height, width = sides(spec.resolution)
    shape = f"({height}, {width}, {spec.in_channels})"
    return f"keras.applications.{base}(input_shape={shape}, {', '.join(options)})"


def other_stem(network: Network, spec: NetSpec) -> list[str]:
    """Python lines by which a network of torchvision, built for 3 channels, gets those of `spec`.

    Args:
      network: a network of timm or torchvision.
      spec: the network that is loaded.
    """
    if network.library != "torchvision" or spec.in_channels == network.spec.in_channels:
        return []
    layer = "layers[0]" if network.name in _TORCHVISION_MNASNET else "features[0][0]"
    shape = f"{spec.in_channels}, {spec.stem.out}, 3, stride=2, padding=1, bias=False"
    return [f"model.{layer} = torch.nn.Conv2d({shape})"]
