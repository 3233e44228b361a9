"""Evaluating a trained network again: on the data of its run, or on any other."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mbv3_jax.arch.spec import NetSpec
from mbv3_jax.core.checks import Resolution
from mbv3_jax.core.errors import RunError, UsageError, counted
from mbv3_jax.data import loader
from mbv3_jax.data.source import BadExample, crop_for, find_entry, open_pair
from mbv3_jax.nn import functional
from mbv3_jax.run.checkpoint import Checkpoints, is_averaged
from mbv3_jax.run.folder import read_config
from mbv3_jax.train.evaluate import evaluate, make_eval_step
from mbv3_jax.train.experiment import compile_evaluation
from mbv3_jax.train.hierarchy import stored_hierarchy
from mbv3_jax.train.inference import Inference
from mbv3_jax.train.plan import LOADER_OPTIONS, read_plan
from mbv3_jax.train.sharding import replicated
from mbv3_jax.train.sources import open_data


def evaluate_on(
    folder: Path,
    data: Mapping[str, Any],
    *,
    step: int | str | None = None,
    weights: str = "auto",
    batch: int = 32,
    resolution: Resolution | None = None,
    report: Callable[[str], None] = lambda note: None,
) -> dict:
    """Evaluates a trained network on any data.

    The view and the normalisation are those of the folder. Labels are matched by the names of the
    classes or, if there are as many and no name is the same, by their order.

    Args:
      folder: a run folder or an import folder.
      data: `config.data`, or a part of it. All images of a folder of class folders without splits
        are evaluated, unless "split_fraction" is given.
      step, weights, batch: as for `Inference`.
      resolution: of the images in pixels, see `NetSpec`; None for that of the network.
      report: called with each note on the network and on the data, for instance on files that are
        not read.

    Returns:
      {"folder", "data", "split", "labels": "by name" or "by order"}, "resolution" if it was given,
      the values of `evaluate.evaluate`, and "class_names", by label.

    Raises:
      UsageError: the data does not exist, its classes do not match those of the network, or the
        resolution is too small.
      RunError: an image cannot be read.
    """
    inference = Inference(folder, step=step, weights=weights, batch=batch)
    model = inference.model
    model.require_head(folder)
    spec = _at(model.spec, resolution)
    options = {key: value for key, value in data.items() if value is not None}
    for name in ("balanced", "repeats"):  # of training
        options.pop(name, None)
    loading = {key: options.pop(key) for key in LOADER_OPTIONS if key in options}
    name, on_error = options.pop("name"), options.get("on_error", "raise")
    crop = {k: options.pop(k) for k in ("area", "ratio", *model.preprocessing.crop) if k in options}
    try:
        crop = crop_for(name, model.preprocessing.crop) | crop
        options |= {"resolution": spec.resolution, "channels": spec.in_channels}
        if model.multi_label and "labels" in find_entry(name)[0].options:
            options.setdefault("labels", "multi")
        # Of a folder with one image in each class none is held out, and all are evaluated.
        pair = open_pair(name, crop=crop, may_be_empty=True, **options)
        labels, matched = label_map(pair[1].class_names, model.class_names)
    except (ValueError, FileNotFoundError) as e:
        raise UsageError(f"{e}") from e
    if model.multi_label != (pair[1].label_kind == "multi"):
        raise UsageError(
            f"{folder}: a network of {'several labels' if model.multi_label else 'one label'} an "
            f"image, which the data {name} does not have"
        )
    everything = pair[1].divided and "split_fraction" not in options
    sources = [source for source in (pair if everything else pair[1:]) if len(source)]
    if not sources:
        raise UsageError(f"{name}: no image to evaluate on in its split {pair[1].split}")
    notes = pair[0].notes if everything else (*pair[0].notes, *pair[1].notes)
    for note in filter(None, (model.sigmoid_note, *notes)):
        report(note)
    if matched == "by order":
        pairs = list(zip(pair[1].class_names, model.class_names, strict=True))[:3]
        report(
            "no class of the data has the name of one of the network; they are paired by their "
            f"order: {', '.join(f'{ours} with {theirs}' for ours, theirs in pairs)}"
            f"{', ...' if len(model.class_names) > len(pairs) else ''}"
        )

    def batches() -> Iterator[dict]:
        for source in sources:
            opened = loader.eval_batches(
                source,
                batch_size=inference.batch,
                on_error=on_error,
                process_index=jax.process_index(),
                process_count=jax.process_count(),
                **({"num_workers": None} | loading),
            )
            with contextlib.closing(opened):
                for batch in opened:
                    yield batch | {"label": map_labels(batch["label"], labels, spec.num_classes)}

    eval_step = make_eval_step(
        spec,
        **inference.options,
        multi_label=model.multi_label,
        hierarchy=stored_hierarchy(folder, model.class_names),
    )
    expected = sum(map(len, sources))
    try:
        values = evaluate(
            eval_step, inference.variables, batches(), mesh=inference.mesh, expected=expected
        )
    except BadExample as e:
        raise RunError(f"{e}") from e
    split = "all" if everything else pair[1].split
    origin = {"folder": str(folder), "data": name, "split": split, "labels": matched}
    return origin | _noted(resolution) | values | {"class_names": list(model.class_names)}


def map_labels(labels: np.ndarray, mapping: np.ndarray, classes: int) -> np.ndarray:
    """The labels of data as those of a network; `mapping` is from `label_map`."""
    if labels.ndim == 1:
        return mapping[labels]
    mapped = np.zeros((len(labels), classes), labels.dtype)
    mapped[:, mapping] = labels
    return mapped


def label_map(data: Sequence[str], network: Sequence[str]) -> tuple[np.ndarray, str]:
    """Maps the labels of data to those of a network.

    Args:
      data: the names of the classes of the data.
      network: the names of the classes of the network.

    Returns:
      The label of the network for each label of the data, int32 [len(data)], and "by name"; or
      "by order", if there are as many and no name is the same.

    Raises:
      ValueError: they do not match; the message names classes.
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
        f"the data has {counted(count, 'class')}, the network {len(network)}, which has no class "
        f"{missing[0]!r} ({len(missing)} such); it has {', '.join(map(repr, network[:3]))}, ..."
    )


