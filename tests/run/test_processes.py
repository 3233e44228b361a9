"""How a process finds out which of how many it is."""

import os
import socket
import subprocess
import sys

import pytest
from paths import ROOT

from mbv3_jax.core.errors import RunError, UsageError
from mbv3_jax.run.detection import detect_processes
from mbv3_jax.run.processes import (
    from_first,
    is_first,
    is_loss_of_a_process,
    other_processes,
    process_label,
    start_processes,
)

SLURM = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_PROCID": "1"}
STEP = {**SLURM, "SLURM_STEP_NODELIST": "node[1-2]"}
POD = {"JAX_COORDINATOR_ADDRESS": "job-0-0.job"}


def explicit(address, count, index):
    return {
        "coordinator_address": address,
        "num_processes": count,
        "process_id": index,
        "cluster_detection_method": "deactivate",
    }


def detect(environ=(), *, on_tpu=False, **flags):
    return detect_processes(flags, dict(environ), on_tpu=on_tpu)


def test_a_single_process_needs_nothing():
    assert detect() is None
    assert detect(SLURM) is None  # a bare batch script, in an allocation for several tasks
    assert detect({**STEP, "SLURM_NTASKS": "1"}) is None
    assert detect(coordinator="a:1", num_processes=1, process_id=0) is None


def test_flags_come_first():
    flags = {"coordinator": "10.0.0.1:1234", "num_processes": 2, "process_id": 1}
    assert detect({**STEP, **POD}, on_tpu=True, **flags) == explicit("10.0.0.1:1234", 2, 1)


@pytest.mark.parametrize(
    ("environ", "want"),
    [
        ({"JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "3"}, explicit("job-0-0.job:8476", 4, 3)),
        ({"NNODES": "2", "NODE_RANK": "0"}, explicit("job-0-0.job:8476", 2, 0)),
        (
            {"NNODES": "2", "JOB_COMPLETION_INDEX": "1", "JAX_COORDINATOR_PORT": "99"},
            explicit("job-0-0.job:99", 2, 1),
        ),
        ({}, None),
    ],
)
def test_variables_of_a_pod(environ, want):
    assert detect({**POD, **environ}) == want


def test_slurm_under_srun():
    assert detect(STEP) == {"cluster_detection_method": "slurm"}
    # Four tasks on two nodes: a device each. One task a node: all devices of the node.
    gpus = {**STEP, "SLURM_GPUS_ON_NODE": "8"}
    assert "local_device_ids" not in detect({**gpus, "SLURM_STEP_NUM_NODES": "2"})
    whole_node = detect({**gpus, "SLURM_STEP_NUM_NODES": "4"})
    assert whole_node["local_device_ids"] == list(range(8))


def test_a_tpu_vm_asks_its_metadata():
    assert detect(on_tpu=True) == {}


@pytest.mark.parametrize(
    ("environ", "flags", "message"),
    [
        ({}, {"process_id": 0}, "--process-id needs the .* missing: --coordinator, --num-proc"),
        (
            {},
            {"coordinator": "host", "num_processes": 2, "process_id": 0},
            "--coordinator: got 'host', expected HOST:PORT",
        ),
        (
            {},
            {"coordinator": "a:1", "num_processes": 2, "process_id": 2},
            "--process-id: got 2 of --num-processes 2, expected 0 to 1",
        ),
        ({**STEP, "SLURM_NTASKS": "x"}, {}, "SLURM_NTASKS: got 'x', expected a number"),
        ({**POD, "NNODES": "two", "NODE_RANK": "0"}, {}, "NNODES: got 'two', expected a number"),
    ],
)
def test_what_makes_no_sense_is_refused(environ, flags, message):
    with pytest.raises(UsageError, match=message):
        detect(environ, **flags)


def test_patience_has_to_be_positive():
    with pytest.raises(UsageError, match="--patience: got 0, expected seconds above 0"):
        start_processes({}, patience=0)


def test_a_coordinator_whose_port_is_taken_is_refused():
    with socket.create_server(("", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        flags = {"coordinator": address, "num_processes": 2, "process_id": 0}
        with pytest.raises(RunError, match=f"cannot listen at {address}.*; choose another port"):
            start_processes(flags)


def test_a_single_process_acts_for_itself():
    assert is_first() and other_processes() is None and process_label() == ""
    assert from_first(lambda: 3) == 3
    assert not is_loss_of_a_process(RuntimeError("Gloo AllReduce failed"))


LEAVES = """
import atexit
import types

from mbv3_jax.run.processes import Peers

atexit.register(print, "exit handlers ran")
client = types.SimpleNamespace(key_value_dir_get=lambda _: [], key_value_set=lambda *_: None)
try:
    Peers(client, index=1, count=2, patience=60.0).leave(75)
finally:
    print("Python goes on, and cannot answer JAX's abort while it is finalised", flush=True)
"""


def test_a_process_leaves_with_its_code_before_python_is_finalised():
    environ = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    done = subprocess.run(
        [sys.executable, "-c", LEAVES],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
        env=environ,
    )
    assert (done.returncode, done.stdout) == (75, "exit handlers ran\n"), done.stderr
