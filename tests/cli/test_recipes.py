"""Recipes are what their sources print, and `mbv3 recipes` says what those do not.

The figures below are copied from the sources, not from the recipes.
"""

import importlib

import pytest

from mbv3_jax.cli.main import main
from mbv3_jax.cli.recipes import fields_of
from mbv3_jax.run.config import flatten_config, parse_config
from mbv3_jax.run.shipped import make_importable
from mbv3_jax.train.losses import make_loss
from mbv3_jax.train.optimizers import make_optimizer
from mbv3_jax.train.plan import read_plan
from mbv3_jax.train.schedules import make_schedule

make_importable()
importlib.import_module("configs.recipes")
PUBLISHED = importlib.import_module("configs.published").PUBLISHED
FILES = {
    "mobilenet_v3_large": "large",
    "mobilenet_v3_small": "small",
    "mobilenet_v2": "v2",
    "mnasnet_a1": "mnasnet_a1",
}
ALL = [(entry, network) for entry in PUBLISHED for network in entry.top1]

# recipe, configuration -> what its source prints.
FACTS = {
    # arXiv:1905.02244, section 6.1.1.
    ("paper", "large"): {
        "batch_size": 4096,
        "optimizer.momentum": 0.9,
        "schedule.base_lr": 0.1,
        "schedule.decay_rate": 0.99,
        "schedule.decay_epochs": 3,
        "optimizer.weight_decay": 1e-5,
        "ema_decay": 0.9999,
        "net.dropout": 0.2,
        "net.bn_decay": 0.99,
    },
    # slim's README: 8 chips of 192 images, a rate of 0.16 in all.
    ("slim", "large"): {
        "batch_size": 1536,
        "optimizer.eps": 0.002,
        "schedule.base_lr": 0.16,
        "schedule.warmup_epochs": 5,
        "net.bn_decay": 0.997,
        "label_smoothing": 0.1,
    },
    # official/vision/configs/experiments/image_classification/imagenet_mobilenetv3large_tpu.yaml.
    ("garden", "large"): {
        "batch_size": 4096,
        "total_epochs": 700,
        "optimizer.name": "adamw",
        "optimizer.weight_decay": 0.1,
        "schedule.base_lr": 0.004,
        "augment.policy": "autoaugment_v0",
        "ema_decay": None,
    },
    # pytorch-image-models, issue 108: -b 512 on two GPUs, --lr .064 --opt-eps .001, 600 epochs.
    ("timm", "large"): {
        "batch_size": 1024,
        "total_epochs": 600,
        "optimizer.eps": 0.001,
        "schedule.base_lr": 0.064,
        "schedule.decay_rate": 0.973,
        "schedule.decay_epochs": 2.4,
        "schedule.noise": [0.42, 0.9],
        "augment.randaugment_magnitude": 9,
        "augment.erase_prob": 0.2,
        "net.drop_path": 0.2,
    },
    # torchvision's references: --batch-size 128 on 8 GPUs --lr 0.064 --lr-step-size 2 ...
    ("torchvision", "small"): {
        "batch_size": 1024,
        "total_epochs": 600,
        "optimizer.name": "rmsprop_tf",
        "optimizer.rho": 0.9,
        "optimizer.momentum": 0.9,
        "optimizer.eps": pytest.approx(0.00099856),
        "optimizer.weight_decay": 1e-5,
        "schedule.base_lr": 0.064,
        "schedule.decay_rate": 0.973,
        "schedule.decay_epochs": 2,
        "schedule.warmup_steps": 0,
        "augment.erase_prob": 0.2,
        "label_smoothing": 0,
        "ema_decay": None,
    },
    ("torchvision", "v2"): {
        "batch_size": 256,
        "total_epochs": 300,
        "optimizer.name": "sgd",
        "schedule.base_lr": 0.045,
        "optimizer.weight_decay": 4e-5,
        "schedule.decay_epochs": 1,
        "schedule.decay_rate": 0.98,
    },
    # PaddleClas, MobileNetV3_small_x1_0.yaml and legendary_models/mobilenet_v3.py; the large one
    # has AutoAugment besides.
    ("paddle", "small"): {
        "net.head_filters": 1280,
        "net.dropout": 0.2,
        "batch_size": 2048,
        "total_epochs": 360,
        "optimizer.name": "sgd",
        "optimizer.momentum": 0.9,
        "optimizer.weight_decay": 2e-5,
        "schedule.name": "cosine",
        "schedule.base_lr": 1.3,
        "schedule.warmup_epochs": 5,
        "label_smoothing": 0.1,
        "augment.policy": "none",
    },
    ("paddle", "large"): {"augment.policy": "autoaugment_v0"},
    # PaddleClas, the tables of sections 3.2 and 3.3 on distillation.
    ("ssld", "large"): {
        "batch_size": 5760,
        "total_epochs": 360,
        "schedule.base_lr": 3.65625,
        "optimizer.weight_decay": 1e-5,
        "label_smoothing": 0,
        # JSDivLoss of ppcls: both KL divergences, halved.
        "distillation.name": "symmetric_kl",
        "distillation.weight": 1,
    },
    ("ssld_finetune", "large"): {
        "batch_size": 2048,
        "total_epochs": 30,
        "schedule.base_lr": 0.008,
    },
    ("ssld_finetune", "small"): {"batch_size": 6400, "schedule.base_lr": 0.025},
    # jax_examples, imagenet_mobilenet_v3_large_tpu.py and imagenet_mobilenet_v2_tpu.py.
    ("jax", "large"): {
        "batch_size": 4096,
        "total_epochs": 1000,
        "optimizer.name": "rmsprop_tf",
        "optimizer.rho": 0.9,
        "optimizer.momentum": 0.9,
        "optimizer.eps": 0.002,
        "optimizer.weight_decay": 1e-5,
        "schedule.base_lr": 0.426,
        "schedule.warmup_epochs": 5,
        "schedule.decay_rate": 0.99,
        "schedule.decay_epochs": 3,
        "label_smoothing": 0.1,
        "ema_decay": 0.9999,
        "compute.dtype": "bfloat16",
    },
    ("jax", "v2"): {
        "batch_size": 1024,
        "total_epochs": 500,
        "schedule.base_lr": 0.064,
        "schedule.decay_rate": 0.94,
        "schedule.decay_epochs": 2.5,
        "ema_decay": None,
    },
    # The name of the file of hyper-parameters in issue 1021 of pytorch-image-models.
    ("lamb", "small"): {
        "optimizer.name": "lamb",
        "schedule.name": "cosine",
        "schedule.base_lr": 0.005,
        "optimizer.weight_decay": 0.1,
        "augment.randaugment_magnitude": 9,
        "augment.randaugment_layers": 1,
        "augment.mixup_alpha": 0.1,
        "augment.cutmix_alpha": 0,
        "net.drop_path": 0.1,
        "net.dropout": 0.1,
        "label_smoothing": 0.1,
        "total_epochs": 450,
    },
    # Its name, its entry in timm, and the text about the family.
    ("ra4", "large"): {
        "total_epochs": 3600,
        "net.resolution": 224,
        "optimizer.name": "adamw",
        "optimizer.b1": 0.6,
        "augment.normalize": "inception",
        "data.crop_fraction": 0.95,
        "data.interpolation": "bicubic",
    },
    # train_semantic_softmax.py and create_optimizer.py.
    ("miil", "large"): {
        "total_epochs": 80,
        "optimizer.name": "adam",
        "optimizer.weight_decay": 1e-4,
        "schedule.base_lr": 3e-4,
        "schedule.warmup_epochs": 8,
        "label_smoothing": 0.2,
        "augment.flip": False,
    },
}
TOP1 = {
    "paper": {"large": 75.2, "small": 67.4, "v2": 72.0, "mnasnet_a1": 75.2},
    "slim": {"large": 75.2},
    "garden": {"large": 75.7},
    "timm": {"large": 75.77},
    "torchvision": {"large": 74.04, "small": 67.67, "v2": 71.88},
    "paddle": {"large": 75.3, "small": 68.2},
    "ssld": {"large": 78.54, "small": 70.11},
    "ssld_finetune": {"large": 78.96, "small": 71.28},
    "jax": {"large": 75.22, "small": 67.51, "v2": 71.84},
    "lamb": {"small": 67.64},
    "ra4": {"large": 76.31},
    "miil": {"large": 78.0},
}


