import numpy as np
import pytest

from mbv3_jax.run.durations import to_steps

IMAGENET = {"batch_size": 4096, "train_examples": 1_281_167}  # 312.785 steps an epoch


@pytest.mark.parametrize(
    ("duration", "steps"),
    [
        ({"steps": 7}, 7),
        ({"steps": 0}, 0),
        ({"steps": np.int64(7)}, 7),
        ({"epochs": 0}, 0),
        ({"epochs": 1}, 313),
        ({"epochs": 2}, 626),  # 625.57, not 2 * 313 + anything
        ({"epochs": 3}, 939),  # 938.36: up, not to the nearest
        ({"epochs": 2.4}, 751),  # 750.68
        ({"epochs": 1e-9}, 1),
        ({"examples": 4096}, 1),
        ({"examples": 4097}, 2),
        ({"examples": 1}, 1),
    ],
)
def test_values(duration, steps):
    got = to_steps("total", **duration, **IMAGENET)
    assert got == steps
    assert type(got) is int


def test_decimals_are_exact():
    # 0.07 * 100 is 7.000000000000001 in floating point, which would round up to 8.
    assert to_steps("total", epochs=0.07, batch_size=1, train_examples=100) == 7
    assert to_steps("total", epochs=np.float64(0.07), batch_size=1, train_examples=100) == 7


@pytest.mark.parametrize("duration", [{}, {"steps": 1, "epochs": 1}, {"epochs": 0, "examples": 0}])
def test_exactly_one_unit(duration):
    fields = "exactly one of warmup_steps, warmup_epochs, warmup_examples"
    with pytest.raises(ValueError, match=fields) as error:
        to_steps("warmup", **duration, **IMAGENET)
    assert str(error.value).startswith("warmup: got " + ("warmup_" if duration else "none"))


@pytest.mark.parametrize(
    ("duration", "field"),
    [
        ({"steps": -1}, "total_steps"),
        ({"steps": 1.5}, "total_steps"),
        ({"epochs": -0.1}, "total_epochs"),
        ({"epochs": float("nan")}, "total_epochs"),
        ({"epochs": float("inf")}, "total_epochs"),
        ({"epochs": "3"}, "total_epochs"),
        ({"examples": -1}, "total_examples"),
        ({"steps": True}, "total_steps"),
    ],
)
def test_bad_values_name_the_field(duration, field):
    with pytest.raises(ValueError, match=f"^{field}: got "):
        to_steps("total", **duration, **IMAGENET)


def test_bad_sizes():
    with pytest.raises(ValueError, match=r"^batch_size: got 0"):
        to_steps("total", steps=1, batch_size=0, train_examples=10)
    with pytest.raises(ValueError, match=r"^train_examples: got 0"):
        to_steps("total", steps=1, batch_size=1, train_examples=0)
