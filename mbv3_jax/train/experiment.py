"""From a configuration to the parts of a run: network, data, optimizer, steps, durations."""

import collections
import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from mbv3_jax.arch.spec import NetSpec, QuantSpec
from mbv3_jax.core.checks import check_whole, choose, flag
from mbv3_jax.core.errors import UsageError
from mbv3_jax.data import augment, loader
from mbv3_jax.data.source import Source, crop_for, open_pair
from mbv3_jax.nn import functional
from mbv3_jax.nn.modules import Compute
from mbv3_jax.run.config import spec_of, to_steps
from mbv3_jax.run.model import Preprocessing, preprocessing_of_config
from mbv3_jax.train import schedules, state, warm_start
from mbv3_jax.train.evaluate import evaluate, make_eval_step
from mbv3_jax.train.optimizer import frozen_stages, make_optimizer, rate_factors, scale_rates
from mbv3_jax.train.schedules import Schedule
from mbv3_jax.train.sharding import make_mesh, replicated, spread
from mbv3_jax.train.step import make_train_step
from mbv3_jax.train.warm_start import WarmStart

BATCH_NORMS = ("cross_device", "per_device")
# Fields of config.data that are options of data.decode.decode_view, and of data.loader.
CROP_OPTIONS = ("area", "ratio", "interpolation", "crop_fraction", "central", "exif_rotate")
HOST_OPTIONS = ("num_workers", "num_threads", "prefetch_batches")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """The typed parts that a configuration describes. Durations are in steps."""

    config: ConfigDict
    spec: NetSpec
    preprocessing: Preprocessing
    start: WarmStart | None
    frozen: tuple[str, ...]
    compute: Compute
    mesh: Mesh
    train_source: Source
    eval_source: Source
    tx: optax.GradientTransformation
    schedule: Schedule
    total_steps: int
    eval_every: int
    checkpoint_every: int

    suffix: str = ""  # names the run in a line, where there are several: `seeds.py`
    batch_axis = 0  # of the examples

    def members(self, tree) -> list:
        """Takes apart what belongs to several runs; here there is one."""
        return [tree]

    @property
    def steps_per_epoch(self) -> float:
        """Training examples over batch size; need not be whole."""
        return len(self.train_source) / self.config.batch_size

    @functools.cached_property
    def preprocess(self):
        """See `augment.make_preprocess`: for training, and for evaluation."""
        options = self.config.augment.to_dict() | {"normalize": self.preprocessing.normalize}
        return augment.make_preprocess(num_classes=self.spec.num_classes, **options)

    @functools.cached_property
    def train_step(self):
        """See `step.make_train_step`."""
        return self.make_step(self.config.seed)

    def make_step(self, seed: int | Sequence[int]):
        """The training step of a seed, or of several at once."""
        return make_train_step(
            self.spec,
            self.tx,
            self.schedule,
            preprocess=self.preprocess[0],
            mesh=self.mesh,
            seed=seed,
            compute=self.compute,
            label_smoothing=self.config.label_smoothing,
            ema_decay=self.config.ema_decay,
            accum_steps=self.config.accum_steps,
            frozen=self.frozen,
            shard_optimizer=self.config.compute.shard_optimizer,
        )

    @property
    def eval_preprocess(self):
        """uint8 images -> the input of the network."""
        return self.preprocess[1]

    @functools.cached_property
    def eval_step(self):
        """See `evaluate.make_eval_step`."""
        return make_eval_step(
            self.spec, preprocess=self.eval_preprocess, mesh=self.mesh, compute=self.compute
        )

    def start_record(self) -> dict | None:
        """What init.json of the run folder holds, for a run that starts from trained weights."""
        if self.start is None or self.start.record:
            return self.start and self.start.record
        return warm_start.start_record(self.start, self.spec, self.train_source.class_names)

    def create_state(self) -> state.TrainState:
        """The state before the first step, on the mesh.

        Raises:
          UsageError, RunError: as `start.Start.load`.
        """
        initial = warm_start.start_variables(self.start, self.spec) if self.start else None
        create = jax.jit(self._create, out_shardings=self._placed)
        return create(np.uint32(self.config.seed), initial)

    def abstract_state(self) -> state.TrainState:
        """Shapes, types and placement of the state, to restore a checkpoint into."""
        return jax.tree.map(
            lambda x, placed: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=placed),
            jax.eval_shape(self._create, np.uint32(0)),
            self._placed,
        )

    @functools.cached_property
    def _placed(self) -> state.TrainState:
        """The sharding of every array of the state."""
        shapes = jax.eval_shape(self._create, np.uint32(0))
        placed = jax.tree.map(lambda _: replicated(self.mesh), shapes)
        if not self.config.compute.shard_optimizer:
            return placed
        parts = {"opt_state": shapes.opt_state, "ema": shapes.ema}
        return dataclasses.replace(placed, **spread(parts, self.mesh))

    def evaluate(self, variables, between=iter) -> dict[str, float]:
        """Evaluates on every held-out example, see `evaluate.evaluate`; `between` wraps the
        batches."""
        if self.config.compute.shard_optimizer:  # the average may be in parts
            variables = jax.jit(lambda x: x, out_shardings=replicated(self.mesh))(variables)
        batches = self.eval_batches()
        try:
            return evaluate(
                self.eval_step,
                variables,
                between(batches),
                mesh=self.mesh,
                expected=len(self.eval_source),
            )
        finally:
            batches.close()

    def _create(self, seed, initial=None) -> state.TrainState:
        with_ema = self.config.ema_decay is not None
        return state.create_state(self.spec, self.tx, seed=seed, with_ema=with_ema, initial=initial)

    def train_batches(self, start_step: int, **options):
        """This process's training batches from a step on; see `loader.train_batches`."""
        return loader.train_batches(
            self.train_source,
            batch_size=self.config.batch_size,
            seed=self.config.seed,
            start_step=start_step,
            stop_step=self.total_steps,
            **self._loading(),
            **options,
        )

    def eval_batches(self):
        """This process's evaluation batches; see `loader.eval_batches`."""
        batch_size = self.config.eval_batch_size
        return loader.eval_batches(self.eval_source, batch_size=batch_size, **self._loading())

    def _loading(self) -> dict:
        data = self.config.data
        return {
            "num_workers": data.num_workers,
            "num_threads": data.num_threads,
            "prefetch_batches": data.prefetch_batches,
            "process_index": jax.process_index(),
            "process_count": jax.process_count(),
            "on_error": data.on_error,
        }


