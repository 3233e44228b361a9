"""Times one model in a process of its own: python -m mbv3_jax.latency.worker < job.json

A job is {"runtime", "threads", "model", "shape", "warmup_seconds", "seconds", "runs"}; "model" is
the path of a TFLite or ONNX file, or for XLA of a spec (JSON), whose weights are random. Prints
{"ms": [every run], "versions": {package: version}} as the last line.
"""

import json
import os
import sys
import time
from importlib import metadata


def main() -> None:
    job = json.load(sys.stdin)
    # Before a runtime counts the cores.
    os.environ["OMP_NUM_THREADS"] = str(job["threads"])
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: job["threads"]])
    run, packages = {"litert": _litert, "onnxruntime": _onnxruntime, "xla": _xla}[job["runtime"]](
        job
    )
    end = time.perf_counter() + job["warmup_seconds"]
    run()
    while time.perf_counter() < end:
        run()
    times, end = [], time.perf_counter() + job["seconds"]
    while len(times) < job["runs"] or time.perf_counter() < end:
        began = time.perf_counter_ns()
        run()
        times.append((time.perf_counter_ns() - began) / 1e6)
    versions = {package: metadata.version(package) for package in packages}
    print(json.dumps({"ms": times, "versions": versions}))


def _input(shape, dtype="float32"):
    import numpy as np

    values = np.random.default_rng(0).uniform(-1, 1, shape)
    return (values * 127).astype(dtype) if np.dtype(dtype).kind in "iu" else values.astype(dtype)


def _litert(job):
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=job["model"], num_threads=job["threads"])
    interpreter.allocate_tensors()
    (inputs,) = interpreter.get_input_details()
    interpreter.set_tensor(inputs["index"], _input(inputs["shape"], inputs["dtype"]))
    return interpreter.invoke, ("ai-edge-litert",)


def _onnxruntime(job):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = job["threads"]
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        job["model"], options, providers=["CPUExecutionProvider"]
    )
    (inputs,) = session.get_inputs()
    feed = {inputs.name: _input(job["shape"])}
    return lambda: session.run(None, feed), ("onnxruntime",)


def _xla(job):
    from pathlib import Path

    import jax

    from mbv3_jax.arch import from_json
    from mbv3_jax.nn import functional

    spec = from_json(Path(job["model"]).read_text())
    variables = functional.init(spec, jax.random.key(0))
    images = jax.numpy.asarray(_input(job["shape"]))
    apply = jax.jit(lambda v, x: functional.apply(spec, v, x)[0])
    return lambda: apply(variables, images).block_until_ready(), ("jax", "jaxlib")


if __name__ == "__main__":
    main()
