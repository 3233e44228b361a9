"""The commands of the documents: every field that they set exists, and what they build traces."""

import re
import shlex

import jax
import numpy as np
import pytest
from paths import ROOT

from mbv3_jax.arch import build
from mbv3_jax.nn import functional
from mbv3_jax.run.config import parse_config
from mbv3_jax.run.model import Model, Preprocessing, save_model
from mbv3_jax.train.experiment import make_experiment
from mbv3_jax.train.finetune import frozen_stages
from mbv3_jax.train.hierarchy import read_hierarchy
from mbv3_jax.train.losses import LOSSES
from mbv3_jax.train.optimizers import OPTIMIZERS
from mbv3_jax.train.plan import read_plan
from mbv3_jax.train.schedules import SCHEDULES

DOCUMENTS = sorted([*(ROOT / "docs").rglob("*.md"), ROOT / "README.md"])


def blocks(path, language):
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL)


def trainings(path):
    """The arguments of each `mbv3 train` in the shell blocks of a document."""
    text = "".join(blocks(path, "bash")).replace("\\\n", " ")
    return [
        shlex.split(line, comments=True)[2:]
        for line in text.splitlines()
        if line.startswith("mbv3 train ")
    ]


def config_of(arguments, *more):
    (name,) = (a.removeprefix("--config=") for a in arguments if a.startswith("--config="))
    return parse_config(name, [a for a in arguments if a.startswith("--config.")] + [*more])


def is_shipped(arguments):
    """Whether a configuration and what it names come with the package; C stands for any."""
    (name,) = (a.removeprefix("--config=") for a in arguments if a.startswith("--config="))
    return name != "C" and not re.search(r"\.(py|json)\b", name)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.stem)
def test_every_training_of_a_document_can_be_configured(path):
    for arguments in trainings(path):
        if is_shipped(arguments):
            assert config_of(arguments).to_dict()


def test_there_are_trainings_in_the_documents():
    assert sum(len(trainings(path)) for path in DOCUMENTS) > 20


def test_the_resolution_of_training_and_that_of_evaluation(tmp_path):
    (arguments,) = trainings_with("imagenet.md", "finetune:imagenet")
    spec = build("mobilenet_v3_large")
    variables = jax.tree.map(lambda x: np.zeros(x.shape, np.float32), functional.shapes(spec))
    names = tuple(f"class{i}" for i in range(1000))
    model = Model(spec=spec, variables=variables, preprocessing=Preprocessing(), class_names=names)
    save_model(tmp_path / "large", model, origin={})
    plan = read_plan(config_of(arguments, f"--config.init={tmp_path / 'large'}"))
    assert plan.spec.resolution == 256 and plan.optimizer.options["weight_decay"] == 0
    assert plan.total.epochs == 1 and plan.data.crop["area"] is None
    trained = {*spec.strides()} - {*frozen_stages(plan.spec, plan.finetune.frozen)}
    assert trained == {"last"}


def trainings_with(document, config):
    return [a for a in trainings(ROOT / "docs" / document) if f"--config={config}" in a]


@pytest.fixture
def own_entries(monkeypatch):
    """Registries that forget afterwards what a test adds to them."""
    for registry in (LOSSES, OPTIMIZERS, SCHEDULES):
        for name in ("_factories", "_fields"):
            monkeypatch.setattr(registry, name, dict(getattr(registry, name)))


@pytest.mark.usefixtures("own_entries")
def test_the_file_with_an_optimizer_a_schedule_and_a_loss(tmp_path):
    document = "extending/training.md"
    (text,) = (b for b in blocks(ROOT / "docs" / document, "python") if "def get_config" in b)
    (tmp_path / "adopt.py").write_text(text)
    plain, changed = trainings_with(document, "adopt.py")
    for arguments in (plain, changed):
        arguments = [a.replace("adopt.py", str(tmp_path / "adopt.py")) for a in arguments]
        experiment = make_experiment(config_of(arguments, "--config.net.width=0.35"))
        options = experiment.plan.optimizer.options, experiment.plan.loss.options
        assert experiment.plan.optimizer.name == "adopt" and experiment.plan.loss.name == "poly1"
    assert (options[0]["b2"], options[1]["epsilon"]) == (0.98, 0.5)
    rates = [float(experiment.schedule(step)) for step in (0, experiment.data.total_steps)]
    assert rates[1] == 0 and 0 <= rates[0] <= 3e-4


def test_a_teacher_that_jax_export_writes(tmp_path, monkeypatch, tiny_config):
    pytest.importorskip("flatbuffers", reason="jax.export needs the extra export")
    (text,) = (b for b in blocks(ROOT / "docs" / "distillation.md", "python") if "export" in b)
    weights = np.random.default_rng(0).standard_normal((3, 10)).astype(np.float32)

    def logits_of(images):
        return images.mean((1, 2)) @ weights

    monkeypatch.chdir(tmp_path)
    exec(compile(text, "distillation.md", "exec"), {"logits_of": logits_of})  # as if copied
    teaching = make_experiment(tiny_config("--config.teacher=large.stablehlo")).teaching
    images = np.random.default_rng(1).uniform(-1, 1, (3, 32, 32, 3)).astype(np.float32)
    answers, _ = teaching.answers(teaching.variables, images)
    resized = jax.image.resize(images, (3, 224, 224, 3), "bilinear")
    np.testing.assert_allclose(answers, logits_of(resized), rtol=1e-4, atol=1e-4)


def test_the_conversion_of_a_hierarchy(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch", reason="the document's conversion needs PyTorch")
    (text,) = blocks(ROOT / "docs" / "imagenet.md", "python")
    names = ["n1", "n2", "n3", "n4"]
    chains = [[0], [1], [2, 0], [3, 2, 0]]
    monkeypatch.chdir(tmp_path)
    torch.save({"class_list": names, "class_tree_list": chains}, "imagenet21k_miil_tree.pth")
    exec(compile(text, "imagenet.md", "exec"), {})
    (level,) = read_hierarchy("tree.csv", names).levels
    assert level.position.tolist() == [0, 1, 0, 0]
