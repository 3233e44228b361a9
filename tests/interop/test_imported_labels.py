"""Networks of several labels per image: imports are told, and what leaves says it."""

import dataclasses

import numpy as np
import pytest
from peer_compare import torch_peers

from mbv3_jax import __main__
from mbv3_jax.core.errors import RunError
from mbv3_jax.export import metadata
from mbv3_jax.export.formats import Target
from mbv3_jax.interop import convert, hub_folder, networks
from mbv3_jax.nn import functional
from mbv3_jax.run.model import Model, Preprocessing, load_model, save_model

TIMM = "tf_mobilenetv3_small_minimal_100"
SIGMOID = "sigmoid gives the probability of each class, of which an image may have several"


@pytest.fixture(scope="module")
def model():
    network = networks.get("timm", TIMM)
    spec = network.spec.replace(num_classes=3)
    variables = {
        kind: {name: _filled(tree) for name, tree in group.items()}
        for kind, group in functional.shapes(spec).items()
    }
    return Model(
        spec=spec,
        variables=variables,
        preprocessing=Preprocessing(),
        class_names=("cat", "dog", "owl"),
        multi_label=True,
    )


def _filled(tree):
    if isinstance(tree, dict):
        return {name: _filled(value) for name, value in tree.items()}
    return np.ones(tree.shape, np.float32)


def test_what_leaves_says_it(model, tmp_path):
    single = dataclasses.replace(model, multi_label=False)
    for one, labels, logits in ((model, "multi", SIGMOID), (single, "single", "softmax gives")):
        folder = tmp_path / labels
        save_model(folder / "import", one, origin={})
        assert load_model(folder / "import").multi_label == one.multi_label
        assert (folder / "import" / "labels.json").exists() == one.multi_label
        network = hub_folder.write(folder / "hub", one, None)
        assert hub_folder.read(folder / "hub")[0].multi_label == one.multi_label
        assert f"- **Probabilities:** {logits}" in (folder / "hub" / "README.md").read_text()
        assert f"# logits: {logits}" in convert.instructions(one, network, folder / "x.pth")
        entries = metadata.describe(one, Target(file_format="onnx", precision="float32"), {})
        assert entries["labels"] == labels and entries["output"]["values"].startswith(logits)
    (tmp_path / "multi" / "import" / "labels.json").write_text('"several"')
    with pytest.raises(RunError, match=r"labels.json is damaged: got 'several'"):
        load_model(tmp_path / "multi" / "import")


def test_an_import_is_told(tmp_path, capsys):
    torch, timm = torch_peers().torch, torch_peers().timm

    def run(outputs, *flags):
        made = timm.create_model(TIMM, num_classes=outputs)
        torch.save(made.state_dict(), tmp_path / "x.pth")
        arguments = ["import", "--from=timm", f"--weights={tmp_path}/x.pth", f"--network={TIMM}"]
        code = __main__.main([*arguments, *flags])
        said = capsys.readouterr()
        return code, said.out + said.err

    code, said = run(3, "--labels=multi", f"--out={tmp_path}/out")
    assert code == 0 and f"logits: {SIGMOID}" in said
    assert load_model(tmp_path / "out").multi_label
    assert SIGMOID not in run(3, "--dry-run")[1]
    for outputs, reason in ((0, "no head"), (1, "one output, which tells two classes apart")):
        code, said = run(outputs, "--labels=multi", "--dry-run")
        assert code == 2 and f"--labels=multi: {tmp_path}/x.pth has {reason}" in said
