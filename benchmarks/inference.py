"""Inference side by side: python -m benchmarks.inference [--batches 1 32] [--threads 1]"""

from benchmarks.race import main

CONTENDERS = [
    "ours",
    "timm_eager",
    "timm_compile",
    "keras_jax",
    "onnxruntime_cpu",
    "litert",
    "plain_flax",
]

if __name__ == "__main__":
    main("infer", CONTENDERS, __doc__)
