"""The published weights of timm, torchvision and Keras: where they are and what they expect.

Sources: timm 1.0.31 `default_cfgs` of models/mobilenetv3.py and models/efficientnet.py;
torchvision 0.28 `*_Weights`; keras 3.15 applications/mobilenet_v3.py and mobilenet_v2.py. Keras
does not say how images are cropped; its weights are those of TensorFlow slim, whose evaluation
takes 0.875 of both sides.
"""

import dataclasses
import difflib
import json
from pathlib import Path

from mbv3_jax.core.errors import UsageError
from mbv3_jax.interop import networks
from mbv3_jax.run.model import Preprocessing

_NORMS = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "inception": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}
_TORCHVISION_URL = "https://download.pytorch.org/models/"
_KERAS_URL = "https://storage.googleapis.com/tensorflow/keras-applications/"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pretrained:
    """Weights that a library publishes.

    name: what the library, or here, calls them: NETWORK.TAG.
    network, width: as `networks.get` takes them.
    hub: repository on the Hugging Face Hub, whose model.safetensors is wanted; or
    url: of a file.
    sha256: the first digits of the hash of a published file, or the file's whole md5; either
      tells a file of any name.
    """

    name: str
    network: str
    preprocessing: Preprocessing
    width: float = 1.0
    num_classes: int = 1000
    resolution: int = 224
    hub: str | None = None
    url: str | None = None
    sha256: str | None = None
    md5: str | None = None


def _preprocessing(norm: str, interpolation: str, crop: float = 0.875, central: str = "square"):
    mean, std = _NORMS[norm]
    return Preprocessing(
        mean=mean, std=std, interpolation=interpolation, crop_fraction=crop, central=central
    )


