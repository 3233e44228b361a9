"""A few cases of every part of `python -m benchmarks.faults`, and what it would notice."""

import json
import signal
import time

import numpy as np
import pytest

from benchmarks import faults, hostile

CASES = {"kills": 1, "disk": 1, "images": 2, "weights": 6, "json": 8, "texts": 40, "names": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("faults")


@pytest.mark.slow
@pytest.mark.parametrize("part", faults.usable(list(CASES)))
def test_every_case_is_survived(part, folder):
    tried, broken, _ = faults.run_part(part, CASES[part], 0, folder)
    assert not broken, "\n".join(broken)
    assert tried >= CASES[part]


def test_the_parts_are_those_of_the_benchmark():
    assert set(CASES) == set(faults.PARTS)


@pytest.mark.slow
def test_what_is_not_damaged_is_read(folder, monkeypatch):
    monkeypatch.setattr(hostile, "damage", lambda data, rng: data)
    monkeypatch.setattr(hostile, "damage_json", lambda text, rng: text)
    codes = []
    main = hostile.main
    monkeypatch.setattr(hostile, "main", lambda words: codes.append(main(words)) or codes[-1])
    for part in ("images", "weights", "texts", "json"):
        _, broken, _ = faults.run_part(part, 4, 1000, folder)
        assert not broken, "\n".join(broken)
    assert set(codes) == {0}


def test_damage_changes_bytes_and_is_that_of_the_seed():
    data = bytes(range(256)) * 4
    made = [hostile.damage(data, np.random.default_rng(seed)) for seed in range(200)]
    assert sum(one != data for one in made) > 190
    assert made[3] == hostile.damage(data, np.random.default_rng(3))
    assert {len(one) < len(data) for one in made} == {True, False}
    text = json.dumps({"a": [1, {"b": 2}], "c": "d"})
    other = {hostile.damage_json(text, np.random.default_rng(seed)) for seed in range(100)}
    assert len(other) > 30 and all(json.loads(one) != json.loads(text) for one in other - {text})


@pytest.mark.parametrize(
    ("main", "message"),
    [
        (lambda words: 1 / 0, "ZeroDivisionError"),
        (lambda words: 3, "exit code 3"),
        (lambda words: print("Traceback (most recent call last)") or 1, "exit code 1: Traceback"),
        (lambda words: time.sleep(5), "TimeoutError: over 1 s"),
    ],
)
def test_what_is_not_survived_is_said(monkeypatch, main, message):
    monkeypatch.setattr(hostile, "main", main)
    monkeypatch.setattr(hostile, "SECONDS", 1)
    with pytest.raises(hostile.Broken, match=rf"^predict x: {message}"):
        hostile.run("predict", "x")
    assert signal.alarm(0) == 0


def test_a_case_that_is_not_survived_is_named_by_its_seed(monkeypatch, tmp_path):
    class Part:
        def case(self, folder, rng):
            if folder.name.endswith("8"):
                raise hostile.Broken("what happened")
            return 2

    monkeypatch.setitem(faults.PARTS, "texts", Part)
    tried, broken, _ = faults.run_part("texts", 3, 7, tmp_path)
    assert (tried, broken) == (4, ["texts, seed 8: what happened"])
    assert not list(tmp_path.iterdir())
