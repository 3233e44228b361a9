"""Which networks timm, torchvision and Keras have, as specs; and how each library builds them.

BatchNorm constants and padding are each library's own: they are part of what a trained network
computes. PyTorch's "momentum" m is a decay of 1 - m.
"""

import dataclasses
from collections.abc import Callable, Iterator

from mbv3_jax.arch.build import build
from mbv3_jax.arch.spec import NetSpec, choose
from mbv3_jax.interop import relatives
from mbv3_jax.train.errors import UsageError

LIBRARIES = ("timm", "torchvision", "keras")
# Widths that are tried for libraries that scale any network; 1.0 first, published ones next.
WIDTHS = (1.0, 0.75, 0.5, 0.35, 0.25, 1.25, 1.3, 1.4, 1.5, 2.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Network:
    """A network of a library: what to call there, and the same as a spec."""

    library: str
    name: str
    spec: NetSpec
    width: float = 1.0  # for torchvision and Keras, which scale by an argument

    @property
    def label(self) -> str:
        """For messages: "MobileNetV2 (width 0.5)"."""
        return self.name if self.width == 1 else f"{self.name} (width {self.width:g})"


def _timm(table: str, width: float = 1.0) -> NetSpec:
    return build(table, width=width, width_rule="timm")


_TIMM: dict[str, Callable[[], NetSpec]] = {
    "mobilenetv3_large_100": lambda: _timm("mobilenet_v3_large"),
    "mobilenetv3_large_075": lambda: _timm("mobilenet_v3_large", 0.75),
    "mobilenetv3_small_100": lambda: _timm("mobilenet_v3_small"),
    "mobilenetv3_small_075": lambda: _timm("mobilenet_v3_small", 0.75),
    "mobilenetv3_small_050": lambda: _timm("mobilenet_v3_small", 0.5),
    "mobilenetv3_rw": relatives.mobilenet_v3_rw,
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
    "mobilenetv2_110d": lambda: relatives.deep_v2("mobilenet_v2_110d", 1.1),
    "mobilenetv2_120d": lambda: relatives.deep_v2("mobilenet_v2_120d", 1.2),
    "semnasnet_100": lambda: _timm("mnasnet_a1"),
    "semnasnet_050": lambda: _timm("mnasnet_a1", 0.5),
    "semnasnet_075": lambda: _timm("mnasnet_a1", 0.75),
    "semnasnet_140": lambda: _timm("mnasnet_a1", 1.4),
    "mnasnet_100": lambda: relatives.mnasnet_b1(),
    "mnasnet_050": lambda: relatives.mnasnet_b1(0.5),
    "mnasnet_075": lambda: relatives.mnasnet_b1(0.75),
    "mnasnet_140": lambda: relatives.mnasnet_b1(1.4),
    "mnasnet_small": relatives.mnasnet_small,
}
# torchvision scales the networks that carry no width in their name by `width_mult`.
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
# Networks of the libraries that people will try, and why they cannot be had.
UNSUPPORTED = {
    "mobilenetv3_large_150d": "it has two 1x1 convolutions before pooling, a NetSpec has one",
}


def get(library: str, name: str, *, width: float = 1.0) -> Network:
    """A network by its name in the library.

    Args:
      library: one of `LIBRARIES`.
      name: one of `NAMES[library]`; minimalistic Keras networks are named as if they were own.
      width: torchvision's width_mult or Keras' alpha.

    Raises:
      UsageError: an unknown name, or a width that the network does not come in.
    """
    choose("library", library, LIBRARIES)
    if name in UNSUPPORTED:
        raise UsageError(f"--network={name}: {UNSUPPORTED[name]}")
    if name not in NAMES[library]:
        listed = ", ".join(NAMES[library])
        raise UsageError(f"--network={name}: {library} has no such network here; it has {listed}")
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
        spec = relatives.mnasnet_b1(_TORCHVISION_MNASNET[name])
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
    """The networks of a library that the name and the width leave open.

    Raises:
      UsageError: as `get`.
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
    """The Python expression that builds in its library what `spec` says.

    Args:
      network: the library's network; `spec` has its layers.
      spec: whose classes, BatchNorm constants and padding to build.
      preprocessing_inside: of Keras' V3: whether it takes pixels from 0 to 255.
    """
    name, own, options = network.name, network.spec, [f"num_classes={spec.num_classes}"]
    bn_differs = (spec.bn_eps, spec.bn_decay) != (own.bn_eps, own.bn_decay)
    momentum = round(1 - spec.bn_decay, 9)
    if network.library == "timm":
        if bn_differs:
            options += [f"bn_eps={spec.bn_eps:g}", f"bn_momentum={momentum:g}"]
        if spec.padding != own.padding:
            options.append(f"pad_type={'same' if spec.padding == 'same' else ''!r}")
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
    shape = f"({spec.resolution}, {spec.resolution}, 3)"
    return f"keras.applications.{base}(input_shape={shape}, {', '.join(options)})"
