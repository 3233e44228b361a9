"""What cannot be imported or exported is named, and nothing is written."""

import argparse
import json
import os
import pickle
import re
import sys
import zipfile

import numpy as np
import pytest
from peer_compare import import_peer

from mbv3_jax import __main__
from mbv3_jax.interop import mapping, networks, weight_files
from mbv3_jax.nn import functional
from mbv3_jax.run.model import Model, Preprocessing, load_model, save_model

NAME = "mobilenetv3_small_050"


@pytest.fixture(scope="module")
def tensors():
    """Those of a small timm network with five classes."""
    spec = networks.get("timm", NAME).spec.replace(num_classes=5)
    rng = np.random.default_rng(0)
    return {
        p.theirs: rng.uniform(0.5, 1, p.their_shape).astype(np.float32)
        for p in mapping.pairs("timm", spec)
    }


@pytest.fixture
def attempt(tmp_path, capsys):
    """attempt(file, *flags) -> what an import of timm's weights that fails says."""

    def run(file, *flags, library="timm", code=2) -> str:
        out = tmp_path / "out"
        before = sorted(tmp_path.iterdir())
        arguments = ["import", f"--from={library}", f"--weights={file}", f"--out={out}", *flags]
        assert __main__.main(arguments) == code
        assert sorted(tmp_path.iterdir()) == before, "something was written"
        return capsys.readouterr().err

    return run


def _file(tmp_path, tensors, name="x.safetensors"):
    import_peer("safetensors.numpy", "files of weights").save_file(tensors, tmp_path / name)
    return tmp_path / name


def test_missing_surplus_and_misshapen_tensors_at_once(tmp_path, tensors, attempt):
    changed = dict(tensors, extra=np.zeros((2, 3), np.float32))
    del changed["bn1.weight"]
    changed["conv_stem.weight"] = np.zeros((16, 1, 3, 3), np.float32)
    said = attempt(_file(tmp_path, changed), f"--network={NAME}")
    assert f"x.safetensors is not timm's {NAME}:" in said
    assert "bn1.weight (params/stem/bn/scale): missing, expected (16,)" in said
    assert "extra: surplus, has (2, 3)" in said
    assert "has (16, 1, 3, 3), expected (16, 3, 3, 3)" in said
    # Without its name the nearest network is found, which is this one.
    assert f"the nearest is {NAME}:" in attempt(tmp_path / "x.safetensors")


def test_a_folder_that_cannot_hold_weights_is_refused_before_the_file_is_read(tmp_path, attempt):
    said = attempt("nothing.pth", f"--out={tmp_path}/a\\b")
    assert said.startswith(
        f"error: {tmp_path}/a\\b: checkpoints cannot be read from a path with \\"
    )
    assert said.endswith("takes for /; give another --out\n")


def test_another_network(tmp_path, tensors, attempt):
    said = attempt(_file(tmp_path, tensors), "--network=mobilenetv3_large_100")
    assert "is not timm's mobilenetv3_large_100" in said
    assert "blocks.6.0.conv.weight (params/last/conv/kernel): missing" in said
    said = attempt(tmp_path / "x.safetensors", library="torchvision")
    assert f"its tensors are those of timm's {NAME}: use --from=timm" in said


def test_networks_that_share_their_tensors_need_a_name(tmp_path, attempt, capsys):
    spec = networks.get("timm", "mobilenetv3_small_075").spec
    shared = {p.theirs: np.ones(p.their_shape, np.float32) for p in mapping.pairs("timm", spec)}
    file = _file(tmp_path, shared)
    assert "equally well: mobilenetv3_small_075, tf_mobilenetv3_small_075." in attempt(file)
    out = tmp_path / "out"
    arguments = ["import", "--from=timm", f"--weights={file}", f"--out={out}"]
    assert __main__.main([*arguments, "--network=tf_mobilenetv3_small_075.in1k"]) == 0
    got = load_model(out)
    assert (got.spec.padding, got.spec.bn_eps) == ("same", 1e-3)
    assert got.preprocessing.mean == (0.5, 0.5, 0.5)
    assert got.class_names[:2] == ("tench", "goldfish")
    said = capsys.readouterr().out
    assert "of tf_mobilenetv3_small_075.in1k" in said
    assert json.loads((out / "origin.json").read_text())["sha256"] in said


