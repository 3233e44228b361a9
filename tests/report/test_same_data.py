"""Which results are of the same held-out images."""

import json

from mbv3_jax.report.collect import collect, same_data

SUMMARY = {
    "steps": 8,
    "epochs": 1.0,
    "weights": "raw",
    "split": "val",
    "seconds": 1.0,
    "images_per_second": 8.0,
    "eval": {"count": 8, "loss": 1.0, "top1": 0.5},
}


def trial(folder, data, digest=None, finished=True):
    """A run on data that was typed like this, whose held-out images have a digest."""
    folder.mkdir()
    config = {"seed": 0, "data": {"name": data, "eval_split": None}}
    (folder / "config.json").write_text(json.dumps(config))
    if finished:
        held_out = {"held_out": digest} if digest else {}
        (folder / "summary.json").write_text(json.dumps(SUMMARY | held_out))
    return collect([folder])[0].trials[0]


def test_data_at_a_path_is_known_by_its_digest(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = trial(tmp_path / "a", "folder:pets", "folder/val/8/aaaa")
    same = trial(tmp_path / "b", f"folder:{tmp_path}/pets/", "folder/val/8/aaaa")
    other = trial(tmp_path / "c", "folder:pets", "folder/val/8/bbbb")
    assert same_data(first, same) and not same_data(first, other)
    older = trial(tmp_path / "d", "folder:pets")
    assert same_data(first, older) and not same_data(same, older)
    unfinished = trial(tmp_path / "e", "folder:./pets", finished=False)
    assert same_data(unfinished, first) and same_data(unfinished, same)
    assert not same_data(unfinished, trial(tmp_path / "f", "folder:cars", finished=False))


def test_other_data_is_known_by_its_name(tmp_path):
    small = trial(tmp_path / "a", "digits", "digits/val/32x32/aaaa")
    large = trial(tmp_path / "b", "digits", "digits/val/64x64/bbbb")
    assert same_data(small, large)  # the same images in another resolution
    assert not same_data(small, trial(tmp_path / "c", "clutter", "clutter/val/32x32/aaaa"))
