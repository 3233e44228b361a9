"""keras.applications classifiers, on Keras' JAX backend, as peers."""

import os
import tempfile
import warnings
from pathlib import Path

os.environ["KERAS_BACKEND"] = "jax"
os.environ["KERAS_HOME"] = os.devnull  # neither read nor write the user's ~/.keras

import jax
import keras
import numpy as np
from peer_values import redraw

from mbv3_jax.interop import weight_files

_BN_NAMES = {"gamma": "scale", "beta": "bias", "moving_mean": "mean", "moving_variance": "var"}


class KerasPeer:
    """A classifier by its name in keras.applications, for images of one size."""

    library = "keras"

    def __init__(self, name: str, image_shape: tuple[int, int, int], **options):
        if name.startswith("MobileNetV3"):
            options = {"include_preprocessing": False, "dropout_rate": 0.0} | options
        # `prepare` draws the weights: Keras' own draw compiles a program for every shape
        draw = keras.initializers.VarianceScaling.__call__
        keras.initializers.VarianceScaling.__call__ = lambda self, shape, dtype: np.zeros(
            shape, dtype
        )
        try:
            self.model = getattr(keras.applications, name)(
                input_shape=image_shape, weights=None, classifier_activation=None, **options
            )
        finally:
            keras.initializers.VarianceScaling.__call__ = draw

    def trainable(self) -> int:
        """The number of trainable parameters."""
        return sum(int(np.prod(v.shape)) for v in self.model.trainable_variables)

    def prepare(self, rng: np.random.Generator, *, bn_eps: float, bn_decay: float) -> None:
        """Redraws every variable and sets BatchNorm's constants."""
        for m in self.model.layers:
            if isinstance(m, keras.layers.BatchNormalization):
                m.epsilon, m.momentum = bn_eps, bn_decay
            per_channel = isinstance(m, keras.layers.DepthwiseConv2D)  # kernel [k, k, C, 1]
            for v in m.variables:
                fan_in = np.prod(v.shape[: 2 if per_channel else -1])
                v.assign(redraw(_BN_NAMES.get(v.name, v.name), v.shape, rng, fan_in))

    def tensors(self) -> dict[str, np.ndarray]:
        """Copies of every variable, by its name in a file of weights."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "peer.weights.h5"
            with warnings.catch_warnings():  # of Keras about its own use of NumPy
                warnings.simplefilter("ignore", DeprecationWarning)
                self.model.save_weights(file)
            return weight_files.read(self.library, file).tensors

    def forward(self, images: np.ndarray, *, train: bool) -> np.ndarray:
        """Logits [N, classes] of images [N, H, W, C]; train updates the moving statistics."""

        def run(trainable, other, images):
            return self.model.stateless_call(trainable, other, images, training=train)

        trainable = [v.value for v in self.model.trainable_variables]
        other = [v.value for v in self.model.non_trainable_variables]
        # unoptimised code: compiling takes most of the time here
        run = jax.jit(run, compiler_options={"xla_backend_optimization_level": 0})
        logits, other = run(trainable, other, images)
        for v, value in zip(self.model.non_trainable_variables, other, strict=True):
            v.assign(value)
        return np.asarray(logits)
