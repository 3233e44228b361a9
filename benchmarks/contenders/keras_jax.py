"""keras.applications on the JAX backend."""

import os

import numpy as np

from benchmarks.task import Task

NAMES = {
    "mobilenet_v3_large": "MobileNetV3Large",
    "mobilenet_v3_small": "MobileNetV3Small",
    "mobilenet_v2": "MobileNetV2",
}


def make_model(task: Task):
    """The Keras model with random weights; V3 without its built-in rescaling."""
    import keras

    if task.network not in NAMES:
        raise ImportError(f"Keras has no {task.network}")
    options = {} if task.network == "mobilenet_v2" else {"include_preprocessing": False}
    shape = (task.resolution, task.resolution, 3)
    build = getattr(keras.applications, NAMES[task.network])
    return build(input_shape=shape, weights=None, classifier_activation=None, **options)


def setup(task: Task):
    """See `benchmarks.contenders`."""
    os.environ["KERAS_BACKEND"] = "jax"
    import jax
    import keras

    if task.dtype == "bfloat16":
        keras.mixed_precision.set_global_policy("mixed_bfloat16")
    model = make_model(task)
    generator = np.random.default_rng(0)
    shape = (task.batch, task.resolution, task.resolution, 3)
    images = jax.device_put(generator.normal(size=shape).astype(np.float32))
    labels = jax.device_put(generator.integers(0, 1000, task.batch))
    info = f"keras {keras.__version__}, jax {jax.__version__}"
    if task.kind == "infer":
        trainable = [v.value for v in model.trainable_variables]
        fixed = [v.value for v in model.non_trainable_variables]
        forward = jax.jit(lambda t, f, x: model.stateless_call(t, f, x, training=False)[0])

        def infer(steps: int) -> None:
            for _ in range(steps):
                forward(trainable, fixed, images).block_until_ready()

        return infer, info

    model.compile(
        optimizer=keras.optimizers.RMSprop(1e-4, rho=0.9, momentum=0.9, epsilon=0.002),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )

    def train(steps: int) -> None:
        for _ in range(steps):
            model.train_on_batch(images, labels)  # returns the loss: the step is done

    return train, info
