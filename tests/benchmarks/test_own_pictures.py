"""The comparison of a folder of pictures with a plain script."""

import numpy as np
import pytest
from PIL import Image

from benchmarks import own_pictures


def test_seeds_that_both_have_are_compared():
    def row(epochs, seed, method, top1):
        balanced = top1 - 0.1
        return {
            "name": "cats", "epochs": epochs, "seed": seed, "method": method,
            "top1": top1, "balanced_accuracy": balanced,
        }  # fmt: skip

    rows = [
        row(5, 0, "ours", 0.8), row(5, 0, "script", 0.7),
        row(5, 1, "ours", 0.9), row(5, 1, "script", 0.6),
        row(5, 2, "ours", 0.1),
        row(10, 0, "ours", 0.5),
    ]  # fmt: skip
    (line,) = own_pictures.describe(rows).splitlines()[2:]
    # The differences are 10 and 30: their mean, and 12.706 standard errors of 10.
    assert line == "| cats | 5 | 85.0 | 65.0 | +20.0 ± 127.1 | 75.0 | 55.0 |"


@pytest.mark.parametrize("size", [(100, 60), (20, 200), (7, 7)])
def test_the_scripts_crops_are_parts_of_the_image(size):
    rng = np.random.default_rng(0)
    image = Image.fromarray(np.full((*size[::-1], 3), (255, 0, 128), np.uint8))
    expected = (np.array([1, 0, 128 / 255]) - own_pictures.MEAN) / own_pictures.DEVIATION
    for view in [own_pictures._central(image, 32)] + [
        own_pictures._cropped(image, 32, rng) for _ in range(20)
    ]:
        assert view.shape == (3, 32, 32) and view.dtype == np.float32
        assert np.allclose(view, expected[:, None, None], atol=1e-6)
    ramp = Image.fromarray(np.tile(np.arange(100, dtype=np.uint8)[None, :, None], (50, 1, 3)))
    directions = {np.sign(np.diff(own_pictures._cropped(ramp, 8, rng)[0]).sum()) for _ in range(30)}
    assert directions == {-1, 1}  # mirrored or not
