"""Tables, hub folders and tars as other programs write them."""

import gzip
import io
import tarfile

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from mbv3_jax.cli.main import main
from mbv3_jax.data.source import NotFound, open_pair


def png(level: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), level, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


PNGS = [png(20 * i) for i in range(8)]
NAMES = ("cat", "dog")


@pytest.fixture
def folder(tmp_path):
    for i, content in enumerate(PNGS):
        (tmp_path / f"{i}.png").write_bytes(content)
    return tmp_path


def write(folder, header, cells, end="\n"):
    """A table with the path of each of eight images, and what `cells(i)` gives for it."""
    lines = [header, *(f"{i}.png,{cells(i)}" for i in range(8))]
    (folder / "t.csv").write_text(end.join(lines))
    return f"table:{folder}/t.csv"


def opened(name, **options):
    return open_pair(name, resolution=8, **options)


def test_columns_are_found_in_any_case(folder):
    def cells(i):
        return f"{NAMES[i % 2]},{'Train' if i < 6 else 'TEST'}"

    train, held_out = opened(write(folder, "Path,LABEL,Split", cells))
    assert (train.split, len(train), held_out.split, len(held_out)) == ("Train", 6, "TEST", 2)
    assert len(opened(write(folder, "file_name,label,split", cells))[0]) == 6
    columns = {"Image": PNGS, "Label": list(NAMES) * 4, "SPLIT": ["train"] * 6 + ["Val"] * 2}
    pyarrow.parquet.write_table(pyarrow.table(columns), folder / "t.parquet")
    train, held_out = opened(f"table:{folder}/t.parquet")
    assert (len(train), held_out.split, len(held_out)) == (6, "Val", 2)


def test_a_column_of_splits_with_another_name_is_said(folder):
    note = "the column subset names splits (test, train), which are not read; data.split_column"
    subsets = ["train"] * 6 + ["test"] * 2
    name = write(folder, "path,label,subset,of", lambda i: f"{NAMES[i % 2]},{subsets[i]},data")
    assert [line[: len(note)] for line in opened(name)[0].notes] == [note]
    assert opened(name, split_column="subset")[0].notes == ()
    columns = {"image": PNGS, "label": list(NAMES) * 4, "subset": subsets, "n": list(range(8))}
    pyarrow.parquet.write_table(pyarrow.table(columns), folder / "t.parquet")
    assert [line[: len(note)] for line in opened(f"table:{folder}/t.parquet")[0].notes] == [note]


def test_empty_rows_and_columns_of_spreadsheets(folder):
    name = write(folder, "path,label,,", lambda i: f"{NAMES[i % 2]},,\n,,,")
    train, held_out = opened(name, split_fraction=0.5)
    assert (len(train), len(held_out), train.notes) == (4, 4, ())


def test_vertical_bars_are_delimiters(folder):
    lines = ["path|label", *(f"{i}.png|{NAMES[i % 2]}" for i in range(8))]
    (folder / "t.csv").write_text("\n".join(lines))
    assert opened(f"table:{folder}/t.csv")[0].class_names == NAMES


def test_whole_numbers_with_a_point(folder):
    numbers = write(folder, "path,label", lambda i: f"{9 + i % 2}.0")
    assert opened(numbers)[0].class_names == ("9", "10")
    odd = opened(write(folder, "path,label", lambda i: "2.5" if i == 1 else f"{i % 2}.0"))[0]
    assert odd.class_names == ("0.0", "1.0", "2.5")


def test_nan_is_no_class(folder):
    name = write(folder, "path,label", lambda i: "NaN" if i == 1 else NAMES[i % 2])
    with pytest.raises(ValueError, match=r"1 row cannot be used, without a label: line 3"):
        opened(name)


def test_true_and_false_are_numbers(folder):
    name = write(folder, "path,cat,dog", lambda i: f"{i % 2 == 0},{i < 6}")
    train, held_out = opened(name, labels="multi", label_column="cat,dog", split_fraction=0.5)
    labels = sum(source.batch(range(4))["label"].sum(axis=0) for source in (train, held_out))
    assert labels.tolist() == [4, 6]