# Tag first, the library's default before others. The eight digits begin the SHA-256 of the
# .pth file that timm released before the Hub; some tags have only ever been on the Hub.
_TIMM = (
    # network.tag, normalisation, interpolation, crop, digits
    ("mobilenetv3_large_100.ra_in1k", "imagenet", "bicubic", 0.875, "f55367f5"),
    ("mobilenetv3_large_100.ra4_e3600_r224_in1k", "inception", "bicubic", 0.95, None),
    ("mobilenetv3_large_100.miil_in21k_ft_in1k", "none", "bilinear", 0.875, "66471c13"),
    ("mobilenetv3_large_100.miil_in21k", "none", "bilinear", 0.875, "d71cc17b"),
    ("mobilenetv3_small_050.lamb_in1k", "imagenet", "bicubic", 0.875, "4b7bbe87"),
    ("mobilenetv3_small_075.lamb_in1k", "imagenet", "bicubic", 0.875, "384766db"),
    ("mobilenetv3_small_100.lamb_in1k", "imagenet", "bicubic", 0.875, "266a294c"),
    ("mobilenetv3_rw.rmsp_in1k", "imagenet", "bicubic", 0.875, "35495452"),
    ("tf_mobilenetv3_large_075.in1k", "inception", "bilinear", 0.875, "150ee8b0"),
    ("tf_mobilenetv3_large_100.in1k", "inception", "bilinear", 0.875, "427764d5"),
    ("tf_mobilenetv3_large_minimal_100.in1k", "inception", "bilinear", 0.875, "8596ae28"),
    ("tf_mobilenetv3_small_075.in1k", "inception", "bilinear", 0.875, "da427f52"),
    ("tf_mobilenetv3_small_100.in1k", "inception", "bilinear", 0.875, "37f49e2b"),
    ("tf_mobilenetv3_small_minimal_100.in1k", "inception", "bilinear", 0.875, "922a7843"),
    ("mobilenetv2_050.lamb_in1k", "imagenet", "bicubic", 0.875, "3d30d450"),
    ("mobilenetv2_100.ra_in1k", "imagenet", "bicubic", 0.875, "b33bc2c4"),
    ("mobilenetv2_110d.ra_in1k", "imagenet", "bicubic", 0.875, "77090ade"),
    ("mobilenetv2_120d.ra_in1k", "imagenet", "bicubic", 0.875, "5987e2ed"),
    ("mobilenetv2_140.ra_in1k", "imagenet", "bicubic", 0.875, "21a4e913"),
    ("mnasnet_100.rmsp_in1k", "imagenet", "bicubic", 0.875, "74cb7081"),
    ("mnasnet_small.lamb_in1k", "imagenet", "bicubic", 0.875, "aff75073"),
    ("semnasnet_075.rmsp_in1k", "imagenet", "bicubic", 0.875, "18710866"),
    ("semnasnet_100.rmsp_in1k", "imagenet", "bicubic", 0.875, "d9418771"),
)
# The default of torchvision is the newest; V2 weights are evaluated at 224 / 232.
_TORCHVISION = (
    ("mobilenet_v3_large.IMAGENET1K_V2", "mobilenet_v3_large-5c1a4163.pth", 224 / 232),
    ("mobilenet_v3_large.IMAGENET1K_V1", "mobilenet_v3_large-8738ca79.pth", 224 / 256),
    ("mobilenet_v3_small.IMAGENET1K_V1", "mobilenet_v3_small-047dcff4.pth", 224 / 256),
    ("mobilenet_v2.IMAGENET1K_V2", "mobilenet_v2-7ebf99e0.pth", 224 / 232),
    ("mobilenet_v2.IMAGENET1K_V1", "mobilenet_v2-b0353104.pth", 224 / 256),
    ("mnasnet0_5.IMAGENET1K_V1", "mnasnet0.5_top1_67.823-3ffadce67e.pth", 224 / 256),
    ("mnasnet0_75.IMAGENET1K_V1", "mnasnet0_75-7090bc5f.pth", 224 / 232),
    ("mnasnet1_0.IMAGENET1K_V1", "mnasnet1.0_top1_73.512-f206786ef8.pth", 224 / 256),
    ("mnasnet1_3.IMAGENET1K_V1", "mnasnet1_3-a4c69d6f.pth", 224 / 232),
)
_KERAS_V3 = (
    ("MobileNetV3Large.1.0", "large_224_1.0_float", "59e551e166be033d707958cf9e29a6a7"),
    ("MobileNetV3Large.0.75", "large_224_0.75_float", "765b44a33ad4005b3ac83185abf1d0eb"),
    (
        "MobileNetV3Large_minimalistic.1.0",
        "large_minimalistic_224_1.0_float",
        "675e7b876c45c57e9e63e6d90a36599c",
    ),
    ("MobileNetV3Small.1.0", "small_224_1.0_float", "8768d4c2e7dee89b9d02b2d03d65d862"),
    ("MobileNetV3Small.0.75", "small_224_0.75_float", "cb65d4e5be93758266aa0a7f2c6708b7"),
    (
        "MobileNetV3Small_minimalistic.1.0",
        "small_minimalistic_224_1.0_float",
        "99cd97fb2fcdad2bf028eb838de69e37",
    ),
)
# Width and resolution; Keras publishes no hashes of these files.
_KERAS_V2 = [(1.0, 224), (0.35, 224), (0.5, 224), (0.75, 224), (1.3, 224), (1.4, 224)]
_KERAS_V2 += [(w, r) for w in (0.35, 0.5, 0.75, 1.0) for r in (96, 128, 160, 192)]


def _timm() -> list[Pretrained]:
    return [
        Pretrained(
            name=name,
            network=name.partition(".")[0],
            preprocessing=_preprocessing(norm, interpolation, crop),
            num_classes=11221 if name.endswith("miil_in21k") else 1000,
            hub=f"timm/{name}",
            sha256=digits,
        )
        for name, norm, interpolation, crop, digits in _TIMM
    ]


def _torchvision() -> list[Pretrained]:
    return [
        Pretrained(
            name=name,
            network=name.partition(".")[0],
            preprocessing=_preprocessing("imagenet", "bilinear", crop),
            url=_TORCHVISION_URL + file,
            sha256=file.removesuffix(".pth").rpartition("-")[2],
        )
        for name, file, crop in _TORCHVISION
    ]


def _keras() -> list[Pretrained]:
    how = _preprocessing("inception", "bilinear", central="stretch")
    found = [
        Pretrained(
            name=name,
            network=name.partition(".")[0],
            width=float(name.partition(".")[2]),
            preprocessing=how,
            url=f"{_KERAS_URL}mobilenet_v3/weights_mobilenet_v3_{file}.h5",
            md5=md5,
        )
        for name, file, md5 in _KERAS_V3
    ]
    stem = f"{_KERAS_URL}mobilenet_v2/mobilenet_v2_weights_tf_dim_ordering_tf_kernels"
    return found + [
        Pretrained(
            name=f"MobileNetV2.{width}_{resolution}",
            network="MobileNetV2",
            width=width,
            resolution=resolution,
            preprocessing=how,
            url=f"{stem}_{width}_{resolution}.h5",
        )
        for width, resolution in _KERAS_V2
    ]


