"""Tables of labelled images, CSV and Parquet: what is read, what is refused, and in which words."""

import json

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from mbv3_jax.cli.main import main
from mbv3_jax.data.source import NotFound, open_pair

SPLITS = ("train", "train", "train", "val")


@pytest.fixture
def images(tmp_path):
    """Eight pictures in a folder, each of one grey level: 0.png is 0, 1.png is 20, ..."""
    for i in range(8):
        (tmp_path / "img").mkdir(exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), 20 * i, np.uint8)).save(tmp_path / f"img/{i}.png")
    return tmp_path


def rows(labels=("cat", "dog")):
    return [(f"img/{i}.png", labels[i % 2], SPLITS[i % 4]) for i in range(8)]


def write(folder, lines, header="path,label,split", end="\n", name="t.csv", encoding="utf-8"):
    text = end.join([header, *(",".join(map(str, line)) for line in lines)]) + end
    (folder / name).write_bytes(text.encode(encoding))
    return folder / name


def opened(file, **options):
    return open_pair(f"table:{file}", resolution=8, **options)


def levels(source) -> list[int]:
    return [int(image[0, 0, 0]) for image in source.batch(range(len(source)))["image"]]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_rows_are_read_in_their_order(images, end, encoding):
    train, held_out = opened(write(images, rows(), end=end, encoding=encoding))
    assert (train.split, held_out.split) == ("train", "val")
    assert train.class_names == held_out.class_names == ("cat", "dog")
    assert levels(train) == [0, 20, 40, 80, 100, 120] and levels(held_out) == [60, 140]
    assert train.labels().tolist() == [0, 1, 0, 0, 1, 0]
    assert train.where(1) == str(images / "img/1.png")
    assert train.notes == held_out.notes[1:] == ()
    assert held_out.notes[0].startswith("1 of 2 classes without an image to evaluate on: cat")


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_quoted_cells_other_delimiters_and_other_headers(images, delimiter):
    (images / "img/0.png").rename(images / "img/a, b;c.png")
    header = delimiter.join(("id", "Class", "file", "part"))
    lines = [header] + [
        delimiter.join((str(i), '"dog, large"' if i % 2 else " cat ", f'"{path}"', split))
        for i, (path, _, split) in enumerate(rows())
    ]
    text = "\n".join(lines).replace("img/0.png", "img/a, b;c.png") + "\n\n"
    (images / "t.csv").write_text(text)
    names = {"image_column": "file", "label_column": "Class", "split_column": "part"}
    train, _ = opened(images / "t.csv", **names)
    assert train.class_names == ("cat", "dog, large") and levels(train)[0] == 0


def test_whole_numbers_are_ordered_as_numbers(images):
    train, _ = opened(write(images, rows((10, 9))))
    assert train.class_names == ("9", "10")
    assert train.labels().tolist() == [1, 0, 1, 1, 0, 1]


def test_without_splits_a_part_of_each_class_is_held_out(images):
    file = write(images, [row[:2] for row in rows()], header="path,label")
    train, held_out = opened(file, split_fraction=0.5)
    assert held_out.split == "held_out"
    assert sorted(levels(train) + levels(held_out)) == [20 * i for i in range(8)]
    assert np.bincount(held_out.labels()).tolist() == [2, 2]
    assert levels(opened(file, split_fraction=0.5)[1]) == levels(held_out)
    # A part of the training split, though there is another one.
    train, held_out = opened(write(images, rows()), split_fraction=0.4)
    assert (train.split, held_out.split, len(train) + len(held_out)) == ("train", "train", 6)


def test_the_fingerprint_follows_paths_and_labels(images):
    def fingerprint(lines):
        return opened(write(images, lines), on_error="skip")[0].fingerprint

    first = fingerprint(rows())
    assert fingerprint(rows()) == first
    relabelled = [*rows()[:2], ("img/2.png", "dog", "train"), *rows()[3:]]
    assert len({first, fingerprint(relabelled), fingerprint(rows()[1:])}) == 3


