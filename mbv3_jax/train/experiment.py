"""An experiment in three steps: a plan, the data that it names, and the programs that it runs.

    plan = read_plan(config)                     # plan.py: typed and checked, nothing opened
    data = open_data(plan)                       # sources.py: classes, durations in steps
    experiment = compile_experiment(plan, data)  # mesh, optimizer, jitted steps, abstract state

Each step is a function of its arguments and changes nothing. Programs that do not train stop
earlier: a summary of the network needs only a plan, an export also the data, and
`compile_evaluation` leaves out everything that only training needs.
"""

import collections
import dataclasses
import functools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from mbv3_jax.arch.spec import NetSpec
from mbv3_jax.core.errors import UsageError
from mbv3_jax.data import augment, loader
from mbv3_jax.data.source import Source
from mbv3_jax.nn import functional
from mbv3_jax.nn.modules import Compute
from mbv3_jax.train.distillation import Teaching
from mbv3_jax.train.evaluate import EvalStep, evaluate, make_eval_step
from mbv3_jax.train.finetune import frozen_stages, rate_factors, scale_rates
from mbv3_jax.train.hierarchy import Hierarchy, read_hierarchy
from mbv3_jax.train.losses import Loss, class_weights, make_loss
from mbv3_jax.train.optimizers import make_optimizer
from mbv3_jax.train.plan import Plan, read_plan
from mbv3_jax.train.schedules import Schedule, make_schedule
from mbv3_jax.train.sharding import batch_sharded, check_divides, make_mesh, replicated, spread
from mbv3_jax.train.sources import Data, open_data
from mbv3_jax.train.state import TrainState, average_start, create_state
from mbv3_jax.train.step import Preprocess, TrainStep, make_train_step
from mbv3_jax.train.teacher import read_teaching


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A plan and its data with the programs that evaluate.

    spec: the network, as `data.spec`.
    eval_preprocess: uint8 images -> the input of the network.
    eval_step: see `evaluate.make_eval_step`.
    """

    plan: Plan
    data: Data
    spec: NetSpec
    mesh: Mesh
    compute: Compute
    eval_preprocess: Callable[[jax.Array], jax.Array]
    eval_step: EvalStep

    def eval_batches(self, source: Source | None = None) -> loader.Batches:
        """This process's batches of the held-out or other examples; see `loader.eval_batches`."""
        return loader.eval_batches(
            source or self.data.held_out,
            batch_size=self.plan.eval_batch_size,
            **_loading(self.plan),
        )

    def evaluate(
        self,
        variables: functional.Variables,
        wrap_batches: Callable[[Iterable[dict]], Iterable[dict]] = iter,
        source: Source | None = None,
    ) -> dict[str, Any]:
        """Evaluates on every held-out example exactly once; see `evaluate.evaluate`.

        Args:
          variables: of the network.
          wrap_batches: called with the batches, for instance `Interrupt.checked`.
          source: other examples than the held-out ones.
        """
        if self.plan.compute.shard_optimizer:  # the average may be in parts
            variables = jax.jit(lambda x: x, out_shardings=replicated(self.mesh))(variables)
        source = source or self.data.held_out
        batches = self.eval_batches(source)
        try:
            return evaluate(
                self.eval_step,
                variables,
                wrap_batches(batches),
                mesh=self.mesh,
                expected=len(source),
            )
        finally:
            batches.close()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment(Evaluation):
    """A plan and its data with the programs that train and evaluate.

    frozen: the stages that are not trained.
    tx: the optimizer.
    schedule: its learning rate.
    preprocess: for training; see `augment.make_preprocess`.
    teaching: the teacher; None for none.
    hierarchy: of the classes, if the loss has one; None for none.
    train_step: see `step.make_train_step`; of all seeds at once where the plan has several.
    """

    frozen: tuple[str, ...]
    tx: optax.GradientTransformation
    schedule: Schedule
    preprocess: Preprocess
    teaching: Teaching | None
    hierarchy: Hierarchy | None
    train_step: TrainStep

    def with_network(self, spec: NetSpec, tx: optax.GradientTransformation) -> "Experiment":
        """The same data and devices with another network and optimizer, programs built again."""
        return _assemble(
            self.plan,
            self.data,
            self.mesh,
            self.compute,
            self.frozen,
            spec,
            tx,
            self.schedule,
            self.teaching,
        )

    def init_record(self) -> dict[str, Any] | None:
        """What init.json of the run folder holds, for a run that starts from trained weights."""
        if self.plan.warm_start is None:
            return None
        return self.plan.warm_start.record(self.spec, self.data.training.class_names)

    def create_state(self, seed: int | None = None) -> TrainState:
        """The state before the first step, on the mesh.

        Args:
          seed: of the run; None for that of the plan.

        Raises:
          UsageError, RunError: as `WarmStart.load`.
        """
        warm_start = self.plan.warm_start
        initial = warm_start.variables(self.spec) if warm_start else None
        create = jax.jit(self._create, out_shardings=self._shardings())
        return create(np.uint32(self.plan.seed if seed is None else seed), initial)

    def abstract_state(self) -> TrainState:
        """Shapes, types and placement of the state, to restore a checkpoint into."""
        return jax.tree.map(
            lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
            jax.eval_shape(self._create, np.uint32(0)),
            self._shardings(),
        )

    def _create(self, seed: jax.Array, initial: functional.Variables | None = None) -> TrainState:
        with_ema = self.plan.keeps_average
        hints = self.teaching.hints if self.teaching else None
        return create_state(
            self.spec, self.tx, seed=seed, with_ema=with_ema, initial=initial, hints=hints
        )

    def _shardings(self) -> Any:
        """The sharding of every array of the state."""
        shapes = jax.eval_shape(self._create, np.uint32(0))
        shardings = jax.tree.map(lambda _: replicated(self.mesh), shapes)
        if not self.plan.compute.shard_optimizer:
            return shardings
        parts = {"opt_state": shapes.opt_state, "ema": shapes.ema}
        return dataclasses.replace(shardings, **spread(parts, self.mesh))

    def train_batches(
        self,
        start_step: int,
        *,
        stop_step: int | None = None,
        seed: int | None = None,
        source: Source | None = None,
        **options: Any,
    ) -> loader.Batches:
        """This process's training batches from a step on; see `loader.train_batches`.

        Args:
          start_step: how many steps have been trained.
          stop_step: how many are to be trained; None for those of the run.
          seed: of the order; None for that of the plan.
          source: what to read; None for the training examples.
          **options: of `loader.train_batches`.
        """
        return loader.train_batches(
            source or self.data.training,
            batch_size=self.plan.batch_size,
            seed=self.plan.seed if seed is None else seed,
            # Other examples than those of training may not know their labels.
            balanced=self.plan.data.balanced and source is None,
            repeats=self.plan.data.repeats if source is None else 1,
            start_step=start_step,
            stop_step=self.data.total_steps if stop_step is None else stop_step,
            **_loading(self.plan),
            **options,
        )


