"""Times models in a fresh process: python -m mbv3_jax.latency.worker < job.json

A job is {"models": [{"runtime", "path"}], "threads", "warmup_seconds", "seconds", "runs",
"turn_seconds", "profile"}. A path leads to a TFLite or ONNX file, or for XLA to StableHLO or a spec
(JSON), whose weights are then random. Several models take turns, so that other work on the machine
affects all of them.

The last line that the process prints is {"turns", "versions": {package: version}, "profile":
[{"op", "count", "ms"}] or null}; turns[model][turn] lists the milliseconds of every run.

Runtimes are imported where they are used, because threads and cores must be set before.
"""

import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

from mbv3_jax.core.json_values import parse_json

_PROFILED_RUNS = 20


def main() -> None:
    job = parse_json(sys.stdin.read(), dict)
    # Before a runtime counts the cores.
    threads = job["threads"]
    os.environ["OMP_NUM_THREADS"] = str(threads)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    loaders = {"litert": _litert, "onnxruntime": _onnxruntime, "xla": _xla}
    runners: list[Callable[[], object]] = []
    packages: set[str] = set()
    for model in job["models"]:
        try:
            run, used = loaders[model["runtime"]](model["path"], threads)
        except Exception as e:  # whatever a runtime raises
            sys.exit(f"{model['path']}: {str(e).strip().splitlines()[0]}")
        runners.append(run)
        packages |= set(used)
    for run in runners:
        run()
        _turn(run, job["warmup_seconds"], 0)
    turns: list[list[list[float]]] = [[] for _ in runners]
    end = time.perf_counter() + job["seconds"] * len(runners)
    while min(sum(map(len, t)) for t in turns) < job["runs"] or time.perf_counter() < end:
        for run, of_model in zip(runners, turns, strict=True):
            run()  # not timed, because the caches hold another model
            of_model.append(_turn(run, job["turn_seconds"], 1))
    result = {
        "turns": turns,
        "versions": {package: metadata.version(package) for package in sorted(packages)},
        "profile": _profile(job["models"][0], threads) if job["profile"] else None,
    }
    print(json.dumps(result))


def _turn(run: Callable[[], object], seconds: float, least: int) -> list[float]:
    """Runs a model for some seconds, and at least some times; returns milliseconds."""
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < least or time.perf_counter() < end:
        began = time.perf_counter_ns()
        run()
        times.append((time.perf_counter_ns() - began) / 1e6)
    return times


def _input(shape, dtype="float32"):
    import numpy as np

    values = np.random.default_rng(0).uniform(-1, 1, shape)
    return (values * 127).astype(dtype) if np.dtype(dtype).kind in "iu" else values.astype(dtype)


def _litert(path, threads):
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=path, num_threads=threads)
    interpreter.allocate_tensors()
    (inputs,) = interpreter.get_input_details()
    interpreter.set_tensor(inputs["index"], _input(inputs["shape"], inputs["dtype"]))
    return interpreter.invoke, ("ai-edge-litert",)


def _session(path, threads, profile=None):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    if profile:
        options.enable_profiling, options.profile_file_prefix = True, profile
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (inputs,) = session.get_inputs()
    shape = [size if isinstance(size, int) else 1 for size in inputs.shape]
    dtype = "uint8" if "uint8" in inputs.type else "float32"
    return session, {inputs.name: _input(shape, dtype)}


def _onnxruntime(path, threads):
    session, feed = _session(path, threads)
    return lambda: session.run(None, feed), ("onnxruntime",)


def _xla(path, threads):
    import jax

    from mbv3_jax.arch import spec_from_json
    from mbv3_jax.nn import functional

    if path.endswith(".stablehlo"):
        exported = jax.export.deserialize(bytearray(Path(path).read_bytes()))
        (shape,) = exported.in_avals
        images, call = jax.numpy.asarray(_input(shape.shape)), jax.jit(exported.call)
        return lambda: call(images).block_until_ready(), ("jax", "jaxlib")
    spec = spec_from_json(Path(path).read_bytes())
    variables = functional.init(spec, jax.random.key(0))
    images = _input((1, *spec.input_shape))
    images = jax.numpy.asarray(images)
    apply = jax.jit(lambda v, x: functional.apply(spec, v, x)[0])
    return lambda: apply(variables, images).block_until_ready(), ("jax", "jaxlib")


def _profile(model, threads):
    """Returns the time by kind of operation; only ONNX Runtime's package has a profiler."""
    if model["runtime"] != "onnxruntime":
        return None
    with tempfile.TemporaryDirectory() as folder:
        session, feed = _session(model["path"], threads, str(Path(folder) / "profile"))
        for _ in range(_PROFILED_RUNS):
            session.run(None, feed)
        events = parse_json(Path(session.end_profiling()).read_bytes(), list)
    durations: dict[str, dict[str, list[float]]] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            nodes = durations.setdefault(event["args"]["op_name"], {})
            nodes.setdefault(event["name"], []).append(event["dur"])
    # Medians, because the first runs allocate memory.
    rows = [
        {"op": op, "count": len(nodes), "ms": sum(map(statistics.median, nodes.values())) / 1e3}
        for op, nodes in durations.items()
    ]
    return sorted(rows, key=lambda row: -row["ms"])


if __name__ == "__main__":
    main()
