"""Size, range and normalisation of images: from the file, the flags, or the library's default."""

import json

import jax
import numpy as np
import pytest
from peer_compare import TOLERANCE, error, import_peer, keras_peers, torch_peers
from peer_values import redraw

from mbv3_jax import __main__
from mbv3_jax.interop import images, mapping, networks
from mbv3_jax.nn import functional
from mbv3_jax.run.model import load_model

TIMM = "mobilenetv3_small_050"
USUAL = f"the default of timm for {TIMM}"


@pytest.fixture(scope="module")
def state():
    torch = torch_peers().torch
    with torch.device("meta"):  # nothing is drawn
        shapes = torch_peers().timm.create_model(TIMM, num_classes=3).state_dict()
    return {n: torch.ones(v.shape, dtype=v.dtype) for n, v in shapes.items()}


@pytest.fixture
def run(tmp_path, capsys):
    """run(saved, *flags) imports what is saved and returns the line about images, or the error."""

    def run(saved, *flags, code=0):
        file = tmp_path / "x.pth"
        torch_peers().torch.save(saved, file)
        arguments = ["import", "--from=timm", f"--weights={file}", f"--network={TIMM}", *flags]
        where = [] if "--dry-run" in flags else [f"--out={tmp_path / 'out'}"]
        assert __main__.main([*arguments, *where]) == code
        printed = capsys.readouterr()
        if code:
            assert printed.err.count("\n") == 1
            return printed.err
        return next(line for line in printed.out.splitlines() if line.startswith("images: "))

    return run


def test_a_file_that_says_nothing(run, state):
    assert run(state, "--dry-run") == (
        "images: 224 pixels, crop 0.875 (square), bicubic, mean (0.485, 0.456, 0.406), "
        f"std (0.229, 0.224, 0.225); {USUAL}"
    )


def test_flags_tell_what_a_file_does_not(run, state, tmp_path):
    flags = ("--resolution=96", "--mean=0.5", "--std=0.25,0.5,1", "--crop-fraction=0.9")
    dry = run(state, *flags, "--interpolation=bilinear", "--dry-run")
    assert dry == (
        "images: 96 pixels, crop 0.9 (square), bilinear, mean (0.5, 0.5, 0.5), "
        "std (0.25, 0.5, 1.0); resolution: --resolution; crop: --crop-fraction; crop's place: "
        f"{USUAL}; interpolation: --interpolation; mean: --mean; std: --std"
    )
    assert run(state, *flags, "--interpolation=bilinear") == dry
    model = load_model(tmp_path / "out")
    assert (model.spec.resolution, model.preprocessing.std) == (96, (0.25, 0.5, 1.0))
    origin = json.loads((tmp_path / "out/origin.json").read_text())
    assert origin["preprocessing"] == dry.partition("; ")[2]


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--resolution=16", "--resolution: got 16, expected a whole number of at least 32"),
        ("--resolution=0", "--resolution: got '0', expected pixels as in 224, or height and width"),
        ("--mean=0.5,0.5", "--mean: got 2 numbers, expected 3, one for each channel, or one"),
        ("--mean=x", "--mean: got 'x', expected numbers as in 0.5,0.5,0.5"),
        ("--std=0,1,1", "--std: got (0.0, 1.0, 1.0), expected 3 positive numbers"),
        ("--crop-fraction=1.1", "--crop-fraction: got 1.1, expected above 0 and at most 1"),
        ("--interpolation=lanczos", "--interpolation: invalid choice: 'lanczos'"),
    ],
)
def test_wrong_flags(state, tmp_path, capsys, flag, message):
    file = tmp_path / "x.pth"
    torch_peers().torch.save(state, file)
    command = ["import", "--from=timm", f"--weights={file}", f"--network={TIMM}", "--dry-run"]
    try:
        code = __main__.main([*command, flag])
    except SystemExit as e:
        code = e.code
    assert code == 2
    assert message in capsys.readouterr().err


CONFIG = {
    "input_size": (3, 96, 96),
    "mean": (0.1, 0.2, 0.3),
    "std": (0.4, 0.5, 0.6),
    "crop_pct": 1.0,
    "crop_mode": "squash",
    "interpolation": "bilinear",
    "classifier": "classifier",
}


