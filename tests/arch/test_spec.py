"""Specs: what they accept, what they say about the rest, and their JSON."""

import dataclasses
import json
import math
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mbv3_jax.arch import (
    BlockSpec,
    ConvSpec,
    HeadSpec,
    NetSpec,
    SESpec,
    build,
    spec_from_json,
    spec_to_json,
)
from mbv3_jax.arch.traversal import convolutions

ROOT = Path(__file__).resolve().parents[2]
NETWORKS = (
    "mobilenet_v3_large",
    "mobilenet_v3_small",
    "mobilenet_v3_large_minimalistic",
    "mobilenet_v3_small_minimalistic",
    "mobilenet_v2",
    "mnasnet_a1",
)
EDITS = [
    {},
    {"width": 0.75, "width_rule": "torchvision", "resolution": 96, "num_classes": 10},
    {"last_stage": "original", "stem_filters": 32, "stem_act": "swish"},
    {"se": "everywhere", "se_ratio": 0.5, "se_of": "input", "se_gate": "sigmoid", "last_se": True},
    {"kernels": "5x5", "shortcut": False, "nonlinearity": "h_swish@40", "padding": "symmetric"},
    {"bn_eps": 1e-5, "bn_decay": 0.997, "dropout": 0, "drop_path": 0.1, "in_channels": 1},
]


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("edit", EDITS, ids=lambda e: "-".join(e) or "plain")
def test_json_round_trip(name, edit):
    spec = build(name, **edit)
    text = spec_to_json(spec)
    assert spec_from_json(text) == spec
    assert hash(spec_from_json(text)) == hash(spec)


def test_json_is_readable():
    tree = json.loads(spec_to_json(build("mobilenet_v3_small")))
    assert tree["blocks"][0] == {
        "kernel": 3,
        "expansion": 16,
        "out": 16,
        "act": "relu",
        "stride": 2,
        "se": {
            "ratio": 0.25,
            "of": "expansion",
            "divisor": 8,
            "gate": "hard_sigmoid",
            "act": "relu",
        },
        "shortcut": True,
    }
    assert tree["head"] == {"out": 1024, "act": "h_swish"}
    assert tree["stem"] == {"kernel": 3, "out": 16, "act": "h_swish", "stride": 2, "se": None}


def edited_json(path: str, value) -> str:
    """Small's JSON with the entry at a dotted path replaced; a value of ... deletes it."""
    tree = json.loads(spec_to_json(build("mobilenet_v3_small")))
    *steps, last = [int(p) if p.isdigit() else p for p in path.split(".")]
    node = tree
    for step in steps:
        node = node[step]
    if value is ...:
        del node[last]
    else:
        node[last] = value
    return json.dumps(tree)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("blocks.3.kernel", 4, "spec.blocks[3].kernel: got 4, expected an odd whole number of at"),
        ("blocks.3.kernel", 3.0, "spec.blocks[3].kernel: got 3.0, expected a whole number"),
        ("blocks.3.kernel", True, "spec.blocks[3].kernel: got True, expected a whole number"),
        ("blocks.3.stride", 3, "spec.blocks[3].stride: got 3, expected a whole number of at least"),
        ("blocks.0.shortcut", 1, "spec.blocks[0].shortcut: got 1, expected true or false"),
        ("blocks.0.se.ratio", 5, "spec.blocks[0].se.ratio: got 5.0, expected above 0 and at most"),
        ("blocks.0.se.gate", "tanh", "spec.blocks[0].se.gate: got 'tanh', expected one of 'hard_s"),
        ("blocks.0.se.of", "output", "spec.blocks[0].se.of: got 'output', expected one of 'expan"),
        ("blocks.0.se.divisor", 0, "spec.blocks[0].se.divisor: got 0, expected a whole number of"),
        ("blocks.2.act", "gelu", "spec.blocks[2].act: got 'gelu', expected one of 'relu', 'relu6'"),
        ("blocks.2.act", None, "spec.blocks[2].act: got None, expected a string"),
        ("blocks", {}, "spec.blocks: got {}, expected a list"),
        ("blocks", [], "spec.blocks: expected a tuple of at least one BlockSpec"),
        ("blocks.1", "x", "spec.blocks[1]: got 'x', expected an object"),
        ("stem", None, "spec.stem: got None, expected an object"),
        ("stem.out", 0, "spec.stem.out: got 0, expected a whole number of at least 1"),
        ("head.out", "1024", "spec.head.out: got '1024', expected a whole number"),
        ("padding", "valid", "spec.padding: got 'valid', expected one of 'same', 'symmetric'"),
        ("resolution", 31, "spec.resolution: got 31, expected a whole number of at least 32"),
        ("num_classes", 0, "spec.num_classes: got 0, expected a whole number of at least 1"),
        ("in_channels", 0, "spec.in_channels: got 0, expected a whole number of at least 1"),
        ("bn_decay", 1.0, "spec.bn_decay: got 1.0, expected a number from 0 to below 1"),
        ("bn_eps", 0, "spec.bn_eps: got 0.0, expected a positive number"),
        ("bn_eps", float("nan"), "spec.bn_eps: got nan, expected a positive number"),
        ("dropout", -0.1, "spec.dropout: got -0.1, expected a number from 0 to below 1"),
        ("drop_path", 1, "spec.drop_path: got 1.0, expected a number from 0 to below 1"),
        ("name", 3, "spec.name: got 3, expected a string"),
        ("name", ..., "spec: unknown fields [], missing fields ['name']; the fields are name, st"),
        ("blocks.1.exp", 9, "spec.blocks[1]: unknown fields ['exp'], missing fields []; the fiel"),
        ("blocks.1.out", ..., "spec.blocks[1]: unknown fields [], missing fields ['out']; the"),
    ],
)
def test_json_errors_name_the_path(path, value, message):
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        spec_from_json(edited_json(path, value))


