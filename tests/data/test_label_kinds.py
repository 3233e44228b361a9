"""Several labels per image, and probabilities, in tables, Parquet, Hugging Face data and tars."""

import io
import json
import tarfile

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from mbv3_jax.data.loader import train_batches
from mbv3_jax.data.source import open_pair

MULTI = ("cat;dog", "dog", "", " dog ; cat ", "bird", "cat;bird")
FLAGS = [[0, 1, 1], [0, 0, 1], [0, 0, 0], [0, 1, 1], [1, 0, 0], [1, 1, 0]]  # bird, cat, dog
SOFT = [[0.2, 0.8], [1.0, 0.0], [0.5, 0.5], [0.3, 0.7], [0.25, 0.75], [0.0, 1.0]]
SPLITS = ("train", "train", "val", "train", "train", "val")


@pytest.fixture
def images(tmp_path):
    for i in range(6):
        Image.fromarray(np.full((8, 8, 3), 20 * i, np.uint8)).save(tmp_path / f"{i}.png")
    return tmp_path


def write(folder, columns):
    columns = {"path": [f"{i}.png" for i in range(6)], **columns, "split": SPLITS}
    lines = [columns.keys(), *zip(*columns.values(), strict=True)]
    (folder / "t.csv").write_text("\n".join(",".join(map(str, line)) for line in lines))
    return f"table:{folder}/t.csv"


def labels(name, kind, **options):
    pair = open_pair(name, resolution=8, labels=kind, **options)
    assert {source.label_kind for source in pair} == {kind}
    counts = pair[0].counts()
    assert counts is None if kind == "soft" else counts.sum() == np.sum(pair[0]._labels)
    values = [source.batch(range(len(source)))["label"] for source in pair]
    assert {array.dtype for array in values} == {np.dtype(np.float32)}
    return pair[0].class_names, np.concatenate(values)


def by_split(rows) -> np.ndarray:
    order = [i for split in ("train", "val") for i in range(6) if SPLITS[i] == split]
    return np.array([rows[i] for i in order], np.float32)


def test_several_labels_in_a_cell_or_in_columns(images):
    names, values = labels(write(images, {"label": MULTI}), "multi")
    assert names == ("bird", "cat", "dog")
    np.testing.assert_array_equal(values, by_split(FLAGS))
    columns = dict(zip(("bird", "cat", "dog"), np.array(FLAGS).T.tolist(), strict=True))
    name = write(images, columns)
    names, values = labels(name, "multi", label_column="dog, bird,cat")
    assert names == ("dog", "bird", "cat")
    np.testing.assert_array_equal(values, by_split(FLAGS)[:, [2, 0, 1]])


def test_several_labels_in_parquet_in_hugging_face_and_in_tars(images):
    lists = [[part.strip() for part in cell.split(";") if part] for cell in MULTI]
    content = [(images / f"{i}.png").read_bytes() for i in range(6)]
    table = pyarrow.table({"image": content, "label": lists, "split": SPLITS})
    pyarrow.parquet.write_table(table, images / "t.parquet")
    names, values = labels(f"table:{images}/t.parquet", "multi")
    assert names == ("bird", "cat", "dog")
    np.testing.assert_array_equal(values, by_split(FLAGS))

    kind = {"feature": {"names": ["dog", "cat", "bird"], "_type": "ClassLabel"}, "_type": "List"}
    features = {"image": {"_type": "Image"}, "labels": kind}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    (images / "hub").mkdir()
    for split in ("train", "val"):
        rows = [i for i in range(6) if SPLITS[i] == split]
        numbers = [[("dog", "cat", "bird").index(name) for name in lists[i]] for i in rows]
        columns = {
            "image": [{"bytes": content[i], "path": None} for i in rows],
            "labels": pyarrow.array(numbers, pyarrow.list_(pyarrow.int64())),
        }
        table = pyarrow.table(columns).replace_schema_metadata(metadata)
        pyarrow.parquet.write_table(table, images / "hub" / f"{split}.parquet")
        with tarfile.open(images / "hub" / f"{split}.tar", "w") as tar:
            for i in rows:
                label = json.dumps({"label": lists[i]}).encode()
                for ending, part in (("png", content[i]), ("json", label)):
                    member = tarfile.TarInfo(f"{i}.{ending}")
                    member.size = len(part)
                    tar.addfile(member, io.BytesIO(part))
    names, values = labels(f"huggingface:{images}/hub", "multi")
    assert names == ("dog", "cat", "bird")
    np.testing.assert_array_equal(values, by_split(FLAGS)[:, [2, 1, 0]])
    names, values = labels(f"webdataset:{images}/hub", "multi")
    np.testing.assert_array_equal(values, by_split(FLAGS))