@pytest.mark.parametrize("place", ["top", "beside the weights", "in config.json", "older"])
def test_what_timm_keeps(run, state, tmp_path, place):
    part = "config.json" if place in ("in config.json", "older") else "pretrained_cfg"
    saved = {"top": {**state, "pretrained_cfg": CONFIG}}.get(place, state)
    if place == "beside the weights":
        saved = {"state_dict": state, "pretrained_cfg": CONFIG, "epoch": 3}
    if part == "config.json":
        config = {"architecture": TIMM, "pretrained_cfg": CONFIG}
        config = {"architecture": TIMM, **CONFIG} if place == "older" else config
        (tmp_path / "config.json").write_text(json.dumps(config))
    said = run(saved, "--dry-run")
    assert said == (
        "images: 96 pixels, crop 1 (stretch), bilinear, mean (0.1, 0.2, 0.3), "
        f"std (0.4, 0.5, 0.6); the file's {part}"
    )
    assert run(saved, "--resolution=64", "--dry-run").endswith(
        f"; resolution: --resolution; crop, interpolation, mean, std: the file's {part}"
    )


def test_what_timm_keeps_may_be_wrong(run, state, tmp_path):
    config = {"pretrained_cfg": CONFIG | {"interpolation": "lanczos", "input_size": (3, 96, 128)}}
    said = run({**state, **config}, "--dry-run", code=2)
    assert "interpolation: got 'lanczos', expected one of 'bilinear', 'bicubic' (the file's" in said
    assert said.endswith("pretrained_cfg); --interpolation=... tells another\n")
    said = run({**state, **config}, "--dry-run", "--interpolation=bicubic")
    assert said.startswith("images: 96x128 pixels")
    options = "--dry-run", "--interpolation=bicubic", "--resolution=64x80"
    assert run({**state, **config}, *options).startswith("images: 64x80 pixels")
    config["pretrained_cfg"] = CONFIG | {"input_size": (3, 16, 16)}
    said = run({**state, **config}, "--dry-run", code=2)
    assert "resolution: got 16, expected a whole number of at least 32, or (height, width)" in said
    assert run({**state, **config}, "--dry-run", "--resolution=96").startswith("images: 96 ")
    said = run({**state, "pretrained_cfg": {"mean": "x"}}, "--dry-run", code=2)
    assert "x.pth: pretrained_cfg.mean: got 'x', expected a list or null" in said
    (tmp_path / "config.json").write_text("{")
    assert "config.json is damaged: not JSON" in run(state, "--dry-run", code=2)
    (tmp_path / "config.json").write_text('{"mean": 3}')  # of another program
    assert run(state, "--dry-run").endswith(USUAL)


def layer(name, *, nodes=None, **options):
    return {"class_name": name, "config": options} | ({"inbound_nodes": nodes} if nodes else {})


def network(*layers, **convolution):
    inner = layer("Functional", layers=[layer("InputLayer", **convolution), layer("Conv2D")])
    return layer("Functional", layers=[*layers, inner, layer("Dense")])


def op(name, number):
    return layer(name, nodes=[{"args": [{"class_name": "__keras_tensor__"}, number]}])


def tf_op(function, number):
    node = [["input_1", 0, 0, {"y": number, "name": None}]]
    return layer("TFOpLambda", function=function, nodes=[node])


def packed(values):
    """An array, as Keras 3 saves it."""
    return {"class_name": "__numpy__", "config": {"value": values, "dtype": "float32"}}


INPUT = layer("InputLayer", batch_shape=[None, 96, 96, 3])


@pytest.mark.parametrize(
    ("layers", "mean", "std", "where"),
    [
        ([op("TrueDivide", 127.5), op("Subtract", 1.0)], 0.5, 0.5, "TrueDivide, Subtract"),
        (
            [tf_op("math.truediv", 127.5), tf_op("math.subtract", 1.0)],
            *(0.5, 0.5, "math.truediv, math.subtract"),
        ),
        ([layer("Rescaling", scale=1 / 127.5, offset=-1)], 0.5, 0.5, "Rescaling"),
        ([layer("RandomFlip"), layer("Rescaling", scale=1 / 255)], 0.0, 1.0, "Rescaling"),
        ([op("Multiply", 1 / 255), op("Add", -0.25)], 0.25, 1.0, "Multiply, Add"),
        ([op("Divide", 255)], 0.0, 1.0, "Divide"),
        ([layer("Rescaling", scale=packed([1 / 51.0]))], 0.0, 0.2, "Rescaling"),
        (
            [layer("Sequential", layers=[layer("Normalization", mean=[51.0], variance=2601.0)])],
            *(0.2, 0.2, "Normalization"),
        ),
    ],
)
def test_the_range_of_pixels_in_a_keras_network(layers, mean, std, where):
    told = images.of_keras(network(INPUT, *layers), [])
    assert told == {
        "resolution": (96, "InputLayer"),
        "mean": ((mean,), where),
        "std": ((std,), where),
    }


