"""Pictures of predictions.npz: the confusion matrix and the worst mistakes."""

import itertools
import json

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.font_manager import fontManager

from mbv3_jax.report import pictures
from mbv3_jax.report.pictures import (
    confusion,
    image_sheet,
    plot_confusion,
    plot_curves,
    plot_mistakes,
    save_picture,
    shorten,
)


@pytest.fixture
def run(tmp_path):
    (tmp_path / "classes.json").write_text(json.dumps(["cat", "dog", "$owl$"]))
    np.savez(
        tmp_path / "predictions.npz",
        step=7,
        label=np.array([0, 0, 1, 2, -1]),
        prediction=np.array([0, 1, 1, 0, 2]),
        probability=np.array([0.9, 0.6, 0.8, 0.7, 0.5]),
        label_probability=np.array([0.9, 0.3, 0.8, 0.1, 0.5]),
        path=np.array(["a.jpg", "b.jpg", "c.jpg", "/deep/d.jpg", "e.jpg"]),
        mistakes=np.array([3, 1]),
        thumbnails=np.stack([np.full((8, 8, 3), level, np.uint8) for level in (10, 200)]),
    )
    return tmp_path


def texts(figure):
    return [t.get_text() for axes in figure.axes for t in (*axes.texts, axes.xaxis.label)]


def test_confusion_counts_what_could_be_read(run):
    said = np.load(run / "predictions.npz")
    counts = confusion(said["label"], said["prediction"], 3)
    assert counts.tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 0]]


def test_the_confusion_matrix_names_and_counts(run):
    axes = plot_confusion(run).axes[0]
    assert axes.get_title() == f"{run}, step 7: 2 of 4 correct"
    assert [t.get_text() for t in axes.get_yticklabels()] == ["cat (2)", "dog (1)", "$owl$ (1)"]
    assert sorted(t.get_text() for t in axes.texts) == ["1", "1", "1", "1"]
    np.testing.assert_array_equal(axes.images[0].get_array()[0], [0.5, 0.5, 0])


def test_the_worst_mistakes_with_what_they_are(run, tmp_path):
    figure = plot_mistakes(run)
    assert texts(figure) == [
        "d.jpg\nis $owl$: 10.0%\ntaken for cat: 70.0%",
        "b.jpg\nis cat: 30.0%\ntaken for dog: 60.0%",
    ]
    assert [int(axes.images[0].get_array()[0, 0, 0]) for axes in figure.axes] == [10, 200]
    figure.savefig(tmp_path / "sheet.png")  # "$owl$" is no formula


def test_a_sheet_of_many(tmp_path):
    images = [np.zeros((4, 4, 3), np.uint8)] * 13
    figure = image_sheet(images, [f"{i}" for i in range(13)])
    assert len(figure.axes) == 13
    assert texts(figure) == [str(i) for i in range(13)]


def test_what_is_missing_is_said(run, tmp_path):
    with pytest.raises(ValueError, match=r"other has no predictions.npz: a run writes it at its"):
        plot_confusion(tmp_path / "other")
    said = dict(np.load(run / "predictions.npz"))
    np.savez(run / "predictions.npz", **said | {"mistakes": np.array([], np.int64)})
    with pytest.raises(ValueError, match="no mistake to draw"):
        plot_mistakes(run)
    (run / "classes.json").write_text("[")
    with pytest.raises(ValueError, match=r"classes.json is damaged"):
        plot_mistakes(run)
    (run / "predictions.npz").write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"predictions.npz is damaged"):
        plot_mistakes(run)


def test_long_names_are_shortened_in_the_middle():
    assert shorten("cat") == "cat"
    short = shorten("a" * 20 + "b" * 20)
    assert len(short) == 28 and short.startswith("aaa") and short.endswith("bbb")


@pytest.mark.parametrize("count", [1, 2, 6, 7, 20])
@pytest.mark.parametrize("title", ["", "a long title, wider than one image"])
def test_captions_and_title_are_inside_the_sheet_and_apart(count, title):
    caption = "a file\nis a cat: 10.0%\ntaken for a dog: 70.0%\nor an owl\nlast line"
    figure = image_sheet([np.zeros((8, 8, 3), np.uint8)] * count, [caption] * count, title)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    boxes = [axes.get_window_extent() for axes in figure.axes]
    boxes += [axes.xaxis.label.get_window_extent() for axes in figure.axes]
    if title:
        boxes.append(figure.texts[0].get_window_extent())
    width, height = canvas.get_width_height()
    for box in boxes:
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height
    for box, other in itertools.combinations(boxes, 2):
        assert not box.overlaps(other), (box, other)


