"""A file of timm or torchvision through the commands: the same features and logits, and back.

One network of each family and file format; tests/peers/ has the others, in memory.
"""

import functools
from pathlib import Path

import jax
import numpy as np
import pytest
from peer_compare import IMAGE_SHAPE, TOLERANCE, error, torch_peers

from mbv3_jax import __main__
from mbv3_jax.interop import weight_files
from mbv3_jax.nn import functional
from mbv3_jax.run.model import load_model

BN_DECAY = 0.2  # see `peer_compare`
QUICKLY = {"xla_backend_optimization_level": 0}

TORCH = [
    # peer, width, file, flags, also in training mode
    ("timm/mobilenetv3_small_050", 1.0, "x.pth", [], False),
    ("timm/tf_mobilenetv3_small_minimal_100", 1.0, "x.safetensors", [], False),
    ("timm/mobilenetv3_rw", 1.0, "x.safetensors", [], True),
    ("timm/semnasnet_050", 1.0, "x.safetensors", [], False),
    ("timm/mnasnet_small", 1.0, "mnasnet_small.pth", [], True),
    ("torchvision/mobilenet_v3_small", 0.5, "x.pth", [], False),
    ("torchvision/mobilenet_v2", 0.35, "x.safetensors", ["--network=mobilenet_v2"], False),
    ("torchvision/mnasnet0_5", 1.0, "x.pth", [], False),
]


def run(*arguments) -> int:
    return __main__.main([str(a) for a in arguments])


@functools.partial(jax.jit, static_argnums=0, compiler_options=QUICKLY)
def _infer(spec, variables, images):
    maps = functional.features(spec, variables, images, stages=tuple(spec.strides()))
    logits, _ = functional.apply(spec, variables, images)
    return logits, [m.values for m in maps]


@functools.partial(jax.jit, static_argnums=0, compiler_options=QUICKLY)
def _train(spec, variables, images):
    return functional.apply(spec, variables, images, train=True)


def _torch_stages(peer, spec) -> list:
    """The modules whose outputs are our stem, blocks and last 1x1, activated."""
    net = peer.model
    if peer.library == "timm":
        blocks = [block for stage in net.blocks for block in stage]
        after = [net.bn2] if spec.head is None else []
        return [net.bn1, *blocks, *after]
    if hasattr(net, "features"):
        return list(net.features)
    stacks = [block for stack in net.layers[8:14] for block in stack]
    return [net.layers[2], net.layers[7], *stacks, net.layers[-1]]


def _torch_features(peer, spec, images) -> list[np.ndarray]:
    found = []
    hooks = [
        module.register_forward_hook(
            lambda _m, _i, output: found.append(output.permute(0, 2, 3, 1).numpy().copy())
        )
        for module in _torch_stages(peer, spec)
    ]
    peer.forward(images, train=False)
    for hook in hooks:
        hook.remove()
    return found


def _save(state: dict, path: Path) -> None:
    if path.suffix == ".pth":
        torch_peers().torch.save(state, path)
    else:
        from safetensors.torch import save_file

        save_file(state, path)


def _images(rng) -> np.ndarray:
    return rng.normal(size=(2, *IMAGE_SHAPE)).astype(np.float32)


@pytest.mark.parametrize(("name", "width", "file", "flags", "train"), TORCH, ids=lambda v: str(v))
def test_torch_files(name, width, file, flags, train, tmp_path, capsys):
    rng = np.random.default_rng(0)
    peer = torch_peers().TorchPeer(name, width, num_classes=10)
    norm = torch_peers().torch.nn.BatchNorm2d
    eps = next(m.eps for m in peer.model.modules() if isinstance(m, norm))
    peer.prepare(rng, bn_eps=eps, bn_decay=BN_DECAY)
    images = _images(rng)
    peer.forward(images, train=True)
    _save(peer.model.state_dict(), tmp_path / file)
    source, folder = tmp_path / file, tmp_path / "imported"
    library = peer.library
    assert run("import", f"--from={library}", f"--weights={source}", f"--out={folder}", *flags) == 0
    printed = capsys.readouterr().out
    assert f"imported {library}'s {name.partition('/')[2]}" in printed
    imported = load_model(folder)
    spec = imported.spec
    assert (spec.bn_eps, spec.num_classes, len(imported.class_names)) == (eps, 10, 10)

    with jax.default_matmul_precision("highest"):
        logits, maps = _infer(spec, imported.variables, images)
        theirs = peer.forward(images, train=False)
        assert error(logits, theirs, varied=True) < TOLERANCE
        their_maps = _torch_features(peer, spec, images)
        assert len(their_maps) == len(maps) == len(spec.blocks) + 2
        assert max(map(error, maps, their_maps)) < TOLERANCE
        if train:
            logits, _ = _train(spec.replace(dropout=0.0), imported.variables, images)
            assert error(logits, peer.forward(images, train=True), varied=True) < TOLERANCE

    before = weight_files.read(library, source).tensors
    again = tmp_path / f"again{source.suffix}"
    export = ("export-weights", f"--import={folder}", f"--to={library}", f"--out={again}")
    assert run(*export) == 0
    after = weight_files.read(library, again).tensors
    assert after.keys() == before.keys()
    assert all(np.array_equal(after[n], before[n]) for n in before)
    # What the command prints is what loads the file.
    code = capsys.readouterr().out.partition("load it with\n")[2]
    scope = {}
    exec(code, scope)
    built = scope["model"].state_dict()
    assert all(np.array_equal(built[n].numpy(), before[n]) for n in before)
