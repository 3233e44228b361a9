"""Training steps side by side: python -m benchmarks.train_step [--networks ...] [--batches ...]"""

from benchmarks.race import main

CONTENDERS = ["ours", "timm_eager", "timm_compile", "keras_jax", "plain_flax"]

if __name__ == "__main__":
    main("train", CONTENDERS, __doc__)
