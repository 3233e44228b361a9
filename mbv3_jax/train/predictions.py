"""predictions.npz of a run folder: what a run's last weights say of every held-out image.

step               the checkpoint
label              int32 [N], -1 where an image could not be read
prediction         int32 [N]
probability        float32 [N], of the prediction
label_probability  float32 [N], of the label
path               [N] where the image lies, or what number it has
mistakes           int64 [M] which images are the worst mistakes, the worst first
thumbnails         uint8 [M, S, S, 3] of the mistakes, as the network saw them, made small
"""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from mbv3_jax.nn import functional
from mbv3_jax.train import distributed, predict
from mbv3_jax.train.experiment import Experiment

FILE = "predictions.npz"
MISTAKES = 24
THUMBNAIL = 112  # pixels at most


def save(
    run_folder: Path,
    experiment: Experiment,
    variables: functional.Variables,
    *,
    step: int,
    between: Callable = iter,
) -> None:
    """Predicts every held-out image and writes the file, whole or not at all.

    Args:
      run_folder: where to.
      experiment: the run.
      variables: its weights.
      step: how long they were trained.
      between: wraps the batches.
    """
    predict_step = predict.make_predict_step(
        experiment.spec,
        preprocess=experiment.eval_preprocess,
        mesh=experiment.mesh,
        compute=experiment.compute,
        top=1,
    )
    batches, parts = experiment.eval_batches(), []
    try:
        parts += predict.run(predict_step, variables, between(batches), mesh=experiment.mesh)
    finally:
        batches.close()
    if not distributed.is_first():
        return
    source = experiment.eval_source
    joined = {k: np.concatenate([p[k] for p in parts])[: len(source)] for k in parts[0]}
    read = joined["mask"] > 0
    values = {
        "step": np.int64(step),
        "label": np.where(read, joined["label"], -1).astype(np.int32),
        "prediction": joined["classes"][:, 0].astype(np.int32),
        "probability": joined["probabilities"][:, 0],
        "label_probability": joined["label_probability"],
        "path": np.array([source.where(i) for i in range(len(source))]),
    }
    worst = worst_mistakes(values, MISTAKES)
    stride = -(-source.resolution // THUMBNAIL)
    thumbnails = [source[int(i)]["image"][::stride, ::stride] for i in worst]
    side = -(-source.resolution // stride)
    values |= {
        "mistakes": worst,
        "thumbnails": np.array(thumbnails, np.uint8).reshape(-1, side, side, 3),
    }
    temporary = run_folder / "predictions.tmp"
    with temporary.open("wb") as file:
        np.savez_compressed(file, **values)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(run_folder / FILE)


def worst_mistakes(values: dict[str, np.ndarray], count: int) -> np.ndarray:
    """The images whose label was thought least probable among those predicted wrongly."""
    wrong = np.flatnonzero((values["label"] >= 0) & (values["label"] != values["prediction"]))
    order = np.argsort(values["label_probability"][wrong], kind="stable")
    return wrong[order[:count]]