def open_data(config: ConfigDict, start: WarmStart | None = None) -> tuple[NetSpec, Source, Source]:
    """Opens what to train on and to evaluate on, and the network with as many classes.

    Args:
      config: the configuration.
      start: of `start.read`.

    Raises:
      UsageError: as `make_experiment`.
    """
    spec = start.spec if start else spec_of(config)
    try:
        train_source, eval_source = _open_pair(config, spec.resolution, start)
    except (ValueError, FileNotFoundError) as e:
        raise UsageError(f"config: {e}") from e
    classes, wanted = train_source.num_classes, config.net.num_classes
    if wanted not in (None, classes):
        raise UsageError(
            f"config: net.num_classes: got {wanted}, but the data {config.data.name!r} "
            f"has {classes} classes; None follows the data"
        )
    return spec.replace(num_classes=classes), train_source, eval_source


def _open_pair(
    config: ConfigDict, resolution: int, start: WarmStart | None
) -> tuple[Source, Source]:
    data = config.data.to_dict()
    name, on_error = data.pop("name"), data.pop("on_error")
    crop = {key: data.pop(key) for key in CROP_OPTIONS}
    if start:
        crop |= crop_for(name, start.preprocessing.crop)
    for key in HOST_OPTIONS:
        data.pop(key)
    return open_pair(name, resolution=resolution, crop=crop, on_error=on_error, **data)


def make_experiment(config: ConfigDict, run: Path | None = None) -> Experiment:
    """Builds and checks everything a run needs, before anything is written or trained.

    Args:
      config: the configuration.
      run: the run folder, there or not, for a run that starts from trained weights.

    Raises:
      RunError: what it starts from is damaged.
      UsageError: a field of the configuration is wrong; the message names it, what it got and
        what would be right. Also where the data is not there, with how to get it.
    """
    start = warm_start.read_start(config, run)
    spec, *opened = open_data(config, start)
    try:
        return _make(config, start, spec, *opened)
    except (ValueError, FileNotFoundError) as e:
        raise UsageError(f"config: {e}") from e