def test_what_is_not_read_of_a_keras_network():
    for unknown in ("Lambda", "Normalization", "Rescaling"):  # the last two without numbers
        told = images.of_keras(network(INPUT, layer(unknown, scale={})), [])
        reason = None, f"a layer before the network, {unknown}, is not read"
        assert told == {"resolution": (96, "InputLayer"), "mean": reason, "std": reason}
    turned = layer("TrueDivide", nodes=[{"args": [127.5, {"class_name": "__keras_tensor__"}]}])
    assert images.of_keras(network(turned), [])["std"][0] is None
    # Nothing before the network, whose own size counts; and layers of another kind behind it.
    assert images.of_keras(network(batch_input_shape=[None, 64, 64, 3]), []) == {
        "resolution": (64, "InputLayer")
    }
    assert (
        images.of_keras(network(layer("InputLayer", batch_shape=[None, None, None, 3])), []) == {}
    )
    cut = network(INPUT, layer("Resizing", height=80, width=80))
    assert images.of_keras(cut, [])["resolution"] == (80, "Resizing")
    with pytest.raises(ValueError, match="class_name: missing, expected a string"):
        images.of_keras({"config": {}}, [])


@pytest.mark.parametrize("ending", [".keras", ".h5"])
def test_a_network_of_keras_with_its_scaling_computes_the_same(tmp_path, capsys, ending):
    """Rescaling and an adapted Normalization before the network: equal logits of raw pixels."""
    keras = keras_peers().keras
    rng, shape = np.random.default_rng(0), (64, 64, 3)
    options = {"include_top": False, "minimalistic": True, "alpha": 0.75}
    peer = keras_peers().KerasPeer(
        "MobileNetV3Small", shape, include_preprocessing=True, **options
    )  # which has a Rescaling of its own
    peer.prepare(rng, bn_eps=1e-3, bn_decay=0.2)
    base, head = peer.model, keras.layers.Dense(2)
    pixels = rng.integers(0, 256, (2, *shape)).astype(np.float32)
    normalization = keras.layers.Normalization()
    normalization.adapt(pixels * np.array([1, 0.5, 0.25], np.float32) / 255)
    layers = [keras.Input(shape), keras.layers.Rescaling(1 / 255), normalization]
    layers += [keras.layers.Rescaling(64.0, 100.0), base, keras.layers.GlobalAveragePooling2D()]
    peer.model = whole = keras.Sequential([*layers, head])
    for v in head.variables:
        v.assign(redraw(v.name, v.shape, rng, v.shape[0]))
    peer.forward(pixels, train=True)
    expected = peer.forward(pixels, train=False)
    whole.save(tmp_path / f"x{ending}")
    arguments = ["import", "--from=keras", f"--weights={tmp_path / f'x{ending}'}"]
    assert __main__.main([*arguments, f"--out={tmp_path / 'out'}"]) == 0
    printed = capsys.readouterr().out
    assert "left out" not in printed
    assert (
        "; resolution: the file's InputLayer; crop, interpolation: the default of keras for "
        "MobileNetV3Small_minimalistic; mean, std: the file's Rescaling, Normalization, Rescaling, "
        "Rescaling\n"
    ) in printed
    model = load_model(tmp_path / "out")
    view = model.preprocessing
    scaled = (pixels / 255 - np.array(view.mean)) / np.array(view.std)
    with jax.default_matmul_precision("highest"):
        got, _ = functional.apply(model.spec, model.variables, scaled.astype(np.float32))
    assert model.spec.resolution == 64
    assert error(np.asarray(got), expected, varied=True) < TOLERANCE


def test_the_statistics_of_a_file_of_weights_alone_are_left_out(tmp_path, capsys):
    """They say nothing without the layers around them."""
    h5py = import_peer("h5py", "files of Keras")
    spec = networks.get("keras", "MobileNetV2", width=0.35).spec
    with h5py.File(tmp_path / "x.weights.h5", "w") as made:
        for p in mapping.pairs("keras", spec):
            made[p.theirs] = np.ones(p.their_shape, np.float32)
        for i in range(2):
            made[f"layers/normalization/vars/{i}"] = np.ones(3, np.float32)
    arguments = ["import", "--from=keras", f"--weights={tmp_path / 'x.weights.h5'}", "--dry-run"]
    assert __main__.main(arguments) == 0
    said = capsys.readouterr().out
    assert "left out: layers/normalization\n" in said
    assert "; the default of keras for MobileNetV2\n" in said


def test_defaults_of_grey_networks_are_those_of_the_luminance(run, state, tmp_path):
    grey = dict(state, **{"conv_stem.weight": state["conv_stem.weight"][:, :1]})
    said = run(grey, "--dry-run")
    assert "mean (0.458971,), std (0.225609,); resolution, crop, interpolation: the def" in said
    assert said.endswith(f"mean, std: {USUAL}, as of their luminance")
    assert "mean (0.1,), std (0.2,)" in run(grey, "--mean=0.1", "--std=0.2", "--dry-run")
