"""Using a trained network: predictions and embeddings of image files, predictions.npz.

predictions.npz of a run folder holds the predictions of the last weights for every held-out image:

step               the checkpoint
label              int32 [images], -1 for an image that could not be read
prediction         int32 [images]
probability        float32 [images], of the prediction
label_probability  float32 [images], of the label
path               [images], where the image is stored, or its number
mistakes           int64 [mistakes], which images are the worst mistakes, the worst first
thumbnails         uint8 [mistakes, height, width, channels], the mistakes as the network saw them,
                   scaled down
"""

import contextlib
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from mbv3_jax.arch.spec import NetSpec
from mbv3_jax.core.checks import check_whole, sides
from mbv3_jax.core.errors import UsageError, printable
from mbv3_jax.core.files import open_atomically
from mbv3_jax.data import augment, loader
from mbv3_jax.data.files import Files
from mbv3_jax.nn import functional
from mbv3_jax.nn.modules import Compute
from mbv3_jax.run.folder import read_config
from mbv3_jax.run.model import load_model
from mbv3_jax.run.processes import is_first
from mbv3_jax.train.experiment import Evaluation
from mbv3_jax.train.losses import class_numbers
from mbv3_jax.train.sharding import batch_sharded, make_mesh, put_batch, replicated

TOP = 5
THRESHOLD = 0.5  # the probability from which on an image has a label, if it has several
PREDICTIONS = "predictions.npz"
MISTAKES = 24
THUMBNAIL = 112  # pixels at most

# For fewer images, starting worker processes takes longer than decoding them here.
_WORTH_WORKERS = 500

PredictStep = Callable[[functional.Variables, dict], dict]