def _loading(plan: Plan) -> dict[str, Any]:
    """Options of the loader: who reads, and what to do with what cannot be read."""
    return {
        **plan.data.loading,
        "process_index": jax.process_index(),
        "process_count": jax.process_count(),
        "on_error": plan.data.on_error,
    }


def make_experiment(config: ConfigDict, run: Path | None = None) -> Experiment:
    """The three steps in one, before anything is written or trained.

    Args:
      config: the configuration.
      run: the run folder, which need not exist, for a run that starts from trained weights.

    Raises:
      RunError: the folder that the run starts from, or that of its teacher, is damaged.
      UsageError: a field of the configuration is wrong; the message names it, what it got and what
        was expected. Also if the data does not exist, with how to get it.
    """
    plan = read_plan(config, run)
    return compile_experiment(plan, open_data(plan))


def compile_evaluation(plan: Plan, data: Data, hierarchy: Hierarchy | None = None) -> Evaluation:
    """Builds what evaluates the network of a plan on its held-out examples.

    Args:
      plan: what the configuration says.
      data: its data.
      hierarchy: of the classes, see `hierarchy.stored_hierarchy`; None for none.

    Raises:
      UsageError: the devices do not divide the batch, or an option is wrong.
    """
    mesh = make_mesh()
    devices = mesh.devices.size
    try:
        check_divides("eval_batch_size", plan.eval_batch_size, devices)
        compute = _compute(plan, data.spec, frozen=(), devices=devices)
        _, eval_preprocess = _preprocessing(plan, data.spec)
    except ValueError as e:
        raise UsageError(f"config: {e}") from e
    eval_step = make_eval_step(
        data.spec,
        preprocess=eval_preprocess,
        mesh=mesh,
        compute=compute,
        multi_label=plan.multi_label,
        hierarchy=hierarchy,
    )
    return Evaluation(
        plan=plan,
        data=data,
        spec=data.spec,
        mesh=mesh,
        compute=compute,
        eval_preprocess=eval_preprocess,
        eval_step=eval_step,
    )


