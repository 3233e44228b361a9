"""Networks of one output: a sigmoid over two classes where these have names, else refused."""

import json

import numpy as np
import pytest
from peer_compare import TOLERANCE, torch_peers
from PIL import Image

from mbv3_jax import __main__
from mbv3_jax.export import metadata
from mbv3_jax.run.model import load_model
from mbv3_jax.train.inference import Inference

TIMM = "tf_mobilenetv3_small_minimal_100"  # which compiles quickly
NOTE = "note: one output for two classes: its sigmoid is 'dog', the rest 'cat'\n"


@pytest.fixture(scope="module")
def network():
    torch, timm = torch_peers().torch, torch_peers().timm
    torch.manual_seed(0)
    made = timm.create_model(TIMM, num_classes=1).eval()
    with torch.no_grad():
        made.classifier.weight.mul_(0.1)
        made.classifier.bias.fill_(0.5)
    return made


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    root = tmp_path_factory.mktemp("pictures")
    for i, name in enumerate(("cat", "dog")):
        (root / name).mkdir()
        for j in range(2):
            pixels = np.random.default_rng(2 * i + j).integers(0, 256, (64, 64, 3), np.uint8)
            Image.fromarray(pixels).save(root / name / f"{j}.png")
    return root


@pytest.fixture
def run(network, tmp_path):
    """run(names) imports the network with these class names; the exit code."""
    torch_peers().torch.save(network.state_dict(), tmp_path / "x.pth")

    def run(*names):
        (tmp_path / "names.txt").write_text("".join(f"{name}\n" for name in names))
        arguments = ["import", "--from=timm", f"--weights={tmp_path / 'x.pth'}"]
        arguments += [f"--network={TIMM}", "--resolution=64", f"--out={tmp_path / 'out'}"]
        classes = [f"--classes={tmp_path / 'names.txt'}"] if names else []
        return __main__.main([*arguments, *classes])

    return run


def test_two_names_make_it_a_sigmoid(run, network, pictures, tmp_path, capsys):
    torch = torch_peers().torch
    assert run("cat", "dog") == 0
    said = capsys.readouterr().out
    assert ", 2 classes\n" in said
    assert "names.txt, the second by the sigmoid of the one output\n" in said
    folder, file = tmp_path / "out", pictures / "dog/1.png"
    model = load_model(folder)
    assert (model.spec.num_classes, model.class_names) == (2, ("cat", "dog"))

    assert __main__.main(["predict", f"--import={folder}", "--json", "--batch=2", str(file)]) == 0
    printed = capsys.readouterr()
    assert NOTE in printed.err
    guesses = {g["class"]: g["probability"] for g in json.loads(printed.out)["predictions"]}
    ((_, view, _),) = Inference(folder, batch=2).predictions([str(file)])
    how = model.preprocessing
    images = ((view[None] / 255 - np.array(how.mean)) / np.array(how.std)).astype(np.float32)
    with torch.no_grad():
        share = network(torch.from_numpy(images).permute(0, 3, 1, 2)).sigmoid().item()
    assert 0.05 < share < 0.95
    assert abs(guesses["dog"] - share) < TOLERANCE
    assert abs(guesses["cat"] - (1 - share)) < TOLERANCE

    data = ["eval", f"--import={folder}", f"--data=folder:{pictures}", "--batch=2"]
    assert __main__.main(data) == 0
    printed = capsys.readouterr()
    assert NOTE in printed.err and json.loads(printed.out)["count"] == 4

    out = tmp_path / "x.stablehlo"
    arguments = ["export", f"--import={folder}", "--format=stablehlo", f"--out={out}"]
    assert __main__.main([*arguments, "--check=2"]) == 0
    assert NOTE in capsys.readouterr().out
    assert metadata.read(out)["output"]["values"].endswith(NOTE[6:-1])
    out = tmp_path / "back.pth"
    arguments = ["export-weights", f"--import={folder}", "--to=timm", f"--out={out}"]
    assert __main__.main(arguments) == 0
    assert f"# {NOTE[6:-1]}; the file has two logits" in capsys.readouterr().out


@pytest.mark.parametrize("names", [("dog",), ("cat", "dog", "fox")])
def test_other_numbers_of_names_are_refused(run, names, tmp_path, capsys):
    assert run(*names) == 2
    error = capsys.readouterr().err
    assert "but the network has one output, whose sigmoid tells two classes apart; give" in error
    assert error.count("\n") == 1 and not (tmp_path / "out").exists()


def test_without_names_it_only_embeds_and_starts_trainings(run, pictures, tmp_path, capsys):
    assert run() == 0
    said = capsys.readouterr().out
    assert "class names: unknown: of one output, --classes=FILE gives two" in said
    assert " train --config=finetune:folder=DIR --config.init=" in said
    flag = f"--import={tmp_path / 'out'}"
    for arguments in (
        ["predict", flag, str(pictures)],
        ["eval", flag, f"--data=folder:{pictures}"],
        ["export", flag, "--format=onnx", f"--out={tmp_path / 'x.onnx'}"],
        ["export-weights", flag, "--to=timm", f"--out={tmp_path / 'y.pth'}"],
    ):
        assert __main__.main(arguments) == 2
        error = capsys.readouterr().err
        assert "a network of one output, whose softmax is always 100%; import it again" in error
        assert "--classes=FILE of two names" in error and error.count("\n") == 1
