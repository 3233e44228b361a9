"""The published weights of timm, torchvision and Keras: where they are, how images are prepared.

Sources: timm 1.0.31 `default_cfgs` of models/mobilenetv3.py and models/efficientnet.py;
torchvision 0.28 `*_Weights`; keras 3.15 applications/mobilenet_v3.py and mobilenet_v2.py. Keras
does not document how images are cropped; its weights come from TensorFlow slim, whose evaluation
takes the central 0.875 of both sides.
"""

import dataclasses
import difflib

from mbv3_jax.core.errors import UsageError
from mbv3_jax.interop import networks
from mbv3_jax.interop.class_names import IN21K_MIIL
from mbv3_jax.run.model import Preprocessing

HUB_FILE = "model.safetensors"  # the file of weights in timm's repositories on the Hub
_NORMS = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "inception": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}
_HUB_URL = "https://huggingface.co/"
_TORCHVISION_URL = "https://download.pytorch.org/models/"
_KERAS_URL = "https://storage.googleapis.com/tensorflow/keras-applications/"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pretrained:
    """Weights that a library publishes.

    name: the library's name for them (for Keras, ours): NETWORK.TAG.
    network, width: as `networks.get` takes them.
    url: of the file, or of the repository on the Hub.
    hub: the name of the repository on the Hugging Face Hub, if they are there.
    sha256, md5: what the hash of the file begins with; they recognise a file whatever its name.
    """

    name: str
    network: str
    preprocessing: Preprocessing
    url: str
    width: float = 1.0
    num_classes: int = 1000
    resolution: int = 224
    hub: str | None = None
    sha256: str | None = None
    md5: str | None = None

    @property
    def file_name(self) -> str:
        return HUB_FILE if self.hub else self.url.rpartition("/")[2]


def _preprocessing(
    norm: str, interpolation: str, crop: float = 0.875, central: str = "square"
) -> Preprocessing:
    mean, std = _NORMS[norm]
    return Preprocessing(
        mean=mean, std=std, interpolation=interpolation, crop_fraction=crop, central=central
    )


# The library's default for a network comes before its other weights. The eight digits begin the
# SHA-256 of the .pth file that timm released before it moved to the Hub; weights without digits
# have only ever been on the Hub.
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
# torchvision's default is its newest version; V2 weights are evaluated with a crop of 224 / 232.
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
            num_classes=IN21K_MIIL if name.endswith("miil_in21k") else 1000,
            url=f"{_HUB_URL}timm/{name}",
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
    preprocessing = _preprocessing("inception", "bilinear", central="stretch")
    v3 = [
        Pretrained(
            name=name,
            network=name.partition(".")[0],
            width=float(name.partition(".")[2]),
            preprocessing=preprocessing,
            url=f"{_KERAS_URL}mobilenet_v3/weights_mobilenet_v3_{file}.h5",
            md5=md5,
        )
        for name, file, md5 in _KERAS_V3
    ]
    stem = f"{_KERAS_URL}mobilenet_v2/mobilenet_v2_weights_tf_dim_ordering_tf_kernels"
    v2 = [
        Pretrained(
            name=f"MobileNetV2.{width}_{resolution}",
            network="MobileNetV2",
            width=width,
            resolution=resolution,
            preprocessing=preprocessing,
            url=f"{stem}_{width}_{resolution}.h5",
        )
        for width, resolution in _KERAS_V2
    ]
    return v3 + v2


PRETRAINED = {"timm": _timm(), "torchvision": _torchvision(), "keras": _keras()}


def find_pretrained(library: str, name: str) -> Pretrained:
    """Finds published weights by name.

    Args:
      library: "timm", "torchvision" or "keras".
      name: NETWORK.TAG, or NETWORK for the library's default weights.

    Raises:
      UsageError: the library publishes nothing under this name; the message lists similar names.
    """
    entries = PRETRAINED[library]
    for entry in entries:
        if name in (entry.name, entry.network):
            return entry
    network = name.partition(".")[0]
    tags = [entry.name for entry in entries if entry.network == network]
    if not tags and (network in networks.NAMES[library] or network in networks.UNSUPPORTED):
        networks.get(library, network)  # explains why an unsupported network is not available
        raise UsageError(f"--weights={name}: {library} publishes no weights of {network}")
    similar = tags or difflib.get_close_matches(name, [e.name for e in entries], n=5, cutoff=0.5)
    if similar:
        publishes = f"publishes {', '.join(similar)}"
    else:
        publishes = f"publishes weights of {', '.join(dict.fromkeys(e.network for e in entries))}"
    raise UsageError(
        f"--weights={name}: there is no such file, and {library} publishes nothing under that "
        f"name; it {publishes}"
    )


def pretrained_of_file(library: str, sha256: str, md5: str) -> Pretrained | None:
    """The published weights that a file with these hashes holds; None for any other file."""
    for entry in PRETRAINED[library]:
        if (entry.sha256 and sha256.startswith(entry.sha256)) or entry.md5 == md5:
            return entry
    return None


def usual_preprocessing(library: str, network: str) -> Preprocessing:
    """The preprocessing with which the library evaluates a network by default."""
    for entry in PRETRAINED[library]:
        if entry.network == network:
            return entry.preprocessing
    # These are networks of timm without published weights.
    is_v3 = network.startswith("mobilenetv3")
    return _preprocessing("imagenet", "bilinear" if is_v3 else "bicubic")