def compile_experiment(plan: Plan, data: Data) -> Experiment:
    """Builds the optimizer and the jitted steps, and traces the training step once.

    Raises:
      UsageError: the devices do not divide a batch, an option of the optimizer, the schedule, a
        loss, the preprocessing or the loader is wrong, or the teacher is missing or has other
        classes than the data.
      RunError: the teacher is damaged.
    """
    try:
        return _compile_experiment(plan, data)
    except ValueError as e:
        raise UsageError(f"config: {e}") from e


def _compile_experiment(plan: Plan, data: Data) -> Experiment:
    mesh = make_mesh()
    devices = mesh.devices.size
    shares = collections.Counter(device.process_index for device in mesh.devices.flat)
    if len(set(shares.values())) > 1:
        raise ValueError(
            f"the processes have unequal numbers of devices: {sorted(shares.values())}; each gets "
            "an equal part of a batch"
        )
    if plan.early_stop and plan.average_epochs is not None:
        raise ValueError(
            f"average_epochs: got {plan.average_epochs}, the last epochs of the whole run, which "
            f"early_stop.patience={plan.early_stop.patience} may end before; one of them must be "
            "None (ema_decay averages from the first step)"
        )
    check_divides("batch_size", plan.batch_size, devices, plan.accum_steps)
    check_divides("eval_batch_size", plan.eval_batch_size, devices)
    frozen = frozen_stages(data.spec, plan.finetune.frozen)
    compute = _compute(plan, data.spec, frozen=frozen, devices=devices)
    tx, schedule = _make_optimizer(plan, data, frozen)
    teaching = read_teaching(plan, data.spec, data.training.class_names)
    experiment = _assemble(plan, data, mesh, compute, frozen, data.spec, tx, schedule, teaching)
    experiment.train_batches(0).close()  # checks the seed and the options of the loader
    # Tracing finds what remains: an optimizer's rule that misses a parameter, a smoothing or an
    # average out of range, a crop that does not fit.
    single = data.training.label_kind == "single"
    labels = (plan.batch_size,) if single else (plan.batch_size, data.spec.num_classes)
    place = functools.partial(jax.ShapeDtypeStruct, sharding=batch_sharded(mesh))
    batch = {
        "image": place((plan.batch_size, *data.spec.input_shape), "uint8"),
        "label": place(labels, "int32" if len(labels) == 1 else "float32"),
    }
    arguments = experiment.abstract_state(), batch
    if runs := len(plan.seeds):
        arguments = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((runs, *x.shape), x.dtype), arguments
        )
    jax.eval_shape(experiment.train_step, *arguments)
    return experiment