def test_json_that_is_none():
    with pytest.raises(ValueError, match=r"^spec: not JSON \("):
        spec_from_json("{")
    with pytest.raises(ValueError, match=r"^spec: got \[\], expected an object$"):
        spec_from_json("[]")


def test_fields_with_defaults_may_be_absent_in_json():
    assert spec_from_json(edited_json("drop_path", ...)) == build("mobilenet_v3_small")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SESpec(ratio=0), "ratio: got 0, expected above 0 and at most 1"),
        (lambda: SESpec(ratio="1/4"), "ratio: got '1/4', expected a number"),
        (lambda: SESpec(ratio=True), "ratio: got True, expected a number"),
        (lambda: ConvSpec(kernel=2, out=8, act="relu"), "kernel: got 2, expected an odd whole"),
        (lambda: ConvSpec(kernel=3, out=8.0, act="relu"), "out: got 8.0, expected a whole number"),
        (lambda: HeadSpec(out=8, act="none"), "act: got 'none', expected one of 'relu', 'relu6', "),
        (lambda: HeadSpec(out=True, act="relu"), "out: got True, expected a whole number of at"),
        (
            lambda: BlockSpec(kernel=3, expansion=8, out=8, act="relu", shortcut=0),
            "shortcut: got 0, expected True or False",
        ),
        (
            lambda: build("mobilenet_v2").replace(blocks=list(build("mobilenet_v2").blocks)),
            "blocks: expected a tuple",
        ),
    ],
)
def test_constructors_name_the_field(make, message):
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        make()


def test_specs_are_frozen():
    spec = build("mobilenet_v3_small")
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec.resolution = 96
    with pytest.raises(TypeError, match="unexpected keyword"):
        NetSpec(**{f.name: getattr(spec, f.name) for f in dataclasses.fields(spec)}, stride=2)


def test_arch_needs_only_the_standard_library():
    """Without site-packages (-S) the networks can still be built and counted."""
    code = "from mbv3_jax.arch import build, cost; print(cost.params(build('mobilenet_v3_large')))"
    out = subprocess.run(
        [sys.executable, "-S", "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert out.stdout == "5483032\n"


BOMBS = {
    "resolution: the input has 3,000,000,000,000 values": {"resolution": 10**6},
    "blocks: there are 5,000 blocks": {"blocks": 5000},
    r"blocks\[2\]: a layer of it has 78,400,000,000 values": {"out": 10**8},
    r"blocks\[2\]: a layer of it has 1,568,000,000 values": {"expansion": 2 * 10**6},
    "head: with it, the network has .* parameters": {
        "head": {"out": 3 * 10**6, "act": "relu"},
        "num_classes": 10,
    },
    "num_classes: with it, the network has .* parameters": {"num_classes": 10**9},
}


@pytest.mark.parametrize("message", BOMBS)
def test_networks_that_are_too_large(message, monkeypatch):
    spec = build("mobilenet_v3_small")
    tree, change = json.loads(spec_to_json(spec)), BOMBS[message]
    if "blocks" in change:
        tree["blocks"] = [tree["blocks"][-1]] * change["blocks"]
    elif change.keys() & tree.keys():
        tree |= change
    else:
        tree["blocks"][2] |= change
    began = time.perf_counter()
    with pytest.raises(ValueError, match=rf"^spec\.{message}, more than the limit of .* MBV3_MAX_"):
        spec_from_json(json.dumps(tree))
    assert time.perf_counter() - began < 2
    for name in ("BLOCKS", "PARAMETERS", "ACTIVATIONS"):
        monkeypatch.setenv(f"MBV3_MAX_{name}", str(10**30))
    spec_from_json(json.dumps(tree))


@pytest.mark.parametrize("name", ["mobilenet_v3_large", "mobilenet_v3_small", "mobilenet_v2"])
def test_the_size_is_counted_as_traversal_counts_it(name, monkeypatch):
    spec = build(name, width=1.5, resolution=160)
    weights = sum(math.prod(conv.kernel_shape) for conv in convolutions(spec))
    largest = max(math.prod(conv.out_shape) for conv in convolutions(spec))
    # The first block has no expansion, but is counted with one.
    slack = spec.stem.out * spec.blocks[0].expansion
    monkeypatch.setenv("MBV3_MAX_PARAMETERS", str(weights + slack))
    monkeypatch.setenv("MBV3_MAX_ACTIVATIONS", str(largest))
    spec.replace(name="fits")
    monkeypatch.setenv("MBV3_MAX_ACTIVATIONS", str(largest - 1))
    with pytest.raises(ValueError, match="a layer of it has"):
        spec.replace(name="too wide")
    monkeypatch.setenv("MBV3_MAX_ACTIVATIONS", str(largest))
    monkeypatch.setenv("MBV3_MAX_PARAMETERS", str(weights - 1))
    with pytest.raises(ValueError, match="with it, the network has"):
        spec.replace(name="too heavy")