def test_names_that_may_be_others_are_said(folder):
    several = write(folder, "path,label", lambda i: "cat|dog" if i % 2 else NAMES[i % 4 // 2])
    assert opened(several, labels="multi")[0].notes == (
        "cat|dog is taken for one class; several are separated by semicolons",
    )
    alike = write(folder, "path,label", lambda i: ("cat", "dog", "Cat")[i % 3])
    assert opened(alike)[0].notes == ("Cat and cat are taken for two classes",)


def test_labels_of_another_type_are_one_reason(folder):
    columns = {"image": PNGS, "label": [i + 0.5 for i in range(8)]}
    pyarrow.parquet.write_table(pyarrow.table(columns), folder / "t.parquet")
    reason = "8 rows left out, with a label that is neither a name nor a whole number, but a float"
    with pytest.raises(ValueError, match=reason):
        opened(f"table:{folder}/t.parquet")


def test_a_folder_is_no_image(folder):
    (folder / "more").mkdir()
    name = write(folder, "path,label", lambda i: f"{NAMES[i % 2]}\nmore,cat" if not i else "dog")
    with pytest.raises(ValueError, match=r"1 row cannot be used, no such file: line 3 \(more\)"):
        opened(name)


def test_what_is_no_table_says_what_it_is(folder):
    table = folder / "t.csv"
    name = write(folder, "0.png,cat", lambda i: NAMES[i % 2])
    with pytest.raises(ValueError, match="a first line with the names of the columns is missing"):
        opened(name)
    table.write_bytes(gzip.compress(table.read_bytes()))
    with pytest.raises(ValueError, match=r"t.csv: compressed; unpack it"):
        opened(name)
    table.write_bytes(b"PK\x03\x04\xff")
    with pytest.raises(ValueError, match=r"t.csv: a zip archive or a spreadsheet"):
        opened(name)
    for address in ("table:https://a/b.csv", "webdataset:https://a/{0..3}.tar"):
        with pytest.raises(NotFound, match="is an address, and nothing is downloaded"):
            opened(address)


def test_a_third_split_of_tests(folder):
    splits = ["train", "train", "train", "train", "val", "val", "Test", "Test"]
    train, held_out = opened(
        write(folder, "path,label,split", lambda i: f"{NAMES[i % 2]},{splits[i]}")
    )
    assert (held_out.split, held_out.test.split, len(held_out.test)) == ("val", "Test", 2)
    assert train.notes == ()
    evaluated = opened(f"table:{folder}/t.csv", eval_split="Test")
    assert evaluated[1].test is None and "split val not read" in evaluated[0].notes[0]
    # Tests without labels are not read, and not refused.
    train, held_out = opened(
        write(folder, "path,label,split", lambda i: f"{NAMES[i % 2] if i < 7 else ''},{splits[i]}")
    )
    assert held_out.test is None
    assert [note[:40] for note in train.notes] == [
        "1 row left out, without a label: line 9 ",
        "1 image of the split Test not read; data",
    ]


def test_a_split_may_be_called_held_out(folder):
    name = write(
        folder,
        "path,label,split",
        lambda i: f"{NAMES[i % 2]},{'train' if i < 6 else 'held_out'}",
    )
    assert [(s.split, s.divided) for s in opened(name)] == [("train", False), ("held_out", False)]
    name = write(folder, "path,label", lambda i: NAMES[i % 2])
    assert [(s.split, s.divided) for s in opened(name)] == [("train", False), ("held_out", True)]
    for i in range(8):
        (folder / "f" / NAMES[i % 2]).mkdir(parents=True, exist_ok=True)
        (folder / "f" / NAMES[i % 2] / f"{i}.png").write_bytes(PNGS[i])
    assert [(s.split, s.divided) for s in opened(f"folder:{folder}/f")] == [
        ("train", False),
        ("held_out", True),
    ]


def test_a_class_folder_has_a_name_that_can_be_stored(tmp_path):
    for name in ("c\udce4t", "dog"):  # the byte e4, which is not UTF-8
        (tmp_path / name).mkdir()
    with pytest.raises(ValueError, match="the name of this class is not text in UTF-8; rename"):
        opened(f"folder:{tmp_path}")


def test_the_check_counts_each_class(folder, capsys):
    write(folder, "path,label", lambda i: "cat" if i < 6 else "dog;owl")
    again = f"{folder}/../{folder.name}"
    assert main(["data", "check", f"table:{again}/t.csv", "--split-fraction=0.5"]) == 0
    said = capsys.readouterr().out
    assert "  classes: cat (3), dog;owl (1)\n" in said
    assert "note: dog;owl is taken for one class; --labels=multi reads several\n" in said
    assert "outside" not in said


CARD = """---
license: mit
dataset_info:
  features:
  - name: picture
    dtype: image
  - name: kind
    {}
  splits:
  - name: train
---
# About it
"""
KIND = "dtype: {class_label: {names: {'1': dog, '0': cat}}}"
KINDS = "list: {class_label: {names: [cat, dog]}}"


def hub(folder, labels, card):
    columns = {"picture": [{"bytes": content, "path": None} for content in PNGS], "kind": labels}
    for split in ("train", "test"):
        (folder / "data").mkdir(exist_ok=True)
        pyarrow.parquet.write_table(pyarrow.table(columns), folder / f"data/{split}.PARQUET")
    (folder / "README.md").write_text(card)
    return f"huggingface:{folder}"


def test_the_card_of_a_hub_folder_names_its_columns_and_classes(tmp_path):
    numbers = [i % 2 for i in range(8)]
    train, _ = opened(hub(tmp_path, numbers, CARD.format(KIND)))
    assert train.class_names == NAMES and train.labels().tolist() == numbers
    name = hub(tmp_path, [[0, 1][: i % 3] for i in range(8)], CARD.format(KINDS))
    assert opened(name, labels="multi")[0].counts().tolist() == [5, 2]
    train, _ = opened(
        hub(tmp_path, numbers, "---\n\t: {\n---\n"), image_column="picture", label_column="kind"
    )
    assert train.class_names == ("0", "1")
    assert train.notes[0].startswith(f"{tmp_path}/README.md: its YAML is not read: ")


def tar(path, members):
    with tarfile.open(path, "w") as file:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))