def _make(
    config: ConfigDict,
    start: WarmStart | None,
    spec: NetSpec,
    train_source: Source,
    eval_source: Source,
) -> Experiment:
    check_whole("seed", config.seed, at_least=0)
    mesh = make_mesh()
    devices = mesh.devices.size
    shares = collections.Counter(device.process_index for device in mesh.devices.flat)
    if len(set(shares.values())) > 1:
        raise ValueError(
            f"the processes have unequal numbers of devices: {sorted(shares.values())}; each gets "
            "an equal part of a batch"
        )
    choose("compute.shard_optimizer", config.compute.shard_optimizer, (False, True))
    for field in ("batch_size", "eval_batch_size", "accum_steps", "log_every_steps"):
        check_whole(field, config[field], at_least=1)
    check_whole("keep_checkpoints", config.keep_checkpoints, at_least=1)
    for field in ("keep_best", "save_predictions"):
        flag(field, config[field])
    _check_divides("batch_size", config.batch_size, devices * config.accum_steps, devices, config)
    _check_divides("eval_batch_size", config.eval_batch_size, devices, devices, config)

    choose("compute.batch_norm", config.compute.batch_norm, BATCH_NORMS)
    options = config.finetune.to_dict()
    frozen = frozen_stages(spec, options["frozen"])
    freeze_bn = flag("finetune.freeze_bn", options["freeze_bn"])
    compute = Compute(
        dtype=config.compute.dtype,
        depthwise=config.compute.depthwise,
        bn_groups=devices if config.compute.batch_norm == "per_device" else 1,
        frozen_bn=tuple(s for s in spec.strides() if freeze_bn or s in frozen),
    )

    if spec.in_channels != 3:
        raise ValueError(f"net.in_channels: got {spec.in_channels}, but the images have 3")

    sizes = {"batch_size": config.batch_size, "train_examples": len(train_source)}

    def duration(name: str, group: ConfigDict, prefix: str = "") -> int:
        given = {unit: group[f"{name}_{unit}"] for unit in ("steps", "epochs", "examples")}
        return to_steps(prefix + name, **given, **sizes)

    total_steps = duration("total", config)
    if total_steps < 1:
        raise ValueError("total: the run has no step; give total_steps, _epochs or _examples")
    spec = spec.replace(quant=_quant(config, duration))

    schedule_options = config.schedule.to_dict()
    warmup_steps = duration("warmup", config.schedule, "schedule.")
    for unit in ("steps", "epochs", "examples"):
        schedule_options.pop(f"warmup_{unit}")
    schedule = schedules.make_schedule(
        schedule_options.pop("name"),
        total_steps=total_steps,
        steps_per_epoch=len(train_source) / config.batch_size,
        warmup_steps=warmup_steps,
        **schedule_options,
    )
    optimizer_options = config.optimizer.to_dict()
    tx = make_optimizer(optimizer_options.pop("name"), schedule, **optimizer_options)
    factors = functools.partial(
        rate_factors,
        backbone=options["backbone_lr_factor"],
        patterns=options["lr_factors"] or (),
        frozen=frozen,
    )
    if any(factor != 1 for factor in jax.tree.leaves(factors(functional.shapes(spec)["params"]))):
        tx = scale_rates(tx, factors)

    experiment = Experiment(
        config=config,
        spec=spec,
        preprocessing=start.preprocessing if start else preprocessing_of_config(config),
        start=start,
        frozen=frozen,
        compute=compute,
        mesh=mesh,
        train_source=train_source,
        eval_source=eval_source,
        tx=tx,
        schedule=schedule,
        total_steps=total_steps,
        eval_every=max(1, duration("eval_every", config)),
        checkpoint_every=max(1, duration("checkpoint_every", config)),
    )
    experiment.train_batches(0).close()  # holds the seed and the data options to be in range
    # Tracing finds what remains: an optimizer's rule that misses a parameter, a smoothing or an
    # average out of range, a crop that does not fit.
    images = jax.ShapeDtypeStruct(
        (config.batch_size, spec.resolution, spec.resolution, spec.in_channels), "uint8"
    )
    labels = jax.ShapeDtypeStruct((config.batch_size,), "int32")
    batch = {"image": images, "label": labels}
    jax.eval_shape(experiment.train_step, experiment.abstract_state(), batch)
    return experiment


def _quant(config: ConfigDict, duration: Callable[..., int]) -> QuantSpec | None:
    """What config.quant says, in batches that the network sees."""
    group = config.quant
    if not flag("quant.enabled", group.enabled):
        given = [k for k, v in group.items() if k.startswith(("delay", "freeze")) and v is not None]
        if given:
            raise ValueError(f"quant.{given[0]}: got {group[given[0]]}, but quant.enabled is False")
        return None
    choose("compute.dtype", config.compute.dtype, ("float32",))  # int8 is simulated in it
    delay, freeze = (
        config.accum_steps * duration(name, group, "quant.") for name in ("delay", "freeze")
    )
    if freeze < delay:
        raise ValueError(f"quant.freeze: got {freeze} batches, less than the delay of {delay}")
    try:
        return QuantSpec(
            delay_steps=delay, freeze_steps=freeze, range_decay=float(group.range_decay)
        )
    except ValueError as e:
        raise ValueError(f"quant.{e}") from e


def _check_divides(field: str, size: int, divisor: int, devices: int, config: ConfigDict) -> None:
    if size % divisor:
        below, above = size // divisor * divisor, -(-size // divisor) * divisor
        near = f"{below} or {above}" if below else f"{above}"
        accum = f" times accum_steps {config.accum_steps}" if divisor != devices else ""
        raise ValueError(
            f"{field}: got {size}, which {devices} devices{accum} do not divide; "
            f"the nearest that would do: {near}"
        )
