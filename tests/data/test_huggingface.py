"""Hugging Face data sets on disk: folders of save_to_disk, and of Parquet as the hub has them."""

import io
import json

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from mbv3_jax.data import arrow_files
from mbv3_jax.data.source import NotFound, open_pair

NAMES = ("cat", "dog")
FEATURES = {"image": {"_type": "Image"}, "label": {"names": list(NAMES), "_type": "ClassLabel"}}


def png(level: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), level, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def table(count, *, first=0, features=FEATURES, labels=None, image="image", label="label"):
    images = [{"bytes": png(first + i), "path": f"{i}.png"} for i in range(count)]
    labels = [i % 2 for i in range(count)] if labels is None else labels
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    columns = {image: images, label: labels}
    return pyarrow.table(columns).replace_schema_metadata(metadata)


def save_to_disk(folder, *tables):
    """Writes what `datasets` writes: Arrow files in the stream format, and state.json."""
    folder.mkdir(parents=True)
    names = [f"data-{i:05d}-of-{len(tables):05d}.arrow" for i in range(len(tables))]
    for name, content in zip(names, tables, strict=True):
        with pyarrow.ipc.new_stream(str(folder / name), content.schema) as writer:
            writer.write_table(content, max_chunksize=4)
    state = {"_data_files": [{"filename": name} for name in names], "_split": None}
    (folder / "state.json").write_text(json.dumps(state))


def hub(folder, **files):
    for name, content in files.items():
        path = folder / "data" / f"{name.replace('__', '-')}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pyarrow.parquet.write_table(content, path, row_group_size=4)


def opened(folder, **options):
    return open_pair(f"huggingface:{folder}", resolution=8, **options)


def levels(source) -> list[int]:
    return [int(image[0, 0, 0]) for image in source.batch(range(len(source)))["image"]]


@pytest.fixture
def saved(tmp_path):
    save_to_disk(tmp_path / "train", table(6), table(5, first=100))
    save_to_disk(tmp_path / "test", table(3, first=200))
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    return tmp_path


def test_a_folder_of_save_to_disk(saved):
    train, held_out = opened(saved)
    assert (train.split, held_out.split) == ("train", "test")
    assert train.class_names == NAMES
    assert levels(train) == [*range(6), *range(100, 105)] and levels(held_out) == [200, 201, 202]
    assert train.labels().tolist() == [0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0]
    assert train.where(7) == f"{saved}/train/data-00001-of-00002.arrow, row 1"
    # A single data set has no splits.
    train, held_out = opened(saved / "train", split_fraction=0.2)
    assert (held_out.split, len(train), len(held_out)) == ("held_out", 9, 2)


def test_a_folder_of_the_hub(tmp_path, monkeypatch):
    monkeypatch.setattr(arrow_files, "_CACHED_BYTES", 1)  # no row group stays in memory
    hub(tmp_path, train__00000__of__00002=table(6), train__00001__of__00002=table(5, first=100))
    hub(tmp_path, validation__00000__of__00001=table(3, first=200))
    hub(tmp_path, test__00000__of__00001=table(2, first=210))
    (tmp_path / "README.md").write_text("about it")
    train, held_out = opened(tmp_path)
    assert (train.split, held_out.split) == ("train", "validation")
    assert levels(train) == [*range(6), *range(100, 105)] and levels(held_out) == [200, 201, 202]
    assert levels(held_out.test) == [210, 211]
    assert [note for note in train.notes if note.startswith("slow to read in random order")] == [
        "slow to read in random order: up to 4 images (0 MB) are compressed together, and are "
        "unpacked together for one of them; row groups of 10 to 100 images are faster"
    ]
    order = np.random.default_rng(0).permutation(11)
    images = train.batch(order)["image"][:, 0, 0, 0]
    assert images.tolist() == [levels(train)[i] for i in order]