def test_long_captions_stay_in_their_column():
    caption = "0123456789-ABCDEFGHIJKL.jpg\ntaken for cauliflower, an edible plant: 70.0%"
    figure = image_sheet([np.zeros((8, 8, 3), np.uint8)] * 3, [caption] * 3)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    boxes = [axes.xaxis.label.get_window_extent() for axes in figure.axes]
    assert boxes[0].x0 >= 0 and boxes[2].x1 <= canvas.get_width_height()[0]
    assert not boxes[0].overlaps(boxes[1]) and not boxes[1].overlaps(boxes[2])


def test_pictures_are_written_whole(run, tmp_path):
    figure = plot_confusion(run)
    (tmp_path / "picture.tmp").write_text("of the user")
    for name, written in (("picture.PNG", "picture.PNG"), ("plain", "plain.png")):
        assert save_picture(figure, tmp_path / name) == tmp_path / written
        assert (tmp_path / written).read_bytes().startswith(b"\x89PNG")
    (tmp_path / "picture.svg").write_text("earlier")
    assert "<svg" in save_picture(figure, tmp_path / "picture.svg").read_text()
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ValueError, match="'docx' is not supported"):
        save_picture(figure, tmp_path / "picture.docx")
    assert sorted(tmp_path.iterdir()) == before
    assert (tmp_path / "picture.tmp").read_text() == "of the user"


HOSTILE = [
    "$a_",
    "$x^$",
    r"\$ \frac{$",
    "ca\tt",
    "\x1b[31m",
    "d\udcffg",
    "e\u202ef",
    "<b>",
    "",
    " ",
]


def test_no_text_is_a_formula(run, tmp_path, recwarn, capsys):
    strange = tmp_path / "a$b_$c^\udcff$"
    strange.mkdir()
    said = dict(np.load(run / "predictions.npz"))
    said["path"] = np.array([f"{name}.jpg" for name in HOSTILE[:5]])
    np.savez(strange / "predictions.npz", **said)
    (strange / "classes.json").write_text(json.dumps(HOSTILE))
    records = [{"kind": "train", "step": i, "loss": 1.0, "top1": 0.5} for i in (1, 2)]
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (strange / "metrics.jsonl").write_text(lines)
    for draw in (plot_confusion, plot_mistakes, plot_curves):
        for ending in ("png", "pdf", "svg"):
            save_picture(draw(strange), tmp_path / f"out.{ending}")
        FigureCanvasAgg(draw(strange)).draw()  # also where nobody has called save_picture
    assert "$x^$" in [t.get_text() for t in plot_confusion(strange).axes[0].get_xticklabels()]
    assert not recwarn.list and not capsys.readouterr().err


def test_letters_that_no_font_has_are_said_in_one_line(tmp_path, recwarn, capsys):
    # Cuneiform; where a font has it, nothing is to be said.
    letters = {chr(code) for code in range(0x12000, 0x12003)}
    fonts = [f for f in fontManager.ttflist if not f.name.startswith("Last Resort")]
    known = {letter for f in fonts for letter in letters & pictures._letters(f.fname)}
    captions = ["".join(sorted(letters)), "a"]
    save_picture(image_sheet([np.zeros((4, 4, 3), np.uint8)] * 2, captions), tmp_path / "o.png")
    said = capsys.readouterr().err
    if letters - known:
        assert len(said.splitlines()) == 1
        assert f"no font on this machine has {len(letters - known)} of the letters" in said
    else:
        assert not said
    assert not recwarn.list


def test_a_font_that_has_the_letters_is_used(tmp_path, monkeypatch, capsys, recwarn):
    # U+210F is in DejaVu Sans; it stands for a letter that only another font has.
    plain = pictures._letters
    default = pictures.findfont("DejaVu Sans")

    def letters(font):
        return plain(font) - ({"\u210f"} if font == default else set())

    monkeypatch.setattr(pictures, "_letters", letters)
    figure = image_sheet([np.zeros((4, 4, 3), np.uint8)], ["\u210f"])
    save_picture(figure, tmp_path / "o.png")
    assert figure.axes[0].xaxis.label.get_fontfamily()[0] == "DejaVu Sans"
    assert len(figure.axes[0].xaxis.label.get_fontfamily()) > 1
    assert not capsys.readouterr().err