def samples(first, count, more=()):
    for i in range(first, first + count):
        yield from ((f"{i}.jpg", PNGS[i]), (f"{i}.cls", str(i % 2).encode()))
        yield from ((f"{i}.{kind}", PNGS[i]) for kind in more)


def test_patterns_of_a_shell_and_capital_endings(tmp_path):
    for first, name in enumerate(("train-0.tar", "train-1.TAR", "val-0.tar")):
        tar(tmp_path / name, samples(2 * first, 2))
    assert list(map(len, opened(f"webdataset:{tmp_path}"))) == [4, 2]
    assert list(map(len, opened(f"webdataset:{tmp_path}/*.tar"))) == [2, 2]
    assert list(map(len, opened(f"webdataset:{tmp_path}/{{train,val}}-?.tar"))) == [2, 2]


def test_one_of_several_images_of_a_sample(tmp_path):
    tar(tmp_path / "a.tar", samples(0, 8, more=("seg.png",)))
    name = f"webdataset:{tmp_path}/a.tar"
    with pytest.raises(ValueError, match=r"with several images: a.tar: 0 \(jpg, cls, seg.png\)"):
        opened(name)
    train, held_out = opened(name, image_column="jpg")
    assert len(train) + len(held_out) == 8 and train.where(0).endswith(".jpg")


def test_what_hides_all_images_is_said(tmp_path):
    tar(tmp_path / "a.tar", [("a/.jpg", PNGS[0])])
    with pytest.raises(ValueError, match=r"no image is listed; .*a.tar: 1 hidden file"):
        opened(f"webdataset:{tmp_path}/a.tar")
