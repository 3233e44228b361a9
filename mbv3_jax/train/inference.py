"""Using a trained network on image files: predictions, embeddings, evaluation on other data."""

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np

from mbv3_jax.core.checks import check_whole
from mbv3_jax.core.errors import RunError, UsageError
from mbv3_jax.data import augment, loader
from mbv3_jax.data.files import Files
from mbv3_jax.data.source import BadExample, crop_for, open_pair
from mbv3_jax.nn.modules import Compute
from mbv3_jax.run.checkpoint import Checkpoints, is_averaged
from mbv3_jax.run.folder import read_config
from mbv3_jax.run.model import load_model
from mbv3_jax.train.evaluate import evaluate, make_eval_step
from mbv3_jax.train.experiment import make_experiment
from mbv3_jax.train.predictions import make_embed_step, make_predict_step, run_batches
from mbv3_jax.train.sharding import make_mesh, replicated

# For fewer images, to start worker processes takes longer than to decode them here.
_WORTH_WORKERS = 500


class Inference:
    """A trained network, ready for batches.

    Args:
      folder: a run folder or an import folder.
      step, weights: see `model.load`.
      batch: images at a time; rounded up to what the devices divide.

    Raises:
      UsageError, RunError: as `model.load`.
    """

    def __init__(
        self, folder: Path, *, step: int | str | None = None, weights="auto", batch: int = 32
    ):
        self.model = load_model(folder, step=step, weights=weights)
        if self.model.spec.in_channels != 3:
            raise UsageError(
                f"{folder}: a network of {self.model.spec.in_channels} channels, but images have 3"
            )
        self.mesh = make_mesh()
        self.variables = jax.device_put(self.model.variables, replicated(self.mesh))
        devices = self.mesh.devices.size
        try:
            self.batch = -(-check_whole("batch", batch, at_least=1) // devices) * devices
        except ValueError as e:
            raise UsageError(f"{e}") from e
        preprocess = augment.make_preprocess(normalize=self.model.preprocessing.normalize)[1]
        self.options = {
            "preprocess": preprocess,
            "mesh": self.mesh,
            "compute": _compute(folder),
        }

    def predictions(self, paths: Sequence[str], **options) -> "Results":
        """The most probable classes; each result has "classes" [k] and "probabilities" [k]."""
        return Results(self, make_predict_step, paths, **options)

    def embeddings(self, paths: Sequence[str]) -> "Results":
        """What comes before the logits; each result has "embedding" [channels]."""
        return Results(self, make_embed_step, paths)


class Results:
    """Iterates over image files: (path, view, result or None), in their order.

    The view, uint8 [R, R, 3], is what the network saw. The result is None where a file cannot be
    read.

    Attributes:
      problems: path -> what is wrong with it, for the files that cannot be read.
      seconds: from the first image on; the program was compiled before.
    """

    def __init__(self, inference: Inference, make: Callable, paths: Sequence[str], **options):
        self._inference, self._paths = inference, paths
        self._step = make(inference.model.spec, **inference.options, **options)
        self.problems: dict[str, str] = {}
        self.seconds = 0.0

    def __iter__(self) -> Iterator[tuple[str, np.ndarray, dict | None]]:
        inference, model = self._inference, self._inference.model
        side, size = model.spec.resolution, inference.batch
        empty = {
            "image": np.zeros((size, side, side, 3), np.uint8),
            "label": np.zeros(size, np.int32),
            "mask": np.zeros(size, np.float32),
        }
        list(run_batches(self._step, inference.variables, [empty], mesh=inference.mesh))
        began = time.perf_counter()
        messages, views = [], []
        batches = loader.eval_batches(
            Files(self._paths, side, model.preprocessing.crop),
            batch_size=size,
            num_workers=None if len(self._paths) >= _WORTH_WORKERS else 0,
            on_error="skip",
            on_skip=messages.append,
        )

        def kept():
            for batch in batches:
                views.append(batch["image"])
                yield batch

        paths = iter(self._paths)
        with contextlib.closing(batches):
            runs = run_batches(self._step, inference.variables, kept(), mesh=inference.mesh)
            for found in runs:
                self.seconds = time.perf_counter() - began
                view, mask = views.pop(0), found.pop("mask")
                for i, path in enumerate(itertools.islice(paths, len(mask))):
                    if mask[i]:
                        yield path, view[i], {name: value[i] for name, value in found.items()}
                    else:
                        start = f"skipped {path}: "
                        reasons = (m.removeprefix(start) for m in messages if m.startswith(start))
                        self.problems[path] = next(reasons, "cannot be read")
                        yield path, view[i], None


def _compute(folder: Path) -> Compute:
    """How a run computes, which an import leaves open."""
    if not (folder / "config.json").is_file():
        return Compute()
    compute = read_config(folder).compute
    return Compute(dtype=compute.dtype, depthwise=compute.depthwise)


def evaluate_on(
    folder: Path,
    data: Mapping[str, object],
    *,
    step: int | str | None = None,
    weights: str = "auto",
    batch: int = 32,
) -> dict:
    """Evaluates a trained network on data that it need not have been trained on.

    The view and the normalisation are the folder's. Labels are brought together by the names of
    the classes, or, where none of the names is the same and there are as many, by their order.

    Args:
      folder: a run folder or an import folder.
      data: `config.data`, or a part of it; of a folder of class folders without splits all images
        are taken, unless "split_fraction" is given.
      step, weights, batch: as for `Inference`.

    Returns:
      {"folder", "data", "split", "labels": "by name" or "by order", "count", "loss", "top1",
      maybe "top5" and "unreadable"}.

    Raises:
      UsageError: no such data, or classes that do not fit.
      RunError: an image cannot be read.
    """
    inference = Inference(folder, step=step, weights=weights, batch=batch)
    model = inference.model
    options = {key: value for key, value in data.items() if value is not None}
    host = {
        key: options.pop(key)
        for key in ("num_workers", "num_threads", "prefetch_batches")
        if key in options
    }
    name, on_error = options.pop("name"), options.get("on_error", "raise")
    crop = {k: options.pop(k) for k in ("area", "ratio", *model.preprocessing.crop) if k in options}
    try:
        crop = crop_for(name, model.preprocessing.crop) | crop
        pair = open_pair(name, resolution=model.spec.resolution, crop=crop, **options)
        labels, how = label_map(pair[1].class_names, model.class_names)
    except (ValueError, FileNotFoundError) as e:
        raise UsageError(f"{e}") from e
    whole = pair[1].split == "held_out" and "split_fraction" not in options
    chosen = pair if whole else pair[1:]

    def batches():
        for source in chosen:
            opened = loader.eval_batches(
                source,
                batch_size=inference.batch,
                on_error=on_error,
                process_index=jax.process_index(),
                process_count=jax.process_count(),
                **({"num_workers": None} | host),
            )
            with contextlib.closing(opened):
                for batch in opened:
                    yield batch | {"label": labels[batch["label"]]}

    eval_step = make_eval_step(model.spec, **inference.options)
    expected = sum(map(len, chosen))
    try:
        values = evaluate(
            eval_step, inference.variables, batches(), mesh=inference.mesh, expected=expected
        )
    except BadExample as e:
        raise RunError(f"{e}") from e
    split = "all" if whole else pair[1].split
    return {"folder": str(folder), "data": name, "split": split, "labels": how, **values}


def label_map(data: Sequence[str], network: Sequence[str]) -> tuple[np.ndarray, str]:
    """From the labels of data to those of a network.

    Args:
      data: the names of the classes that the data has.
      network: those that the network has.

    Returns:
      int32 [len(data)] and "by name"; or "by order", if there are as many and none has the name
      of one there.

    Raises:
      ValueError: they do not fit; the message names classes.
    """
    count = len(data)
    if tuple(data) == tuple(network):
        return np.arange(count, dtype=np.int32), "by name"
    place = {name: i for i, name in enumerate(network)}
    missing = [name for name in data if name not in place]
    if not missing:
        twice = [name for name in data if list(network).count(name) > 1]
        if twice:
            raise ValueError(f"the network has several classes named {twice[0]!r}")
        return np.array([place[name] for name in data], np.int32), "by name"
    if len(missing) == count == len(network):
        return np.arange(count, dtype=np.int32), "by order"
    raise ValueError(
        f"the data has {count} classes, the network {len(network)}, which has no class "
        f"{missing[0]!r} ({len(missing)} such); it has {', '.join(map(repr, network[:3]))}, ..."
    )


# Evaluating a checkpoint of an existing run again.


def reevaluate(run: Path, *, step: int | str | None = None, weights: str = "auto") -> dict:
    """Evaluates on every held-out example exactly once.

    Args:
      run: the run folder; it is only read.
      step: which checkpoint; None for the newest, "best" for the best.
      weights: "ema" or "raw"; "auto" takes the average if the run keeps one.

    Returns:
      {"run", "step", "weights", "split", "count", "loss", "top1", maybe "top5"}.

    Raises:
      UsageError: no run folder, or no average in it.
      RunError: no such checkpoint, or it cannot be read.
    """
    experiment = make_experiment(read_config(run), run)
    average = is_averaged(run, experiment.config, weights)
    checkpoints = Checkpoints(run, read_only=True)
    try:
        step = checkpoints.find(step)
        state, _ = checkpoints.restore(step, experiment.abstract_state())
    finally:
        checkpoints.close()
    try:
        values = experiment.evaluate(state.ema if average else state.variables)
    except BadExample as e:
        raise RunError(f"{e}") from e
    return {
        "run": str(run),
        "step": step,
        "weights": "ema" if average else "raw",
        "split": experiment.eval_source.split,
        **values,
    }