def reevaluate(
    run: Path,
    *,
    step: int | str | None = None,
    weights: str = "auto",
    resolution: Resolution | None = None,
) -> dict:
    """Evaluates a run on every held-out example exactly once.

    Args:
      run: the run folder; it is only read.
      step: which checkpoint; None for the newest, "best" for the best.
      weights: "ema" or "raw"; "auto" takes the average if the run keeps one.
      resolution: of the images in pixels, see `NetSpec`; None for that of the run.

    Returns:
      {"run", "step", "weights", "split"}, "resolution" if it was given, the values of
      `evaluate.evaluate`, "class_names", by label, and, if the data has a third split, "test":
      {"split"} and its values.

    Raises:
      UsageError: it is not a run folder, the run keeps no average, or the resolution is too small.
      RunError: the checkpoint does not exist, or cannot be read.
    """
    config = read_config(run)
    plan = read_plan(config, run)
    plan = dataclasses.replace(plan, spec=_at(plan.spec, resolution))
    data = open_data(plan)
    hierarchy = stored_hierarchy(run, data.held_out.class_names)
    evaluation = compile_evaluation(plan, data, hierarchy)
    averaged = is_averaged(run, config, weights)
    checkpoints = Checkpoints(run, read_only=True)
    try:
        step = checkpoints.find(step)
        shapes = functional.shapes(evaluation.spec)
        arrays = checkpoints.variables(step, shapes, averaged=averaged)
    finally:
        checkpoints.close()
    try:
        variables = jax.device_put(arrays, replicated(evaluation.mesh))
        values = evaluation.evaluate(variables)
        tested = {}
        if test := evaluation.data.held_out.test:
            tested["test"] = {
                "split": test.split,
                **evaluation.evaluate(variables, source=test),
            }
    except BadExample as e:
        raise RunError(f"{e}") from e
    return {
        "run": str(run),
        "step": step,
        "weights": "ema" if averaged else "raw",
        "split": evaluation.data.held_out.split,
        **_noted(resolution),
        **values,
        "class_names": list(evaluation.data.held_out.class_names),
        **tested,
    }


def _at(spec: NetSpec, resolution: Resolution | None) -> NetSpec:
    """The network for images of another size."""
    try:
        return spec if resolution is None else spec.replace(resolution=resolution)
    except ValueError as e:
        raise UsageError(f"{e}") from e


def _noted(resolution: Resolution | None) -> dict:
    return {} if resolution is None else {"resolution": resolution}
