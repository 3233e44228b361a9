"""LiteRT (TFLite with XNNPACK) on Keras' network as TensorFlow converts it."""

import os

import numpy as np

from benchmarks.contenders import keras_jax
from benchmarks.task import Task


def setup(task: Task):
    """See `benchmarks.contenders`."""
    os.environ["KERAS_BACKEND"] = "tensorflow"
    import tensorflow as tf
    from ai_edge_litert.interpreter import Interpreter

    model = keras_jax.make_model(task)
    shape = (task.batch, task.resolution, task.resolution, 3)
    signature = [tf.TensorSpec(shape, tf.float32)]
    call = tf.function(lambda x: model(x, training=False), input_signature=signature)
    converter = tf.lite.TFLiteConverter.from_concrete_functions([call.get_concrete_function()])
    interpreter = Interpreter(model_content=converter.convert(), num_threads=task.threads)
    interpreter.allocate_tensors()
    images = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    where = interpreter.get_input_details()[0]["index"]

    def infer(steps: int) -> None:
        for _ in range(steps):
            interpreter.set_tensor(where, images)
            interpreter.invoke()

    return infer, f"tensorflow {tf.__version__}, Keras' network"
