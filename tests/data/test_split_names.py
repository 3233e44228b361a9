"""Which folders are taken for splits and which for classes, and what is said about the others."""

import numpy as np
import pytest
from PIL import Image

from mbv3_jax.data.layout import roles
from mbv3_jax.data.prepare import check
from mbv3_jax.data.source import NotFound, open_pair


def fill(root, *folders, count=2):
    """Two images in each of the folders."""
    for folder in folders:
        (root / folder).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            Image.fromarray(np.full((8, 8, 3), i, np.uint8)).save(root / folder / f"{i}.png")
    return root


def classes_in(*splits):
    return [f"{split}/{name}" for split in splits for name in ("cat", "dog")]


def opened(root, **options):
    return open_pair(f"folder:{root}", resolution=8, **options)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Train", {"train"}),
        ("TRAINING", {"train"}),
        ("Training Set", {"train"}),
        ("train_images", {"train"}),
        ("train2017", {"train"}),
        ("Val", {"validation"}),
        ("validation-data", {"validation"}),
        ("dev", {"validation"}),
        ("Testing", {"test"}),
        ("test set", {"test"}),
        ("TrainVal", {"train", "validation"}),
        ("train_test_split", {"train", "test"}),
        ("train_station", set()),
        ("contest", set()),
        ("invalid", set()),
        ("images", set()),
    ],
)
def test_what_a_name_says(name, expected):
    assert roles(name) == expected


@pytest.mark.parametrize(
    ("train", "held_out"),
    [
        ("Train", "Val"),
        ("training", "testing"),
        ("Training Set", "Test Set"),
        ("TRAIN", "VALID"),
        ("train_images", "validation_images"),
    ],
)
def test_splits_are_found_by_their_usual_names(tmp_path, train, held_out):
    fill(tmp_path, *classes_in(train, held_out))
    pair = opened(tmp_path)
    assert [(s.split, len(s), s.class_names) for s in pair] == [
        (train, 4, ("cat", "dog")),
        (held_out, 4, ("cat", "dog")),
    ]
    assert pair[0].notes == pair[1].notes == ()


def test_validation_goes_before_test_and_the_rest_is_counted(tmp_path):
    fill(tmp_path, *classes_in("Train", "Val", "test", "raw"))
    fill(tmp_path, ".", count=1)
    train, evaluate = opened(tmp_path)
    assert (train.split, evaluate.split) == ("Train", "Val")
    assert evaluate.test is not None and len(evaluate.test) == 4
    assert train.notes == (
        f"{tmp_path}/raw: 4 images not read",
        f"{tmp_path}: 1 image beside the splits not read",
    )
    lines = []
    check(train, 4, lines.append)
    assert f"  note: {train.notes[0]}" in lines
    assert opened(tmp_path, train_split="Val")[1].split == "test"


def test_plain_names_go_before_others(tmp_path):
    fill(tmp_path, *classes_in("train", "Training", "val", "Validation"))
    train, evaluate = opened(tmp_path)
    assert (train.split, evaluate.split) == ("train", "val")
    assert len(train.notes) == 2


REFUSED = {
    "two to train on": (
        classes_in("train_1", "train_2", "test"),
        "{root}: each of train_1, train_2 may be the train split; say which with "
        "data.train_split=train_1",
    ),
    "two in one": (
        classes_in("TrainVal", "other"),
        "{root}/TrainVal: named like a split, but it is unclear which one; name the splits with "
        "data.train_split=TrainVal and data.eval_split=other",
    ),
    "own names": (
        classes_in("train A", "train B"),
        "{root}/train A: named like a split, but it is unclear which one; name the splits with "
        "data.train_split='train A' and data.eval_split='train B'",
    ),
    "one folder too many": (
        classes_in("TrainVal/Train", "TrainVal/Val"),
        "got: TrainVal; or is {root}/TrainVal meant, with the folders Train, Val?",
    ),
    "one folder too many, among others": (
        [*classes_in("TrainVal/Train", "TrainVal/Val"), "more"],
        "{root}: its folder TrainVal holds the splits Train, Val; name that folder: "
        "folder:{root}/TrainVal",
    ),
    "splits in classes": (
        [f"{name}/{split}" for name in ("cat", "dog") for split in ("train", "val")],
        "{root}/cat: the splits train, val are inside the class folders; expected "
        "{root}/train/cat, and so on",
    ),
    "no classes": (
        ["training", "testing"],
        "{root}: the folders testing, training are named like splits but hold images, not class "
        "folders",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_only_looks_like_splits_is_refused(tmp_path, name):
    folders, message = REFUSED[name]
    fill(tmp_path, *folders)
    with pytest.raises(ValueError) as caught:
        opened(tmp_path)
    assert message.format(root=tmp_path) in str(caught.value)


def test_what_to_type_about_an_unknown_split(tmp_path):
    fill(tmp_path, *classes_in("Lernen", "Test"))
    with pytest.raises(NotFound, match=r"folders in .*: Lernen, Test; choose one with data.train"):
        opened(tmp_path)
    train, evaluate = opened(tmp_path, train_split="Lernen")
    assert (train.split, evaluate.split) == ("Lernen", "Test")


def test_classes_that_share_folders_are_mentioned(tmp_path):
    fill(tmp_path, *classes_in("lernen", "lehren"))
    (remark,) = opened(tmp_path)[0].notes
    assert remark == (
        "lehren, lernen are taken for the classes, though the same 2 folders are in each of them "
        "(cat, dog); if they are splits, name them with data.train_split=lehren and "
        "data.eval_split=lernen"
    )


def test_classes_may_be_named_nearly_like_splits(tmp_path):
    fill(tmp_path, "train_station/2019", "airport/2019", "test")
    train, _ = opened(tmp_path)
    assert train.class_names == ("airport", "test", "train_station")
    assert train.notes == ()


def test_the_command_says_it(tmp_path, capsys):
    from mbv3_jax.cli.main import main

    fill(tmp_path, *classes_in("Train", "Val", "raw"))
    assert main(["data", "check", f"folder:{tmp_path}"]) == 0
    assert f"note: {tmp_path}/raw: 4 images not read" in capsys.readouterr().out
    fill(tmp_path, *classes_in("Training"))
    assert main(["data", "check", f"folder:{tmp_path}"]) == 2
    assert "may be the train split" in capsys.readouterr().err