PRETRAINED = {"timm": _timm(), "torchvision": _torchvision(), "keras": _keras()}


def find_pretrained(library: str, name: str) -> Pretrained:
    """The published weights NETWORK.TAG, or the library's default ones of NETWORK.

    Raises:
      UsageError: the library publishes none of that name; the message lists the nearest.
    """
    known = PRETRAINED[library]
    for entry in known:
        if name in (entry.name, entry.network):
            return entry
    network = name.partition(".")[0]
    tags = [entry.name for entry in known if entry.network == network]
    near = tags or difflib.get_close_matches(name, [e.name for e in known], n=5, cutoff=0.5)
    has = "publishes" if near else "publishes weights of"
    near = near or dict.fromkeys(e.network for e in known)
    if not tags and (network in networks.NAMES[library] or network in networks.UNSUPPORTED):
        networks.get(library, network)  # says why, for those that cannot be had
        raise UsageError(f"--weights={name}: {library} publishes no weights of {network}")
    raise UsageError(
        f"--weights={name}: no such file, and {library} publishes nothing of that name; "
        f"it {has} {', '.join(near)}"
    )


def pretrained_of_file(library: str, sha256: str, md5: str) -> Pretrained | None:
    """The published weights that a file with these hashes holds, or None."""
    for entry in PRETRAINED[library]:
        if (entry.sha256 and sha256.startswith(entry.sha256)) or entry.md5 == md5:
            return entry
    return None


def usual_preprocessing(library: str, network: str) -> Preprocessing:
    """What the library evaluates a network with when nothing else is known."""
    for entry in PRETRAINED[library]:
        if entry.network == network:
            return entry.preprocessing
    is_v3 = network.startswith("mobilenetv3")  # timm's networks that have no weights
    return _preprocessing("imagenet", "bilinear" if is_v3 else "bicubic")


# Names of the classes that imported weights tell apart.

# As torchvision lists them (BSD-3-Clause, Soumith Chintala 2016), from WordNet's synsets.
_IMAGENET = Path(__file__).parent / "imagenet_classes.txt"
BACKGROUND = "background"  # the first of the 1001 classes of TensorFlow's networks
IN21K_MIIL = 11221


def imagenet_names() -> tuple[str, ...]:
    """The 1000 classes of ILSVRC 2012, in the usual order (that of their WordNet numbers)."""
    return tuple(_IMAGENET.read_text().splitlines())


def find_class_names(count: int, file: Path | None) -> tuple[tuple[str, ...], str]:
    """The names of a network's classes, and in words where they come from.

    Args:
      count: how many classes the network has.
      file: names, one a line, or a JSON list; None for those of ImageNet where the count is
        ImageNet's, else numbers.

    Raises:
      UsageError: the file cannot be read or has another number of names.
    """
    if file is not None:
        names, where = _read_names(file), f"of {file}"
    elif count in (1000, 1001):
        names, where = imagenet_names(), "of ImageNet (other ones: --classes=FILE)"
    elif count == IN21K_MIIL and (names := _in21k()):
        where = "of ImageNet-21k, as timm lists them"
    else:
        numbers = tuple(map(str, range(count)))
        return numbers, "unknown, so they are numbers (--classes=FILE gives names)"
    if count == 1001 and len(names) == 1000:
        return (BACKGROUND, *names), f"{where}, after {BACKGROUND}"
    if len(names) != count:
        raise UsageError(f"--classes={file}: has {len(names)} names, the network {count} classes")
    return names, where


def _read_names(file: Path) -> tuple[str, ...]:
    try:
        text = file.read_text()
        names = json.loads(text) if file.suffix == ".json" else text.splitlines()
    except OSError as e:
        raise UsageError(f"--classes={file}: {e.strerror}") from e
    except ValueError as e:
        raise UsageError(f"--classes={file}: {e}") from e
    if not isinstance(names, list) or not all(isinstance(n, str) and n.strip() for n in names):
        raise UsageError(f"--classes={file}: expected a name a line, or a JSON list of names")
    return tuple(n.strip() for n in names)


def _in21k() -> tuple[str, ...] | None:
    try:
        from timm.data import ImageNetInfo
    except Exception:  # not installed, or beside a torch that it does not fit
        return None
    info = ImageNetInfo("imagenet21k-miil")
    return tuple(info.index_to_description(i) for i in range(info.num_classes()))