@pytest.mark.parametrize(("recipe", "file"), FACTS)
def test_a_recipe_has_what_its_source_prints(recipe, file):
    fields = flatten_config(parse_config(f"{file}:imagenet,recipe={recipe}"))
    facts = FACTS[recipe, file]
    assert {name: fields[name] for name in facts} == facts
    (entry,) = (
        entry
        for entry in PUBLISHED
        if entry.name == recipe and file in [FILES[network] for network in entry.top1]
    )
    assert not {*entry.chosen} & {*facts}, "what the source prints is not chosen here"


def test_what_each_recipe_reached():
    found = {name: {} for name in TOP1}
    for entry, network in ALL:
        found[entry.name][FILES[network]] = entry.top1[network]
    assert found == TOP1


@pytest.mark.parametrize(("entry", "network"), ALL, ids=lambda v: getattr(v, "name", v))
def test_a_recipe_can_be_trained(entry, network):
    config = parse_config(f"{FILES[network]}:imagenet,recipe={entry.name}")
    assert config.net.name == network
    assert not {*entry.chosen} - {*flatten_config(config)}
    assert set(entry.chosen) <= set(fields_of(entry, network))
    if entry.name.startswith("ssld"):
        config.teacher = "runs/teacher"
    plan = read_plan(config)
    schedule = make_schedule(
        plan.schedule.name,
        total_steps=plan.total.in_steps(batch_size=plan.batch_size, train_examples=1_281_167),
        steps_per_epoch=1_281_167 / plan.batch_size,
        warmup_steps=plan.warmup.in_steps(batch_size=plan.batch_size, train_examples=1_281_167),
        **plan.schedule.options,
    )
    make_optimizer(plan.optimizer.name, schedule, **plan.optimizer.options)
    make_loss(plan.loss.name, label_smoothing=plan.label_smoothing, **plan.loss.options)


