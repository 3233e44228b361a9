"""Checkpoints as PyTorch's training scripts write them: the network in them is found, every bit."""

import argparse
import collections
import os
import pathlib
import types

import numpy as np
import pytest
from peer_compare import import_peer, torch_peers

from mbv3_jax import __main__
from mbv3_jax.interop import mapping, networks, weight_files
from mbv3_jax.run.model import load_model

NAME = "mobilenetv3_small_050"


@pytest.fixture(scope="module")
def torch():
    return import_peer("torch", "files of weights")


@pytest.fixture(scope="module")
def state(torch):
    """A state dict of a small timm network with five classes."""
    spec = networks.get("timm", NAME).spec.replace(num_classes=5)
    rng = np.random.default_rng(0)
    return {
        p.theirs: torch.from_numpy(rng.uniform(0.5, 1, p.their_shape).astype(np.float32))
        for p in mapping.pairs("timm", spec)
    }


def read(torch, value, path):
    torch.save(value, path)
    return weight_files.read("timm", path)


def same(file, state) -> bool:
    return file.tensors.keys() == state.keys() and all(
        np.array_equal(file.tensors[n], state[n].float().numpy()) for n in state
    )


@pytest.mark.parametrize(
    "prefix",
    ["module.", "_orig_mod.", "_orig_mod.module.", "module._orig_mod.model.", "net.backbone."],
)
def test_wrappers_in_any_order(torch, state, tmp_path, prefix):
    wrapped = {prefix + name: value for name, value in state.items()}
    got = read(torch, wrapped | {"n_averaged": torch.tensor(7)}, tmp_path / "x.pt")
    assert same(got, state)
    assert got.prefix == prefix.replace("_orig_mod.", "")
    safetensors = import_peer("safetensors.torch", "files of weights")
    safetensors.save_file(wrapped, tmp_path / "x.safetensors")
    assert same(weight_files.read("timm", tmp_path / "x.safetensors"), state)


def test_wrappers_of_single_blocks_and_profilers(torch, state, tmp_path):
    changed = {}
    for name, value in state.items():
        inner = name.replace("blocks.1.0.", "blocks.1.0._checkpoint_wrapped_module.")
        changed[inner.replace("blocks.2.1.", "blocks.2._orig_mod.1.")] = value
    changed |= {
        "total_ops": torch.zeros(1, dtype=torch.float64),
        "bn1.total_params": torch.zeros(1),
    }
    assert same(read(torch, changed, tmp_path / "x.pth"), state)


@pytest.mark.parametrize(
    ("key", "part"),
    [(k, k) for k in ("state_dict", "model_state_dict", "net", "weights", "model_ema")]
    + [("trainer", "trainer.state_dict")],
)
def test_containers(torch, state, tmp_path, key, part):
    value = {"state_dict": state, "step": 1} if key == "trainer" else state
    got = read(torch, {"epoch": 3, key: value, "optimizer": {"state": {}}}, tmp_path / "x.tar")
    assert same(got, state)
    assert (got.part, got.left_out) == (part, ("epoch", "optimizer"))


def test_averaged_weights_come_first(torch, state, tmp_path):
    averaged = {f"module.module.{n}": v + 1 for n, v in state.items()}
    whole = {"model": state, "ema": {**averaged, "n_averaged": torch.tensor(3)}, "best": 0.5}
    got = read(torch, whole, tmp_path / "x.pth")
    assert (got.part, got.left_out) == ("ema", ("model", "best"))
    assert same(got, {n: v + 1 for n, v in state.items()})
    both = {f"model.{n}": v for n, v in state.items()}  # as a Lightning module holds them
    both |= {f"ema_model.{n}": v + 1 for n, v in state.items()}
    got = read(torch, {"state_dict": both}, tmp_path / "x.ckpt")
    assert (got.part, got.prefix) == ("state_dict", "ema_model.")
    assert got.tensors.keys() == state.keys()


def test_names_that_are_no_text_are_escaped(torch, state, tmp_path, capsys):
    hostile = {"net\x1b[2J\n": {f"a\ud800\x1b.{n}": v for n, v in state.items()}, "\x1b]0;x": 1}
    torch.save(hostile, tmp_path / "x.pth")
    arguments = ["import", "--from=timm", f"--weights={tmp_path / 'x.pth'}"]
    assert __main__.main([*arguments, f"--out={tmp_path / 'out'}"]) == 0
    said = capsys.readouterr().out
    assert "found under: net\\x1b[2J\\n, a\\ud800\\x1b.\nleft out: \\x1b]0;x\n" in said


def test_several_networks_are_refused(torch, state, tmp_path, capsys):
    torch.save({"student": state, "teacher": dict(state)}, tmp_path / "x.pth")
    twice = {f"{who}.{n}": v for who in ("student", "teacher") for n, v in state.items()}
    torch.save(twice, tmp_path / "y.pth")
    for name in ("x.pth", "y.pth"):
        arguments = ["import", "--from=timm", f"--weights={tmp_path / name}", "--dry-run"]
        assert __main__.main(arguments) == 2
        assert capsys.readouterr().err == (
            f"error: {tmp_path / name}: it holds several networks (student, teacher); save the one "
            "to read by itself\n"
        )


@pytest.mark.parametrize("kind", ["float64", "float16", "bfloat16"])
def test_other_types(torch, state, tmp_path, kind):
    cast = {n: v.to(getattr(torch, kind)) for n, v in state.items()}
    assert same(read(torch, cast, tmp_path / "x.pth"), cast)


class Config:  # a class of the training script
    def __init__(self):
        self.lr, self.path = 0.1, pathlib.PurePosixPath("data")