PROBLEMS = [
    (("img/9.png", "cat", "train"), "no such file: line 10 (img/9.png)"),
    (("no/9.png", "cat", "train"), "no such file: line 10 (no/9.png)"),
    (
        ("img\\\\9.png", "cat", "train"),
        "no such file; the folders in a path are separated by /: line 10",
    ),
    (("http://a/9.png", "cat", "train"), "an address, and nothing is downloaded: line 10"),
    (("img/0.png", "dog", "val"), "listed before: line 10 (img/0.png, as line 2)"),
    (("img/../img/0.png", "cat", "train"), "listed before: line 10 (img/../img/0.png, as line 2)"),
    (("", "cat", "train"), "without an image: line 10"),
    (("img/more.png", " ", "train"), "without a label: line 10 (img/more.png)"),
    (("img/more.png", "cat", ""), "without a split: line 10 (img/more.png)"),
    (("img/more.png", "cow", "val"), "with a label that the split train does not have: cow"),
    (
        ("img/more.png", "cat"),
        "with another number of cells than the 3 of the header: line 10 (2)",
    ),
]


@pytest.mark.parametrize(("row", "reason"), PROBLEMS, ids=[reason[:30] for _, reason in PROBLEMS])
def test_a_row_that_cannot_be_used_is_refused_or_left_out(images, row, reason):
    (images / "img/more.png").write_bytes((images / "img/1.png").read_bytes())
    file = write(images, [*rows(), row])
    with pytest.raises(ValueError) as caught:
        opened(file)
    message = str(caught.value)
    assert message.startswith(f"{file}: 1 row cannot be used, {reason}"), message
    assert message.endswith("set data.on_error=skip to leave them out")
    train, held_out = opened(file, on_error="skip")
    assert len(train) + len(held_out) == 8
    assert [note for note in train.notes if f"1 row left out, {reason}" in note]


@pytest.mark.parametrize(
    ("lines", "header", "reason"),
    [
        ([], "path,label", "no image is listed"),
        (rows(), "file,label,split", "no column 'path', its first line has: file, label, split"),
        (rows(), "path,class,split", "no column 'label', its first line has: path, class, split"),
        (rows(), "path,path,split", "two columns have the name 'path'"),
        (rows(("cat", "cat")), "path,label,split", "expected labels of at least 2 classes"),
        ([*rows(), ('"img', "dog", "val")], "path,label,split", "line 10: not a row of a table"),
        (
            [(*row[:2], {"val": "Train"}.get(row[2], row[2])) for row in rows()],
            "path,label,split",
            "the splits train and Train differ only in case",
        ),
        (
            [(*row[:2], {"val": "x"}.get(row[2], row[2])) for row in rows()],
            "path,label,split",
            "no split to evaluate on, expected validation, val, valid or test beside train, got: x",
        ),
        (
            [(*row[:2], {"train": "x"}.get(row[2], row[2])) for row in rows()],
            "path,label,split",
            "no split to train on, its splits: x, val; name one with data.train_split",
        ),
    ],
)
def test_what_is_no_such_table_is_one_line(images, lines, header, reason):
    file = write(images, lines, header)
    with pytest.raises((ValueError, NotFound)) as caught:
        opened(file)
    message = str(caught.value)
    assert message.startswith(f"{file}: {reason}") and "\n" not in message


def test_files_that_are_no_text_are_one_line(images):
    for content, reason in (
        (b"path,label\na.png,caf\xe9\n", "line 2 is not text in UTF-8"),
        ("path,label\n".encode("utf-16"), "line 1 is not text in UTF-8"),
        (b"", "an empty table"),
        (b"\n\n", "an empty table"),
    ):
        (images / "t.csv").write_bytes(content)
        with pytest.raises(ValueError, match=reason):
            opened(images / "t.csv")
    with pytest.raises(NotFound, match=r"none.csv: no such file"):
        opened(images / "none.csv")