class Inference:
    """A trained network, ready for batches.

    Args:
      folder: a run folder or an import folder.
      step, weights: see `model.load_model`.
      batch: images at a time; rounded up to a multiple of the number of devices.

    Raises:
      UsageError, RunError: as `model.load_model`.
    """

    def __init__(
        self,
        folder: Path,
        *,
        step: int | str | None = None,
        weights: str = "auto",
        batch: int = 32,
    ):
        self.folder = Path(folder)
        self.model = load_model(folder, step=step, weights=weights)
        self.mesh = make_mesh()
        self.variables = jax.device_put(self.model.variables, replicated(self.mesh))
        devices = self.mesh.devices.size
        try:
            self.batch = -(-check_whole("batch", batch, at_least=1) // devices) * devices
        except ValueError as e:
            raise UsageError(f"{e}") from e
        preprocess = augment.make_preprocess(normalize=self.model.preprocessing.normalize)[1]
        self.options: dict[str, Any] = {
            "preprocess": preprocess,
            "mesh": self.mesh,
            "compute": _compute(folder),
        }

    def predictions(self, paths: Sequence[str], **options: Any) -> "Results":
        """The most probable classes; each result has "classes" [k] and "probabilities" [k].

        These are all classes if an image has several labels.

        Args:
          paths: of the image files.
          **options: of `make_predict_step`.

        Raises:
          UsageError: the network has no head.
        """
        self.model.require_head(self.folder)
        if self.model.multi_label:
            options = {"multi_label": True, "top": self.model.spec.num_classes} | options
        return Results(self, make_predict_step, paths, **options)

    def embeddings(self, paths: Sequence[str]) -> "Results":
        """The input of the logits; each result has "embedding" [channels]."""
        return Results(self, make_embed_step, paths)


class Results:
    """Iterates over image files in order: (path, view, result or None).

    The view, uint8 [height, width, channels], is what the network saw. The result is None for a
    file that cannot be read, or if the result is not finite.

    Attributes:
      problems: path -> the reason, for the files that cannot be read or have no result.
      seconds: from the first image on, after compilation.

    Raises:
      UsageError: image files are not read in as many channels as the network takes.
    """

    def __init__(
        self,
        inference: Inference,
        make_step: Callable[..., PredictStep],
        paths: Sequence[str],
        **options: Any,
    ):
        self._inference, self._paths = inference, paths
        spec = inference.model.spec
        try:
            self._files = Files(paths, spec.resolution, inference.model.crop)
        except ValueError as e:
            raise UsageError(f"{inference.folder}: {e}") from e
        self._step = make_step(spec, **inference.options, **options)
        self.problems: dict[str, str] = {}
        self.seconds = 0.0

    def __iter__(self) -> Iterator[tuple[str, np.ndarray, dict | None]]:
        inference, size = self._inference, self._inference.batch
        empty = {
            "image": np.zeros((size, *inference.model.spec.input_shape), np.uint8),
            "label": np.zeros(size, np.int32),
            "mask": np.zeros(size, np.float32),
        }
        list(run_batches(self._step, inference.variables, [empty], mesh=inference.mesh))
        began = time.perf_counter()
        messages: list[str] = []
        views: list[np.ndarray] = []
        batches = loader.eval_batches(
            self._files,
            batch_size=size,
            num_workers=None if len(self._paths) >= _WORTH_WORKERS else 0,
            on_error="skip",
            on_skip=messages.append,
        )

        def keep_views() -> Iterator[dict]:
            for batch in batches:
                views.append(batch["image"])
                yield batch

        paths = iter(self._paths)
        with contextlib.closing(batches):
            runs = run_batches(self._step, inference.variables, keep_views(), mesh=inference.mesh)
            for result in runs:
                self.seconds = time.perf_counter() - began
                view, mask = views.pop(0), result.pop("mask")
                for i, path in enumerate(itertools.islice(paths, len(mask))):
                    if mask[i] and not all(
                        np.isfinite(value[i]).all() for value in result.values()
                    ):
                        self.problems[path] = "the network's output is not a finite number"
                        yield path, view[i], None
                    elif mask[i]:
                        yield path, view[i], {name: value[i] for name, value in result.items()}
                    else:
                        prefix = f"skipped {printable(path)}: "  # as `Encoded.load` writes it
                        reasons = (m.removeprefix(prefix) for m in messages if m.startswith(prefix))
                        self.problems[path] = next(reasons, "cannot be read")
                        yield path, view[i], None


def _compute(folder: Path) -> Compute:
    """How the run computes; an import folder does not say."""
    if not (folder / "config.json").is_file():
        return Compute()
    compute = read_config(folder).compute
    return Compute(dtype=compute.dtype, depthwise=compute.depthwise)


def save_predictions(
    run_folder: Path,
    evaluation: Evaluation,
    variables: functional.Variables,
    *,
    step: int,
    wrap_batches: Callable[[Iterable[dict]], Iterable[dict]] = iter,
) -> None:
    """Predicts every held-out image and writes predictions.npz atomically.

    Args:
      run_folder: the folder of the run.
      evaluation: of the run.
      variables: the weights.
      step: the checkpoint that they are of.
      wrap_batches: called with the batches, as `Interrupt.checked` can be.
    """
    predict_step = make_predict_step(
        evaluation.spec,
        preprocess=evaluation.eval_preprocess,
        mesh=evaluation.mesh,
        compute=evaluation.compute,
        top=1,
    )
    batches = evaluation.eval_batches()
    parts: list[dict[str, np.ndarray]] = []
    try:
        parts += run_batches(predict_step, variables, wrap_batches(batches), mesh=evaluation.mesh)
    finally:
        batches.close()
    if not is_first():
        return
    source = evaluation.data.held_out
    joined = {k: np.concatenate([p[k] for p in parts])[: len(source)] for k in parts[0]}
    read = joined["mask"] > 0
    values: dict[str, Any] = {
        "step": np.int64(step),
        "label": np.where(read, joined["label"], -1).astype(np.int32),
        "prediction": joined["classes"][:, 0].astype(np.int32),
        "probability": joined["probabilities"][:, 0],
        "label_probability": joined["label_probability"],
        "path": np.array([source.where(i) for i in range(len(source))]),
    }
    worst = worst_mistakes(values, MISTAKES)
    stride = -(-max(sides(source.resolution)) // THUMBNAIL)
    thumbnails = [source[int(i)]["image"][::stride, ::stride] for i in worst]
    height, width = (-(-side // stride) for side in sides(source.resolution))
    values |= {
        "mistakes": worst,
        "thumbnails": np.array(thumbnails, np.uint8).reshape(-1, height, width, source.channels),
    }
    with open_atomically(run_folder / PREDICTIONS) as file:
        np.savez_compressed(file, **values)


def worst_mistakes(values: dict[str, np.ndarray], count: int) -> np.ndarray:
    """The wrongly predicted images whose label had the smallest probabilities."""
    wrong = np.flatnonzero((values["label"] >= 0) & (values["label"] != values["prediction"]))
    order = np.argsort(values["label_probability"][wrong], kind="stable")
    return wrong[order[:count]]


def make_predict_step(
    spec: NetSpec,
    *,
    preprocess: Callable[[jax.Array], jax.Array],
    mesh: Mesh,
    compute: Compute = Compute(),  # noqa: B008 (frozen)
    top: int = TOP,
    multi_label: bool = False,
) -> PredictStep:
    """Builds the jitted prediction of one batch; arguments as for `evaluate.make_eval_step`.

    Args:
      top: how many classes.
      multi_label: whether the probability of a class is the sigmoid of its logit.

    Returns:
      step(variables, batch) -> {"classes": int32 [batch, k], the most probable first;
      "probabilities": float32 [batch, k], of these; "label_probability": float32 [batch], of the
      label; and the batch's "label" and "mask"}, where k is `top`, or the number of classes if
      that is less.
    """

    def step(variables: functional.Variables, batch: dict) -> dict:
        logits, _ = functional.apply(spec, variables, preprocess(batch["image"]), compute=compute)
        probabilities = (jax.nn.sigmoid if multi_label else jax.nn.softmax)(logits)
        # By the logits: unequal logits can have equal probabilities.
        _, classes = jax.lax.top_k(logits, min(top, spec.num_classes))
        labels = class_numbers(batch["label"])[:, None]
        return {
            "classes": classes,
            "probabilities": jnp.take_along_axis(probabilities, classes, axis=1),
            "label_probability": jnp.take_along_axis(probabilities, labels, axis=1)[:, 0],
        }

    return _jit(step, mesh)


def make_embed_step(
    spec: NetSpec,
    *,
    preprocess: Callable[[jax.Array], jax.Array],
    mesh: Mesh,
    compute: Compute = Compute(),  # noqa: B008 (frozen)
) -> PredictStep:
    """Builds the jitted embedding of one batch; arguments as for `evaluate.make_eval_step`.

    Returns:
      step(variables, batch) -> {"embedding": float32 [batch, channels], "label", "mask"}.
    """

    def step(variables: functional.Variables, batch: dict) -> dict:
        images = preprocess(batch["image"])
        return {"embedding": functional.embed(spec, variables, images, compute=compute)}

    return _jit(step, mesh)


def _jit(step: PredictStep, mesh: Mesh) -> PredictStep:
    whole, split = replicated(mesh), batch_sharded(mesh)

    def with_labels(variables: functional.Variables, batch: dict) -> dict:
        return step(variables, batch) | {
            "label": class_numbers(batch["label"]),
            "mask": batch["mask"],
        }

    return jax.jit(with_labels, in_shardings=(whole, split), out_shardings=whole)


def run_batches(
    step: PredictStep,
    variables: functional.Variables,
    batches: Iterable[dict],
    *,
    mesh: Mesh,
) -> Iterator[dict[str, np.ndarray]]:
    """Runs a step on all batches.

    Args:
      step: from `make_predict_step` or `make_embed_step`.
      variables: of the network.
      batches: host batches {"image", "label", "mask"}, see `data.loader.eval_batches`.
      mesh: from `sharding.make_mesh`.

    Yields:
      What `step` returns for each batch, as NumPy arrays, once the next batch has been started.
    """
    # The average may be in parts, see `sharding.spread`; `device_put` could not gather these from
    # several processes.
    variables = jax.jit(lambda x: x, out_shardings=replicated(mesh))(variables)
    waiting = None
    for batch in batches:
        used = {name: batch[name] for name in ("image", "label", "mask")}
        started = step(variables, put_batch(used, mesh))
        if waiting is not None:
            yield jax.device_get(waiting)
        waiting = started
    if waiting is not None:
        yield jax.device_get(waiting)