@pytest.mark.parametrize(
    ("flag", "reason"),
    [
        ("--network=mobilenetv9", "no such network of timm; expected one of mobilenetv3_large_100"),
        ("--network=mobilenetv3_large_150d", "two 1x1 convolutions before pooling"),
        (f"--network={NAME}.best", f"timm has {NAME}.lamb_in1k"),
        ("--width=0.5", "has its width in its name"),
        ("--sha256=abc", "its SHA-256 is .*, expected abc"),
        ("--revision=abc", "for names of weights, not for files"),
        ("--classes=no.txt", "no.txt: No such file"),
        ("--more=1", "unknown option --more=1"),
    ],
)
def test_options(tmp_path, tensors, attempt, flag, reason):
    file = _file(tmp_path, tensors)
    flags = [flag] if flag != "--width=0.5" else [flag, f"--network={NAME}"]
    assert re.search(reason, attempt(file, *flags))


def test_class_names_that_do_not_fit(tmp_path, tensors, attempt):
    file = _file(tmp_path, tensors)
    names = tmp_path / "names.txt"
    names.write_text("a\nb\nc\n")
    assert "has 3 names, the network 5 classes" in attempt(file, f"--classes={names}")
    names.write_text("a\nb\n\nc\nd\n")
    assert "line 3 is blank (1 such), expected one name on each line" in attempt(
        file, f"--classes={names}"
    )
    names.write_text("\n")
    assert "no name in it" in attempt(file, f"--classes={names}")
    names = tmp_path / "names.json"
    names.write_text('["a", "", "c", "d", "e"]')
    assert "entry 2 is blank" in attempt(file, f"--classes={names}")
    names.write_text('["a", "b", "c", "d", "e"]')
    out = tmp_path / "out"
    arguments = ["import", "--from=timm", f"--weights={file}", f"--out={out}"]
    assert __main__.main([*arguments, f"--classes={names}"]) == 0
    assert load_model(out).class_names == ("a", "b", "c", "d", "e")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("n.txt", "\ufeffa\r\nb\r\nc \r\nd\r\ne\r\n\r\n \r\n"),
        ("n.json", '\ufeff["a", "b", "c", "d", "e"]\n'),
    ],
)
def test_class_names_as_windows_saves_them(tmp_path, name, text):
    from mbv3_jax.interop.class_names import find_class_names

    (tmp_path / name).write_bytes(text.encode())
    names, source = find_class_names(5, tmp_path / name)
    assert names == ("a", "b", "c", "d", "e")
    assert source == f"of {tmp_path / name}"


def test_names_of_several_classes_are_said(tmp_path):
    from mbv3_jax.interop.class_names import find_class_names

    (tmp_path / "n.txt").write_text("crane\nfox\ncrane\nowl\nfox\n")
    names, source = find_class_names(5, tmp_path / "n.txt")
    assert names == ("crane", "fox", "crane", "owl", "fox")
    assert source.endswith("n.txt, of which 2 stand for several classes: 'crane', 'fox'")


def test_heads_of_tensorflow_have_background_first():
    from mbv3_jax.interop.class_names import find_class_names

    names, where = find_class_names(1001, None)
    assert (len(names), *names[:2], names[-1]) == (1001, "background", "tench", "toilet tissue")
    assert where.endswith("after background")
    assert find_class_names(3, None)[0] == ("0", "1", "2")


