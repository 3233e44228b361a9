import json
import os
import signal
import time

import pytest
from sweep_tools import jobs_of, stand_in

from mbv3_jax.sweep.combinators import Trial, trial
from mbv3_jax.sweep.executors import local
from mbv3_jax.sweep.executors.local import Slot, slots


def seen(job):
    return json.loads((job.folder / "seen.json").read_text())


def run_all(executor, jobs):
    """Polls until nothing is under way; the statuses, and the most that ran at once."""
    handles, most = executor.submit(jobs), 0
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        statuses = executor.poll(handles)
        most = max(most, sum(s.state == "running" for s in statuses.values()))
        if all(s.state in ("ended", "stopped") for s in statuses.values()):
            return {name: (s.state, s.code) for name, s in statuses.items()}, most
        time.sleep(0.02)
    pytest.fail(f"still under way: {statuses}")


@pytest.fixture
def make(tmp_path, monkeypatch):
    stand_in(tmp_path, monkeypatch)
    with (tmp_path / "lock").open("w") as lock:
        yield lambda **options: local.make(tmp_path / "jobs", lock, **options)


def test_cores_and_gpus_are_shared():
    assert slots(2, "4,5,6,7", range(4)) == [
        Slot(frozenset({0, 1}), ("4", "5")),
        Slot(frozenset({2, 3}), ("6", "7")),
    ]
    assert slots(None, "0,1", ()) == [Slot(gpus=("0",)), Slot(gpus=("1",))]
    assert slots(None, None, range(8)) == [Slot()]  # one at a time has the whole machine
    assert [len(slot.cores) for slot in slots(3, None, range(8))] == [2, 3, 3]
    with pytest.raises(ValueError, match="jobs: got 3, but there are only 2 gpus"):
        slots(3, "0,1", range(8))
    with pytest.raises(ValueError, match="jobs: got 0, expected a whole number of at least 1"):
        slots(0, None, range(8))


@pytest.mark.parametrize("cores", ["a", "1-", "-1", "1,,2"])
def test_wrong_cores(tmp_path, cores):
    with pytest.raises(ValueError, match=r"cores: got .*, expected numbers such as"):
        local.make(tmp_path, None, cores=cores)


def test_no_more_at_once_than_asked_for_each_on_its_own_cores(tmp_path, make):
    cores = sorted(os.sched_getaffinity(0))[:2]
    if len(cores) < 2:
        pytest.skip("needs two cores")
    jobs = jobs_of(tmp_path, tuple(Trial(f"t{i}", {}) for i in range(5)))
    statuses, most = run_all(make(jobs=2, gpus="3,5"), jobs)
    assert set(statuses.values()) == {("ended", 0)}
    assert most <= 2
    for job in jobs:
        assert seen(job)["CUDA_VISIBLE_DEVICES"] in ("3", "5")
    assert os.sched_getaffinity(0) >= set(cores)  # ours is as before

    jobs = jobs_of(tmp_path, tuple(Trial(f"u{i}", {}) for i in range(2)))
    run_all(make(jobs=2, cores=f"{cores[0]},{cores[1]}"), jobs)
    assert sorted(seen(job)["cores"] for job in jobs) == [[cores[0]], [cores[1]]]
    assert [seen(job)["OMP_NUM_THREADS"] for job in jobs] == ["1", "1"]


def test_exit_codes(tmp_path, make):
    jobs = jobs_of(tmp_path, tuple(Trial(name, {}) for name in ("fails", "refused", "saves")))
    executor = make(jobs=2)
    statuses, _ = run_all(executor, jobs)
    # "saves" left with 75 and was started again.
    assert statuses == {"fails": ("ended", 1), "refused": ("ended", 2), "saves": ("ended", 0)}
    log = (tmp_path / "jobs" / "saves.log").read_text()
    assert log.splitlines() == ["saved"]


def test_a_trial_that_always_asks_for_a_restart_has_failed(tmp_path, make):
    executor = make()
    (job,) = jobs_of(tmp_path, trial("asks"))
    statuses, _ = run_all(executor, [job])
    assert statuses == {"asks": ("ended", 75)}
    assert executor.poll({"asks": ""})["asks"].reason == (
        "it asked for 3 restarts without saving a new checkpoint"
    )


def test_cancel_lets_trials_save_and_kills_those_that_do_not(tmp_path, make):
    jobs = jobs_of(tmp_path, tuple(Trial(name, {}) for name in ("slow", "stuck", "later")))
    executor = make(jobs=2, grace=1.0)
    handles = executor.submit(jobs)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        executor.poll(handles)
        if all((tmp_path / name / "ready").exists() for name in ("slow", "stuck")):
            break
        time.sleep(0.02)
    executor.cancel(handles)
    statuses = {name: (s.state, s.code) for name, s in executor.poll(handles).items()}
    assert statuses == {
        "slow": ("stopped", 75),
        "stuck": ("stopped", -signal.SIGKILL),
        "later": ("queued", None),
    }
    assert not (tmp_path / "later").exists()