def test_the_columns_are_found_by_their_types(tmp_path):
    features = {
        "picture": {"_type": "Image"},
        "label": {"dtype": "string", "_type": "Value"},
        "breed": {"names": ["a", "b"], "_type": "ClassLabel"},
        "kind": {"names": ["c", "d"], "_type": "ClassLabel"},
    }
    content = table(6, features=features, image="picture", label="breed")
    content = content.append_column("kind", [[1] * 3 + [0] * 3])
    hub(tmp_path, train=content, test=content)
    with pytest.raises(ValueError, match=r"data.label_column must be one of breed, kind"):
        opened(tmp_path)
    train, _ = opened(tmp_path, label_column="kind")
    assert train.class_names == ("c", "d") and train.labels().tolist() == [1, 1, 1, 0, 0, 0]
    with pytest.raises(ValueError, match=r"no column 'x', its columns: picture, breed, kind"):
        opened(tmp_path, label_column="kind", image_column="x")


def test_labels_that_cannot_be_used(tmp_path):
    hub(tmp_path, train=table(4), test=table(3, labels=[-1, -1, 7]))
    with pytest.raises(NotFound) as caught:
        opened(tmp_path)
    assert "no split to evaluate on" in str(caught.value)
    reasons = (
        "2 rows left out, without a label, which is -1: data/test.parquet row 0",
        "1 row left out, with a label that is not from 0 to 1: data/test.parquet row 2",
    )
    for reason in reasons:
        assert reason in str(caught.value)
    # What is wrong in a split that is not read does not matter, but is said.
    hub(tmp_path, validation=table(2))
    train, held_out = opened(tmp_path)
    assert (len(train), held_out.split) == (4, "validation")
    assert [note.startswith(reasons) for note in train.notes] == [True, True]
    hub(tmp_path, validation=table(2, labels=[0, 2]))
    with pytest.raises(ValueError) as caught:
        opened(tmp_path)
    place = "data/validation.parquet row 1"
    reason = f"1 row cannot be used, with a label that is not from 0 to 1: {place}. Correct"
    assert str(caught.value).startswith(f"{tmp_path}: {reason}")


def test_images_that_are_files(tmp_path):
    content = table(4).to_pydict()
    for i in range(4):
        content["image"][i] = {"bytes": None, "path": f"{i}.png"}
        (tmp_path / "x" / "data").mkdir(parents=True, exist_ok=True)
        (tmp_path / "x" / "data" / f"{i}.png").write_bytes(png(i))
    schema = table(4).schema
    hub(tmp_path / "x", train=pyarrow.table(content, schema=schema), test=table(2))
    assert levels(opened(tmp_path / "x")[0]) == [0, 1, 2, 3]
    (tmp_path / "x/data/2.png").unlink()
    with pytest.raises(ValueError, match=r"1 row cannot be used, no such file: data/train.parquet"):
        opened(tmp_path / "x")


def test_folders_that_cannot_be_used(saved, tmp_path_factory):
    root = tmp_path_factory.mktemp("others")
    with pytest.raises(NotFound, match="neither a folder of save_to_disk"):
        opened(root)
    hub(root / "a", train__00000__of__00002=table(4), test=table(2))
    with pytest.raises(NotFound, match=r"train-00001-of-00002.parquet: missing, of 2 files"):
        opened(root / "a")
    hub(root / "b" / "one", train=table(4))
    hub(root / "b" / "two", train=table(4))
    with pytest.raises(ValueError, match=r"several data sets, in one, two; name one: huggingface:"):
        opened(root / "b")
    hub(root / "c", train=table(4), test=table(2, features={**FEATURES, "label": {}}))
    with pytest.raises(ValueError, match=r"test.parquet: its classes are not those of |train.parq"):
        opened(root / "c")
    arrow = saved / "train" / "data-00001-of-00002.arrow"
    content = arrow.read_bytes()
    arrow.write_bytes(content[: len(content) // 2])
    with pytest.raises(NotFound, match=r"data-00001-of-00002.arrow: cannot be read: "):
        opened(saved)
    arrow.unlink()
    with pytest.raises(NotFound, match=r"data-00001-of-00002.arrow: no such file"):
        opened(saved)
    (saved / "train" / "state.json").write_text('{"_data_files": [{"filename": "../../x.arrow"}]}')
    with pytest.raises(ValueError, match=r"state.json: names a file outside of "):
        opened(saved)
    (saved / "train" / "state.json").write_text('{"_data_files": 3}')
    with pytest.raises(NotFound, match=r"state.json is damaged: _data_files: "):
        opened(saved)