def _compute(plan: Plan, spec: NetSpec, *, frozen: tuple[str, ...], devices: int) -> Compute:
    return Compute(
        dtype=plan.compute.dtype,
        depthwise=plan.compute.depthwise,
        bn_groups=devices if plan.compute.batch_norm == "per_device" else 1,
        frozen_bn=tuple(s for s in spec.strides() if plan.finetune.freeze_bn or s in frozen),
    )


def _preprocessing(plan: Plan, spec: NetSpec) -> tuple[Preprocess, Callable[..., jax.Array]]:
    return augment.make_preprocess(num_classes=spec.num_classes, **plan.augment)


def _make_optimizer(
    plan: Plan, data: Data, frozen: tuple[str, ...]
) -> tuple[optax.GradientTransformation, Schedule]:
    schedule = make_schedule(
        plan.schedule.name,
        total_steps=data.total_steps,
        steps_per_epoch=data.steps_per_epoch,
        warmup_steps=data.warmup_steps,
        seed=plan.seed,
        **plan.schedule.options,
    )
    tx = make_optimizer(plan.optimizer.name, schedule, **plan.optimizer.options)
    factors = functools.partial(
        rate_factors,
        backbone=plan.finetune.backbone_lr_factor,
        patterns=plan.finetune.lr_factors,
        frozen=frozen,
    )
    params = functional.shapes(data.spec)["params"]
    if any(factor != 1 for factor in jax.tree.leaves(factors(params))):
        tx = scale_rates(tx, factors)
    return tx, schedule


def training_loss(plan: Plan, data: Data, hierarchy: Hierarchy | None) -> Loss:
    """The loss that a plan trains with; raises ValueError where an option of it is wrong."""
    counts, num_classes = data.training.counts(), data.training.num_classes
    options = dict(plan.loss.options)
    if hierarchy:
        options["hierarchy"] = hierarchy
    return make_loss(
        plan.loss.name,
        label_smoothing=plan.label_smoothing,
        class_weights=class_weights(plan.class_weights, num_classes=num_classes, counts=counts),
        **options,
    )


def _hierarchy(plan: Plan, data: Data) -> Hierarchy | None:
    """The classes' hierarchy, if the loss has one; ValueError if its file is wrong."""
    if plan.loss.name != "semantic_softmax" or not (file := plan.loss.options.get("hierarchy")):
        return None
    return read_hierarchy(file, data.training.class_names)


def _assemble(
    plan: Plan,
    data: Data,
    mesh: Mesh,
    compute: Compute,
    frozen: tuple[str, ...],
    spec: NetSpec,
    tx: optax.GradientTransformation,
    schedule: Schedule,
    teaching: Teaching | None,
) -> Experiment:
    preprocess, eval_preprocess = _preprocessing(plan, spec)
    options: dict[str, Any] = {"compute": compute, "multi_label": plan.multi_label}
    hierarchy = _hierarchy(plan, data)
    train_step = make_train_step(
        spec,
        tx,
        schedule,
        loss=training_loss(plan, data, hierarchy),
        preprocess=preprocess,
        mesh=mesh,
        seed=plan.seeds or plan.seed,
        ema_decay=plan.ema_decay,
        average_from=average_start(plan.average_epochs, data.total_steps, data.steps_per_epoch),
        accum_steps=plan.accum_steps,
        frozen=frozen,
        shard_optimizer=plan.compute.shard_optimizer,
        teaching=teaching,
        **options,
    )
    return Experiment(
        plan=plan,
        data=data,
        spec=spec,
        mesh=mesh,
        compute=compute,
        frozen=frozen,
        tx=tx,
        schedule=schedule,
        preprocess=preprocess,
        eval_preprocess=eval_preprocess,
        teaching=teaching,
        hierarchy=hierarchy,
        train_step=train_step,
        eval_step=make_eval_step(
            spec,
            preprocess=eval_preprocess,
            mesh=mesh,
            hierarchy=hierarchy,
            **options,
        ),
    )