def test_probabilities(images):
    columns = dict(zip(("p_a", "p_b"), np.array(SOFT).T.tolist(), strict=True))
    names, values = labels(write(images, columns), "soft")
    assert names == ("a", "b")
    np.testing.assert_allclose(values, by_split(SOFT), rtol=1e-6)
    names, _ = labels(write(images, columns), "soft", label_column="p_b,p_a")
    assert names == ("b", "a")
    table = pyarrow.table(
        {"path": [f"{i}.png" for i in range(6)], "label": SOFT, "split": list(SPLITS)}
    )
    pyarrow.parquet.write_table(table, images / "t.parquet")
    names, values = labels(f"table:{images}/t.parquet", "soft")
    assert names == ("0", "1")
    np.testing.assert_allclose(values, by_split(SOFT), rtol=1e-6)


@pytest.mark.parametrize(
    ("columns", "options", "reason"),
    [
        (
            {"label": [*MULTI[:5], "cow"]},
            {"labels": "multi"},
            "1 row cannot be used, with a label that the split train does not have: cow (5.png)",
        ),
        (
            {"a": [0, 1, 0, 2, 0, 1], "b": [0, 1, "", 1, 0, 1]},
            {"labels": "multi", "label_column": "a,b"},
            "2 rows cannot be used, with a cell that is neither 0 nor 1: line 4 (2.png), line 5",
        ),
        (
            {"p_a": [0.1] * 6, "p_b": [0.9, 0.9, 0.9, 0.8, "x", 0.9]},
            {"labels": "soft"},
            "2 rows cannot be used, with probabilities that are negative, missing or do not sum to",
        ),
        ({"label": ["a"] * 6}, {"labels": "soft"}, "6 rows left out, without a list of probabil"),
        ({"label": MULTI}, {"labels": "some"}, "data.labels: got 'some', expected one of 'single'"),
        ({"label": MULTI}, {"labels": "multi", "label_column": "a,b"}, "no column 'a'"),
    ],
)
def test_labels_that_cannot_be_used(images, columns, options, reason):
    with pytest.raises(ValueError) as caught:
        open_pair(write(images, columns), resolution=8, **options)
    assert reason in str(caught.value) and "\n" not in str(caught.value)


def test_a_list_of_labels_is_no_single_label(images):
    table = pyarrow.table({"path": ["0.png", "1.png"], "label": [["a"], ["b"]]})
    pyarrow.parquet.write_table(table, images / "t.parquet")
    with pytest.raises(ValueError, match=r"with several labels, which data.labels=multi reads"):
        open_pair(f"table:{images}/t.parquet", resolution=8)


def test_labels_that_look_like_several_are_said(images):
    train, _ = open_pair(write(images, {"label": ["a", "a;b", "a"] * 2}), resolution=8)
    assert train.class_names == ("a", "a;b")
    assert train.notes == ("a;b is taken for one class; data.labels=multi reads several",)


def test_batches_and_resume(images):
    train, _ = open_pair(write(images, {"label": MULTI}), resolution=8, labels="multi")

    def read(start):
        batches = train_batches(train, batch_size=3, seed=1, start_step=start, stop_step=5)
        with_labels = [batch["label"] for batch in batches]
        batches.close()
        return with_labels

    whole = read(0)
    assert {labels.shape for labels in whole} == {(3, 3)}
    for resumed, expected in zip(read(2), whole[2:], strict=True):
        np.testing.assert_array_equal(resumed, expected)
    with pytest.raises(ValueError, match=r"data.balanced: got True, but"):
        train_batches(train, batch_size=3, seed=1, balanced=True)