def test_truncated_and_foreign_files(tmp_path, tensors, attempt):
    whole = _file(tmp_path, tensors).read_bytes()
    for name, data in {
        "cut.safetensors": whole[: len(whole) // 2],
        "text.safetensors": b"hello",
        "empty.safetensors": b"",
    }.items():
        (tmp_path / name).write_bytes(data)
        assert f"{name} cannot be read as .safetensors; is it complete?" in attempt(tmp_path / name)
    pointer = tmp_path / "pointer.pth"  # in a clone without Git LFS
    pointer.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    assert "pointer.pth is a pointer of Git LFS, which stands for the file" in attempt(pointer)
    header = b'{"a":{"dtype":"F8_E4M3","shape":[1],"data_offsets":[0,1]}}'
    eight = tmp_path / "eight.safetensors"
    eight.write_bytes(len(header).to_bytes(8, "little") + header + b"0")
    assert "tensors of the type F8_E4M3, expected float32, float16" in attempt(eight)
    said = attempt(_file(tmp_path, {"bert.\x1b": np.zeros(1, np.float32)}))
    assert said.endswith("name of one in a network of timm; it has bert.\\x1b\n")
    assert "no such file" in attempt(tmp_path / "absent.safetensors")
    assert "no such file" in attempt("absent.safetensors")
    (tmp_path / "x.onnx").write_bytes(b"")
    assert "files of timm end in .safetensors, .pth" in attempt(tmp_path / "x.onnx")


def test_integers_are_refused_as_weights(tmp_path, tensors, attempt):
    changed = dict(tensors, **{"bn1.weight": np.ones(16, np.int32)})
    assert "bn1.weight is int32, expected float32" in attempt(_file(tmp_path, changed))


def test_half_precision_is_taken_exactly(tmp_path, tensors):
    half = {n: t.astype(np.float16) for n, t in tensors.items()}
    got = weight_files.read("timm", _file(tmp_path, half)).tensors
    assert all(v.dtype == np.float32 and np.array_equal(v, half[n]) for n, v in got.items())


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_no_numbers(tmp_path, tensors, attempt, value):
    changed = dict(tensors)
    changed["bn1.weight"] = np.full_like(tensors["bn1.weight"], value)
    said = attempt(_file(tmp_path, changed), f"--network={NAME}")
    assert "x.safetensors: bn1.weight holds values that are not finite numbers" in said


def test_pth_with_code_in_it_does_not_run(tmp_path, attempt):
    torch = import_peer("torch", "files of weights")

    class Bad:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "made by code"),)

    torch.save({"conv_stem.weight": Bad()}, tmp_path / "bad.pth")
    said = attempt(tmp_path / "bad.pth")
    assert "bad.pth: it holds more than tensors" in said
    assert "mkdir" in said
    assert "weights_only" not in said
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Bad(), protocol=2))
    attempt(tmp_path / "plain.pth")
    for name, value, protocol in (
        ("object", argparse.Namespace(x=1), 2),
        ("numpy", {"a": np.zeros(3)}, 2),
        ("new", {"a": Bad()}, 4),
        ("old", {"a": 1}, 0),
    ):
        for packed in (False, True):
            file = tmp_path / f"{name}.pth"
            if packed:
                torch.save(value, file)
            else:
                file.write_bytes(pickle.dumps(value, protocol=protocol))
            said = attempt(file)
            assert said.startswith(f"error: {file}: it ") and len(said.splitlines()) == 1
            # Nothing of PyTorch's advice to load it all the same.
            assert not re.search("weights_only|allowlist|safe_globals|trust|file an issue", said)
    assert not (tmp_path / "made by code").exists()
    torch.save([1, 2], tmp_path / "list.pth")
    assert "holds no state dict" in attempt(tmp_path / "list.pth")
    torch.save({"x": torch.zeros(1000)}, tmp_path / "cut.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "cut.pth").read_bytes()[:700])
    assert "cut.pth cannot be read as .pth; is it complete?" in attempt(tmp_path / "cut.pth")


def test_checkpoints_of_training_scripts(tmp_path, tensors):
    torch = import_peer("torch", "files of weights")
    state = {f"module.{n}": torch.from_numpy(t) for n, t in tensors.items()}
    averaged = {n: t + 1 for n, t in state.items()}
    torch.save({"epoch": 3, "state_dict": state, "state_dict_ema": averaged}, tmp_path / "c.pth")
    got = weight_files.read("timm", tmp_path / "c.pth")
    assert got.part == "state_dict_ema"
    assert got.tensors.keys() == tensors.keys()
    assert np.array_equal(got.tensors["bn1.bias"], tensors["bn1.bias"] + 1)


def test_keras_files_of_something_else(tmp_path, attempt):
    h5py = import_peer("h5py", "files of weights")
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["numbers"] = np.zeros(3)
    assert "it is not a Keras file" in attempt(tmp_path / "x.h5", library="keras")
    data = (tmp_path / "x.h5").read_bytes()
    (tmp_path / "cut.weights.h5").write_bytes(data[:500])
    assert "is it complete?" in attempt(tmp_path / "cut.weights.h5", library="keras")
    with h5py.File(tmp_path / "y.weights.h5", "w") as file:
        file["layers/conv2d/vars/0"] = np.zeros((3, 3, 3, 16), np.float32)
        file["optimizer/vars/0"] = np.zeros((), np.int32)
        file["layers/dropout/seed_generator/vars/0"] = np.zeros(2, np.uint32)
    assert list(weight_files.read("keras", tmp_path / "y.weights.h5").tensors) == [
        "layers/conv2d/vars/0"
    ]
    said = attempt(tmp_path / "y.weights.h5", library="keras")
    assert "does not fit any network of keras; the nearest is" in said


def _external(h5py, file, place, secret):
    size = secret.stat().st_size // 4
    file.create_dataset(place, (size,), np.float32, external=[(str(secret), 0, size * 4)])


def _virtual(h5py, file, place, secret):
    layout = h5py.VirtualLayout((2,), np.float32)
    layout[:] = h5py.VirtualSource(secret, "w", (2,))
    file.create_virtual_dataset(place, layout)


def _external_link(h5py, file, place, secret):
    file[place] = h5py.ExternalLink(str(secret), "w")


def _soft_link(h5py, file, place, secret):
    file["outside"] = h5py.ExternalLink(str(secret), "w")
    file[place] = h5py.SoftLink("/outside")


@pytest.mark.parametrize(
    ("refer", "what"),
    [
        (_external, "is a dataset with external storage"),
        (_virtual, "is a dataset with virtual storage"),
        (_external_link, "is an external link"),
        (_soft_link, "is a soft link"),
    ],
)
@pytest.mark.parametrize("older", [False, True])
def test_no_byte_of_another_file_is_read(tmp_path, attempt, refer, what, older):
    h5py = import_peer("h5py", "files of weights")
    secret, place = tmp_path / "secret.h5", "layers/conv2d/vars/0"
    with h5py.File(secret, "w") as file:
        file["w"] = np.ones(2, np.float32)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        refer(h5py, file, place, secret)
        if older:
            file.attrs["layer_names"] = ["layers"]
            file["layers"].attrs["weight_names"] = ["conv2d/vars/0"]
    said = attempt(tmp_path / "x.h5", library="keras")
    assert f"x.h5: {place} {what}, expected only datasets in the file itself\n" in said
    with zipfile.ZipFile(tmp_path / "x.keras", "w") as archive:
        archive.write(tmp_path / "x.h5", "model.weights.h5")
    assert f"x.keras: {place} {what}" in attempt(tmp_path / "x.keras", library="keras")


def test_an_external_link_that_nothing_reads_is_refused_too(tmp_path, attempt):
    h5py = import_peer("h5py", "files of weights")
    with h5py.File(tmp_path / "x.weights.h5", "w") as file:
        file["layers/conv2d/vars/0"] = np.zeros((3, 3, 3, 16), np.float32)
        file["optimizer/elsewhere"] = h5py.ExternalLink("/nowhere.h5", "w")
    said = attempt(tmp_path / "x.weights.h5", library="keras")
    assert "optimizer/elsewhere is an external link" in said


def test_a_missing_package_is_named(tmp_path, tensors, attempt, monkeypatch):
    file = _file(tmp_path, tensors)
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    monkeypatch.setitem(sys.modules, "safetensors", None)
    said = attempt(file)
    assert "reading .safetensors needs safetensors: pip install -e '.[weights]'" in said


def test_a_folder_that_is_not_empty(tmp_path, tensors, capsys):
    file, out = _file(tmp_path, tensors), tmp_path / "out"
    out.mkdir()
    (out / "mine").write_text("mine")
    arguments = ["import", "--from=timm", f"--weights={file}", f"--out={out}"]
    assert __main__.main(arguments) == 2
    assert "exists already" in capsys.readouterr().err
    assert [p.name for p in out.iterdir()] == ["mine"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory, tiny_spec):
    """An import folder of a network that no library has."""
    import jax

    folder = tmp_path_factory.mktemp("tiny") / "folder"
    model = Model(
        spec=tiny_spec,
        variables=functional.init(tiny_spec, jax.random.key(0)),
        preprocessing=Preprocessing(),
        class_names=tuple("0123456789"),
    )
    save_model(folder, model, origin={})
    return folder


def test_a_network_that_a_library_does_not_have(tmp_path, tiny, capsys):
    for library, suffix in (("timm", ".pth"), ("torchvision", ".pth"), ("keras", ".weights.h5")):
        out = tmp_path / f"x{suffix}"
        export = ["export-weights", f"--import={tiny}", f"--to={library}", f"--out={out}"]
        assert __main__.main(export) == 2
        said = capsys.readouterr().err
        assert f"{library} has no network like this one; the nearest, " in said
        assert "blocks: 2 here, " in said
        assert not out.exists()


def test_files_that_cannot_be_written(tmp_path, tiny, capsys):
    for library, name, reason in (
        ("timm", "x.weights.h5", "end in .safetensors, .pth"),
        ("keras", "x.keras", "end in .weights.h5"),
        ("timm", "there.pth", "already exists"),
    ):
        (tmp_path / "there.pth").write_text("")
        out = tmp_path / name
        export = ["export-weights", f"--import={tiny}", f"--to={library}", f"--out={out}"]
        assert __main__.main(export) == 2
        assert reason in capsys.readouterr().err
    export = ["export-weights", f"--import={tiny}", "--to=timm", "--out=x.pth"]
    assert __main__.main([*export, "--step=best"]) == 2
    assert "--step: " in (said := capsys.readouterr().err) and "which has one set of" in said
    with pytest.raises(SystemExit, match="2"):
        __main__.main([*export, "--step=last"])
    assert "--step: got 'last', expected a number or best" in capsys.readouterr().err