def test_the_list_says_what_is_not_published(capsys):
    assert main(["recipes"]) == 0
    text = capsys.readouterr().out
    rows = {line.split()[0]: line for line in text.splitlines() if not line.startswith(" ")}
    assert "3600" in rows["ra4"] and "4096*" in rows["ra4"] and "not published" in rows["ra4"]
    assert "1000 " in rows["jax"] or "500 " in rows["jax"]
    assert "TPU v2-8; hours not published" in rows["jax"]
    assert "600*" in rows["slim"]
    assert {entry.name for entry in PUBLISHED} <= set(rows)


def test_a_recipe_field_by_field(capsys):
    assert main(["recipes", "slim"]) == 0
    lines = capsys.readouterr().out.splitlines()
    (epochs,) = (line for line in lines if line.startswith("total_epochs"))
    (rate,) = (line for line in lines if line.startswith("schedule.base_lr"))
    assert " ".join(epochs.split()) == "total_epochs 600.0 chosen here; not published"
    assert " ".join(rate.split()) == "schedule.base_lr 0.16 the source"


def test_an_unknown_recipe(capsys):
    assert main(["recipes", "sslD"]) == 2
    assert "recipe: got 'sslD', expected one of 'paper', 'slim'" in capsys.readouterr().err
    assert main(["recipes", "jax", "--config.seed=1"]) == 2
