import importlib.util
import os
import sys

import numpy as np
import pytest

from mbv3_jax.arch import cost
from mbv3_jax.core.errors import UsageError
from mbv3_jax.search.presets import preset
from mbv3_jax.search.searchers import front, hypervolume, nsga2


def test_front_and_hypervolume_by_hand():
    accuracy = np.array([0.5, 0.7, 0.6, 0.7, 0.9, 0.4])
    costs = np.array([1.0, 2.0, 2.0, 3.0, 4.0, 0.5])
    assert front(accuracy, costs) == [5, 0, 1, 4]
    # From accuracy 0.4 up and cost 3.5 down: (0.5 - 0.4) * 2.5 + (0.7 - 0.5) * 1.5.
    assert hypervolume(accuracy, costs, worst=0.4, most=3.5) == pytest.approx(0.55)
    assert hypervolume(accuracy, costs, worst=0.95, most=3.5) == 0


def test_nsga2_finds_the_front_of_a_small_space():
    if not importlib.util.find_spec("pymoo") and not os.environ.get("MBV3_REQUIRE_PEERS"):
        pytest.skip("pymoo is not installed")
    space = preset("toy")
    points = list(space.points())
    madds = {p: cost.madds(space.to_spec(p)) for p in points}
    quality = {p: 1 - 1 / (1 + 1e-5 * m) + 0.01 * p[2] for p, m in madds.items()}
    asked = []

    def objectives(some):
        asked.extend(some)
        return np.array([quality[p] for p in some]), np.array([madds[p] for p in some], float)

    found = nsga2(space, objectives, generations=12, population=30, seed=0)
    assert len(asked) <= 12 * 30
    every = objectives(points)
    best = hypervolume(*every, worst=0.5, most=1.5e6)
    got = hypervolume(
        np.array([a for _, a, _ in found]), np.array([c for *_, c in found]), worst=0.5, most=1.5e6
    )
    assert 0.97 * best <= got <= best
    assert [c for *_, c in found] == sorted(c for *_, c in found)
    assert found == nsga2(space, objectives, generations=12, population=30, seed=0)


def test_without_pymoo_the_message_says_what_to_install(monkeypatch):
    for name in ("pymoo", "pymoo.algorithms.moo.nsga2"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UsageError, match=r"pip install -e '.\[search\]'"):
        nsga2(preset("toy"), lambda p: (p, p), generations=1)