def test_other_names_of_splits_are_read_by_name_and_counted_else(images):
    lines = [(*row[:2], ("a", "a", "a", "unused", "a", "b", "b", "b")[i])
             for i, row in enumerate(rows())]  # fmt: skip
    train, held_out = opened(write(images, lines), train_split="a", eval_split="b")
    assert (len(train), len(held_out)) == (4, 3)
    assert train.notes == ("1 image of the split unused not read",)
    with pytest.raises(NotFound, match="no split 'c', its splits: a, unused, b"):
        opened(images / "t.csv", train_split="a", eval_split="c")


def test_images_outside_of_the_folder_are_read_and_counted(images, tmp_path_factory):
    other = tmp_path_factory.mktemp("other") / "8.png"
    other.write_bytes((images / "img/7.png").read_bytes())
    train, _ = opened(write(images, [*rows(), (other, "dog", "train")]))
    assert levels(train)[-1] == 140
    assert train.notes == (f"1 image outside of {images}, which are read: {other}",)


def test_parquet_with_paths_bytes_and_structs(images):
    content = [(images / path).read_bytes() for path, *_ in rows()]
    paths = [path for path, *_ in rows()]
    structs = [{"bytes": None if i in (2, 5) else content[i], "path": paths[i]} for i in range(8)]
    for name, cells in (("path", paths), ("image", content), ("image", structs)):
        labels = pyarrow.array([row[1] for row in rows()]).dictionary_encode()
        table = pyarrow.table({name: cells, "label": labels, "split": [r[2] for r in rows()]})
        pyarrow.parquet.write_table(table, images / "t.parquet", row_group_size=3)
        train, held_out = opened(images / "t.parquet")
        assert levels(train) == [0, 20, 40, 80, 100, 120] and levels(held_out) == [60, 140]
        assert train.class_names == ("cat", "dog")
        assert train.labels().tolist() == [0, 1, 0, 0, 1, 0]
    assert train.where(2) == str(images / "img/2.png")  # whose bytes are null
    assert train.where(1) == f"{images}/t.parquet, row 1"


def test_parquet_that_cannot_be_used(images):
    file = images / "t.parquet"
    content = (images / "img/1.png").read_bytes()
    images_of = [content, None, content, b"no image", content]
    columns = {"image": images_of, "label": [0.0, 1.0, None, 1.0, 1.0]}
    pyarrow.parquet.write_table(pyarrow.table(columns), file)
    with pytest.raises(ValueError) as caught:
        opened(file)
    assert "1 row cannot be used, without an image: t.parquet row 1" in str(caught.value)
    assert "1 row cannot be used, without a label: t.parquet row 2" in str(caught.value)
    train, _ = opened(file, on_error="skip")
    assert train.class_names == ("0", "1")  # pandas writes whole numbers so beside empty cells
    pair = opened(file, on_error="skip")
    problems = [p for source in pair for p in source.load(range(len(source)))[1].values()]
    reason = "cannot decode 8 bytes as an image: cannot identify image file"
    assert problems == [f"{file}, row 3: {reason}"]
    pyarrow.parquet.write_table(pyarrow.table(columns | {"image": [1, 2, 3, 4, 5]}), file)
    with pytest.raises(ValueError, match="the column image is of type int64, expected paths"):
        opened(file)
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(NotFound, match=r"t.parquet: cannot be read: "):
        opened(file)


def test_data_check_says_what_is_read_and_what_is_not(images, capsys):
    (images / "img/1.png").write_bytes(b"nothing")
    file = write(images, [*rows(), ("img/9.png", "cat", "train")], header="file,label,split")
    arguments = ["data", "check", f"table:{file}", "--image-column=file"]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert "1 row cannot be used, no such file: line 10 (img/9.png)" in error
    assert error.count("\n") == 1 and "--on-error=skip" in error
    assert main([*arguments, "--on-error=skip"]) == 1
    out = capsys.readouterr().out
    assert f"table:{file} train: 6 images, 2 classes" in out
    assert "note: 1 row left out, no such file: line 10 (img/9.png)" in out
    assert f"cannot use {images}/img/1.png: cannot decode 7 bytes as an image" in out
    assert json.dumps(out).count("cannot use ") == 1
