"""The update: forward, backward, optimizer and moving average in one jitted, donated step."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from mbv3_jax.arch.spec import NetSpec
from mbv3_jax.nn import functional
from mbv3_jax.nn.modules import Compute
from mbv3_jax.train.distillation import Teaching
from mbv3_jax.train.losses import Loss, correct, cross_entropy, label_accuracy
from mbv3_jax.train.schedules import Schedule
from mbv3_jax.train.sharding import batch_sharded, replicated, spread
from mbv3_jax.train.state import (
    PROJECTIONS,
    STEP_STREAM,
    HintedState,
    TrainState,
    average_decay,
    mean_decay,
    update_average,
)

Preprocess = Callable[[dict, jax.Array], tuple[jax.Array, jax.Array]]
TrainStep = Callable[[TrainState, dict], tuple[TrainState, dict]]


def make_train_step(
    spec: NetSpec,
    tx: optax.GradientTransformation,
    schedule: Schedule,
    *,
    loss: Loss = cross_entropy,
    preprocess: Preprocess,
    mesh: Mesh,
    seed: int | Sequence[int],
    compute: Compute = Compute(),  # noqa: B008 (frozen)
    ema_decay: float | None = None,
    average_from: int | None = None,
    accum_steps: int = 1,
    frozen: tuple[str, ...] = (),
    shard_optimizer: bool = False,
    teaching: Teaching | None = None,
    multi_label: bool = False,
) -> TrainStep:
    """Builds the jitted update.

    All randomness of step t follows from (seed, t). With `accum_steps` the batch is cut into
    that many parts, whose gradients are averaged before one update; BatchNorm then sees one part
    at a time. Parts are strided, so that they are the same on any number of devices.

    Args:
      spec: the network.
      tx: the optimizer; `schedule` is its learning rate, here for the metrics.
      loss: logits [batch, classes] and labels -> the loss of each example, see `losses.LOSSES`.
      preprocess: (batch, key) -> normalised images [batch, height, width, channels] and labels
        [batch] or [batch, classes].
      mesh: from `sharding.make_mesh`.
      seed: of the run: an input of the program, which is the same for all seeds. With a sequence,
        as many runs are trained at once: state, batch and metrics have a first axis over them.
      compute: types and forms of computation.
      ema_decay: of the moving average; None for no such average.
      average_from: the number of updates before the mean over all later ones begins, see
        `state.mean_decay`; None for no such mean. Without either average `TrainState.ema` is None.
      accum_steps: into how many parts a batch is cut.
      frozen: stages for which no gradient is computed; `tx` must leave them as they are, see
        `finetune.scale_rates`.
      shard_optimizer: whether every device keeps and updates only a part of the optimizer's state
        and of the average, see `sharding.spread`.
      teaching: the teacher that the network also learns from; None for none. All seeds have one.
      multi_label: whether an image has several labels, which are decided separately.

    Returns:
      step(state, batch) -> (state, metrics), a `functools.partial` of the jitted function
      (seed, variables of the teacher or None, state, batch). `state` is donated: its buffers are
      reused. The batch is {"image": uint8 [batch, height, width, channels], "label": int32
      [batch]}. Metrics are float32 scalars of this step: loss, top1 (a fraction, of the training
      batch; with `multi_label` label_accuracy), lr, and the norms of gradient, update and
      parameters; with a teacher also label_loss and teacher_loss, of which loss is the weighted
      sum, and teacher_top1; with hints also feature_loss.
    """

    accuracy = "label_accuracy" if multi_label else "top1"

    hints = teaching.hints if teaching else None

    def answers_of(teacher, images):
        # Before the gradient is taken, so that nothing of the teacher is kept for it.
        return teaching.answers(teacher, images) if teaching else (None, {})

    def loss_of(trained, batch_stats, images, labels, answers, key):
        params = {stage: x for stage, x in trained.items() if stage != PROJECTIONS}
        params |= {stage: jax.lax.stop_gradient(params[stage]) for stage in frozen}
        variables = {"params": params, "batch_stats": batch_stats}
        stages = hints.of_student if hints else ()
        logits, maps, batch_stats = functional.apply_with_maps(
            spec, variables, images, stages=stages, train=True, key=key, compute=compute
        )
        mean_loss = label_loss = jnp.mean(loss(logits, labels))
        right = label_accuracy(logits, labels) if multi_label else correct(logits, labels, 1)
        metrics = {accuracy: jnp.mean(right)}
        if teaching:
            teacher_logits, teacher_maps = answers
            mean_loss, teacher_loss = teaching.mixed(label_loss, logits, teacher_logits)
            metrics |= {
                "label_loss": label_loss,
                "teacher_loss": teacher_loss,
                "teacher_top1": jnp.mean(correct(teacher_logits, labels, 1)),
            }
        if hints:
            feature_loss = hints.loss(trained[PROJECTIONS], maps, teacher_maps)
            mean_loss += hints.weight * feature_loss
            metrics["feature_loss"] = feature_loss
        return mean_loss, (batch_stats, {"loss": mean_loss, **metrics})

    gradient_of = jax.value_and_grad(loss_of, has_aux=True)

    def accumulate(trained, batch_stats, images, labels, teacher, key):
        if accum_steps == 1:
            answers = answers_of(teacher, images)
            (_, aux), grads = gradient_of(trained, batch_stats, images, labels, answers, key)
            return *aux, grads

        def parts(x):
            x = x.reshape(x.shape[0] // accum_steps, accum_steps, *x.shape[1:]).swapaxes(0, 1)
            return jax.lax.with_sharding_constraint(x, batch_sharded(mesh, axis=1))

        def body(carry, part):
            sums, batch_stats = carry
            number, images, labels = part
            part_key = jax.random.fold_in(key, number)
            answers = answers_of(teacher, images)
            (_, (batch_stats, metrics)), grads = gradient_of(
                trained, batch_stats, images, labels, answers, part_key
            )
            return (jax.tree.map(jnp.add, sums, (metrics, grads)), batch_stats), None

        names: tuple[str, ...] = ("loss", accuracy)
        if teaching:
            names += ("label_loss", "teacher_loss", "teacher_top1")
        if hints:
            names += ("feature_loss",)
        zeros = dict.fromkeys(names, 0.0), jax.tree.map(jnp.zeros_like, trained)
        numbers = jnp.arange(accum_steps)
        (sums, batch_stats), _ = jax.lax.scan(
            body, (zeros, batch_stats), (numbers, parts(images), parts(labels))
        )
        metrics, grads = jax.tree.map(lambda x: x / accum_steps, sums)
        return batch_stats, metrics, grads

    # Joining the parts of a spread tree would move them between devices.
    norm = optax.tree.norm if shard_optimizer else _norm
    whole: Any = replicated(mesh)
    split = batch_sharded(mesh)
    shapes = functional.shapes(spec)
    state_shardings = TrainState(whole, whole, whole, whole)
    if shard_optimizer:
        projections = {PROJECTIONS: jax.eval_shape(hints.init, jax.random.key(0))} if hints else {}
        parts_of = jax.eval_shape(tx.init, shapes["params"] | projections)
        averages = ema_decay is not None or average_from is not None
        average_of = spread(shapes, mesh) if averages else whole
        state_shardings = TrainState(whole, whole, spread(parts_of, mesh), average_of)
    if hints:
        state_shardings = HintedState(**vars(state_shardings), projections=whole)

    def step(
        seed: jax.Array, teacher: Any, state: TrainState, batch: dict
    ) -> tuple[TrainState, dict]:
        key = jax.random.fold_in(jax.random.key(seed), STEP_STREAM)
        key_data, key_net = jax.random.split(jax.random.fold_in(key, state.step))
        images, labels = preprocess(batch, key_data)
        trained = state.trained
        batch_stats, metrics, grads = accumulate(
            trained, state.variables["batch_stats"], images, labels, teacher, key_net
        )
        if shard_optimizer:
            constrain = jax.lax.with_sharding_constraint
            # Replicated first, or else the parts would spread back into the network; the barrier
            # keeps the two constraints from being merged into one.
            grads, batch_stats = constrain((grads, batch_stats), whole)
            grads = jax.lax.optimization_barrier(grads)
            grads = constrain(grads, spread(grads, mesh))
        updates, opt_state = tx.update(grads, state.opt_state, trained)
        if shard_optimizer:
            updates = constrain(updates, spread(updates, mesh))
        params = optax.apply_updates(trained, updates)
        changed = {"projections": params.pop(PROJECTIONS)} if hints else {}
        variables = {"params": params, "batch_stats": batch_stats}
        average = state.ema
        if ema_decay is not None:
            average = update_average(state.ema, variables, average_decay(ema_decay, state.step))
        elif average_from is not None:
            average = update_average(state.ema, variables, mean_decay(average_from, state.step))
        metrics |= {
            "lr": schedule(state.step),
            "grad_norm": norm(grads),
            "update_norm": norm(updates),
            "param_norm": norm(params),
        }
        changed |= {"variables": variables, "opt_state": opt_state, "ema": average}
        return dataclasses.replace(state, step=state.step + 1, **changed), metrics

    if isinstance(seed, Sequence):
        step, split = jax.vmap(step, in_axes=(0, None, 0, 0)), batch_sharded(mesh, axis=1)
    jitted = jax.jit(
        step,
        donate_argnums=2,
        in_shardings=(whole, whole, state_shardings, split),
        out_shardings=(state_shardings, whole),
    )
    seeds, teacher = jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(whole, np.asarray(x)),
        (np.asarray(seed, np.uint32), teaching.variables if teaching else None),
    )
    return functools.partial(jitted, seeds, teacher)


SMALL = 4096  # values: a copy of so many costs less than a program of their own


def _norm(tree: Any) -> jax.Array:
    """The Euclidean norm over all arrays of a tree, float32.

    XLA writes a program for the sum of each array. Of a network's hundred small arrays these took
    a sixth of the time to compile a step (benchmarks/RESULTS.md), so they are joined first.
    """
    leaves = jax.tree.leaves(tree)
    small = [x.ravel() for x in leaves if x.size <= SMALL]
    large = [x for x in leaves if x.size > SMALL]
    joined = [jnp.concatenate(small)] if small else []
    return optax.tree.norm([*joined, *large])