class Settings(dict):  # as Lightning's AttributeDict and YACS' nodes
    pass


class Steps(list):
    pass


def test_bookkeeping_beside_the_tensors(torch, state, tmp_path):
    whole = {
        "pytorch-lightning_version": "2.5.0",
        "state_dict": {f"model.{n}": v for n, v in state.items()},
        "hyper_parameters": Settings(a=1, config=Config()),
        "callbacks": {"best": {"path": pathlib.PurePosixPath("x"), "steps": Steps([1, 2])}},
        "metric": np.float64(0.5),
        "counts": collections.defaultdict(list, a=[1]),
        "when": types.SimpleNamespace(day=1),
        "args": argparse.Namespace(lr=0.1, array=np.arange(3), kind=np.dtype("float32")),
    }
    got = read(torch, whole, tmp_path / "x.ckpt")
    assert same(got, state)
    assert (got.part, got.prefix) == ("state_dict", "model.")
    assert got.left_out == tuple(k for k in whole if k != "state_dict")


def test_nothing_in_a_checkpoint_runs(torch, state, tmp_path, monkeypatch):
    made = tmp_path / "made"

    class Runs:
        def __init__(self, function):
            self.function = function

        def __reduce__(self):
            return self.function, (str(made),)

    for function in (pathlib.Path.touch, eval, exec, print):
        torch.save({"state_dict": state, "args": Runs(function)}, tmp_path / "x.pth")
        try:
            assert same(weight_files.read("timm", tmp_path / "x.pth"), state)
        except Exception as e:
            assert "not loaded" in str(e)
    torch.save({"state_dict": state, "args": Runs(os.mkdir)}, tmp_path / "x.pth")
    with pytest.raises(Exception, match=r"it holds more than tensors.*mkdir"):
        weight_files.read("timm", tmp_path / "x.pth")
    assert not made.exists()
    # A class of this process is not even looked up.
    monkeypatch.setattr(Config, "__setstate__", lambda *_: made.touch(), raising=False)
    assert same(read(torch, {"model": state, "c": Config()}, tmp_path / "x.pth"), state)
    assert not made.exists()


def test_whole_networks_and_torchscript_are_refused(torch, state, tmp_path, capsys):
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    torch.save(network, tmp_path / "whole.pth")
    torch.save({"model": network, "epoch": 1}, tmp_path / "inside.pth")
    torch.jit.script(network).save(tmp_path / "script.pt")
    for name, said in (
        ("whole.pth", "save the state dict of the network instead: torch.save(model.state_dict()"),
        ("inside.pth", "save the state dict of the network instead: torch.save(model.state_dict()"),
        ("script.pt", "it is a TorchScript archive, which holds code; save its state dict instead"),
    ):
        arguments = ["import", "--from=timm", f"--weights={tmp_path / name}", "--dry-run"]
        assert __main__.main(arguments) == 2
        err = capsys.readouterr().err
        assert said in err and len(err.splitlines()) == 1, err


def test_timms_own_checkpoint(torch, tmp_path, capsys):
    timm = torch_peers().timm
    from timm.utils import CheckpointSaver, ModelEmaV3

    model = timm.create_model(NAME, num_classes=4)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    model(torch.zeros(2, 3, 32, 32)).sum().backward()
    optimizer.step()
    ema = ModelEmaV3(model)
    flags = argparse.Namespace(model=NAME, lr=0.1)
    saver = CheckpointSaver(model, optimizer, flags, ema, checkpoint_dir=str(tmp_path))
    saver.save_checkpoint(3, metric=np.float64(0.25))
    file, out = tmp_path / "checkpoint-3.pth.tar", tmp_path / "out"
    arguments = ["import", "--from=timm", f"--weights={file}"]
    assert __main__.main([*arguments, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert f"would import timm's {NAME}: " in said and "4 classes" in said
    assert "found under: state_dict_ema" in said
    assert "left out: epoch, arch, optimizer, version, args, state_dict, metric" in said
    assert not out.exists()
    assert __main__.main([*arguments, f"--out={out}"]) == 0
    assert f"next: mbv3 predict --import={out}" in capsys.readouterr().out.replace(
        "python -m mbv3_jax", "mbv3"
    )
    averaged = ema.module.state_dict()
    got = load_model(out).variables["params"]
    theirs = averaged["conv_stem.weight"].numpy().transpose(2, 3, 1, 0)
    assert np.array_equal(got["stem"]["conv"]["kernel"], theirs)
    assert np.array_equal(got["logits"]["bias"], averaged["classifier.bias"].numpy())


def test_torchvisions_own_checkpoint(torch, tmp_path, capsys):
    model = torch_peers().torchvision.models.mobilenet_v3_small(num_classes=4, width_mult=0.5)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    ema = torch.optim.swa_utils.AveragedModel(torch.nn.DataParallel(model))
    checkpoint = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": schedule.state_dict(),
        "epoch": 1,
        "args": argparse.Namespace(data_path="imagenet", lr=0.1),
        "model_ema": ema.state_dict(),
        "scaler": torch.amp.GradScaler("cpu").state_dict(),
    }
    torch.save(checkpoint, tmp_path / "x.pth")
    arguments = ["import", "--from=torchvision", f"--weights={tmp_path / 'x.pth'}", "--dry-run"]
    assert __main__.main(arguments) == 0
    said = capsys.readouterr().out
    assert "would import torchvision's mobilenet_v3_small (width 0.5)" in said
    assert "found under: model_ema, module.module." in said
    assert "left out: model, optimizer, lr_scheduler, epoch, args, scaler" in said
