"""The plan of a run: a configuration as typed values, checked; ConfigDicts end here.

`read_plan` opens no data and uses no device. It reads the folder that the run starts from, if the
configuration names one.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from mbv3_jax.arch.spec import NetSpec
from mbv3_jax.core.checks import check_number, check_whole, choose, flag
from mbv3_jax.core.errors import UsageError, first_line
from mbv3_jax.core.json_values import as_type
from mbv3_jax.data import loader
from mbv3_jax.run.checkpoint import best_metric
from mbv3_jax.run.config import is_multi_label, spec_of
from mbv3_jax.run.durations import UNITS, Duration
from mbv3_jax.run.metrics import EVAL_METRICS, default_metric
from mbv3_jax.run.model import Preprocessing, preprocessing_of_config
from mbv3_jax.run.trackers import TRACKERS
from mbv3_jax.train.distillation import WEIGHT
from mbv3_jax.train.warm_start import WarmStart, read_warm_start

BATCH_NORMS = ("cross_device", "per_device")
# Fields of config.data that are options of data.decode.decode_view, and of data.loader.
_CROP_OPTIONS = ("area", "ratio", "interpolation", "crop_fraction", "central", "exif_rotate")
LOADER_OPTIONS = ("num_workers", "num_threads", "prefetch_batches")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice:
    """A name of a registry with its options; None counts as not given."""

    name: str
    options: Mapping[str, Any]

    @classmethod
    def read(cls, group: ConfigDict, without: tuple[str, ...] = ()) -> "Choice":
        """Reads a group of fields, of which `name` is the choice and the others are its options."""
        options = {k: v for k, v in group.to_dict().items() if k not in ("name", *without)}
        return cls(name=group.name, options=options)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataPlan:
    """What to read.

    source: the data set and its options, see `data.source.open_pair`.
    crop: options of `data.decode.decode_view`.
    loading: options of `data.loader` that say who reads.
    balanced: whether training sees every class equally often.
    repeats: how often each image comes in a training batch.
    on_error: "raise" or "skip", for an example that cannot be read.
    """

    source: Choice
    crop: Mapping[str, Any]
    loading: Mapping[str, Any]
    balanced: bool
    repeats: int
    on_error: str

    @classmethod
    def read(cls, group: ConfigDict) -> "DataPlan":
        """Reads `config.data`."""
        fields = group.to_dict()
        on_error = fields.pop("on_error")
        # Runs of older versions do not have these two.
        balanced, repeats = fields.pop("balanced", None), fields.pop("repeats", None)
        crop = {name: fields.pop(name) for name in _CROP_OPTIONS}
        loading = {name: fields.pop(name) for name in LOADER_OPTIONS}
        source = Choice(name=fields.pop("name"), options=fields)
        return cls(
            source=source,
            crop=crop,
            loading=loading,
            balanced=balanced is not None and flag("data.balanced", balanced),
            repeats=1 if repeats is None else check_whole("data.repeats", repeats, at_least=1),
            on_error=on_error,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinetunePlan:
    """What learns, and how fast; see `finetune.py`.

    frozen: the stages that are not trained, as text.
    freeze_bn: whether every BatchNorm uses its running statistics, which are then not updated.
    backbone_lr_factor: of everything except the logits.
    lr_factors: (regular expression, factor) pairs.
    """

    frozen: str
    freeze_bn: bool
    backbone_lr_factor: float
    lr_factors: tuple[Any, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuantPlan:
    """Training in simulated int8; see `mbv3_jax.nn.fake_quant`."""

    delay: Duration
    freeze: Duration
    range_decay: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class ComputePlan:
    """How the network is computed; see `mbv3_jax.nn.modules.Compute`.

    batch_norm: one of `BATCH_NORMS`.
    shard_optimizer: whether each device keeps a part of the optimizer's state and the average.
    """

    dtype: str
    depthwise: str
    batch_norm: str
    shard_optimizer: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class EarlyStop:
    """When a run ends before its last step.

    patience: the number of evaluations in a row that are not better.
    metric: the metric that compares them, a key of `metrics.EVAL_METRICS`.
    """

    patience: int
    metric: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistillationPlan:
    """What the network learns from besides labels; see `teacher.py` and `distillation.py`.

    teachers: run folders, import folders and StableHLO files, as given.
    loss: a name of `distillation.DISTILLATION`.
    weight: of this loss, above 0 and at most 1; that of the labels has the rest.
    dtype: that teachers compute in; None for float32.
    features: strides of the feature maps that it also learns from, see `hints.py`.
    features_weight: of their loss.
    """

    teachers: tuple[str, ...]
    loss: Choice
    weight: float
    dtype: str | None
    features: tuple[int, ...]
    features_weight: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What a configuration asks for. Fields that are not explained are those of the configuration.

    seeds: of several runs that are trained together, see `seeds.py`; empty for one run.
    spec: the network; the data and the durations in steps complete it, see `sources.Data`.
    num_classes: how many the data must have; None for any number.
    preprocessing: in evaluation.
    warm_start: the weights that the run starts from; None for random ones.
    augment: options of `data.augment.make_preprocess`.
    class_weights: as given, see `losses.class_weights`.
    distillation: None to learn from the labels alone.
    batch_size, eval_batch_size: over all devices.
    average_epochs: over the last epochs, instead of a moving average; None for none.
    best_by: the metric that chooses the best checkpoint, if it is kept.
    early_stop: None to train all steps.
    """

    seed: int
    seeds: tuple[int, ...]
    spec: NetSpec
    num_classes: int | None
    preprocessing: Preprocessing
    warm_start: WarmStart | None
    finetune: FinetunePlan
    quant: QuantPlan | None
    compute: ComputePlan
    data: DataPlan
    augment: Mapping[str, Any]
    batch_size: int
    accum_steps: int
    total: Duration
    warmup: Duration
    optimizer: Choice
    schedule: Choice
    loss: Choice
    class_weights: Any
    distillation: DistillationPlan | None
    label_smoothing: float
    ema_decay: float | None
    average_epochs: float | None
    log_every_steps: int
    eval_batch_size: int
    eval_every: Duration
    checkpoint_every: Duration
    keep_checkpoints: int
    on_damaged: str
    best_by: str | None
    early_stop: EarlyStop | None
    save_predictions: bool
    profile: tuple[int, int] | None
    tracker: str | None

    @property
    def multi_label(self) -> bool:
        """Whether an image has several labels, each a decision of its own."""
        return self.loss.name == "bce"  # see `run.config.is_multi_label`

    @property
    def keeps_average(self) -> bool:
        """Whether the run keeps an average of its weights, which is evaluated."""
        return self.ema_decay is not None or self.average_epochs is not None


def read_plan(config: ConfigDict, run: Path | None = None) -> Plan:
    """Turns a configuration into a plan.

    Optimizer, schedule, losses and teachers are checked where they are built: evaluating a run
    whose optimizer is registered in the user's own configuration file does not need that file, nor
    does it need a teacher.

    Args:
      config: see `configs/common.py`.
      run: the run folder, which need not exist; for a run that starts from trained weights.

    Raises:
      UsageError: a field of the configuration is wrong; the message names it, what it got and what
        was expected.
      RunError: the folder that the run starts from is damaged.
    """
    try:
        warm_start = read_warm_start(config, run)
        spec = warm_start.spec if warm_start else spec_of(config)
        return _read_plan(config, spec, warm_start)
    except ValueError as e:
        raise UsageError(f"config: {e}") from e
    except (AttributeError, KeyError) as e:  # as a ConfigDict says what it has not
        raise UsageError(f"config: has no field {first_line(e)}") from e


def _read_plan(config: ConfigDict, spec: NetSpec, warm_start: WarmStart | None) -> Plan:
    preprocessing = (
        warm_start.preprocessing
        if warm_start
        else preprocessing_of_config(config, spec.in_channels)
    )
    loader.check_seed("seed", config.seed)
    for field in ("batch_size", "eval_batch_size", "accum_steps", "log_every_steps"):
        check_whole(field, config[field], at_least=1)
    check_whole("keep_checkpoints", config.keep_checkpoints, at_least=1)
    for field in ("keep_best", "save_predictions"):
        flag(field, config[field])
    on_damaged = config.get("on_damaged") or "earlier"  # absent in older folders
    choose("on_damaged", on_damaged, ("earlier", "refuse"))
    flag("compute.shard_optimizer", config.compute.shard_optimizer)
    compute = as_type(config.compute.to_dict(), ComputePlan, "compute")
    choose("compute.batch_norm", compute.batch_norm, BATCH_NORMS)
    flag("finetune.freeze_bn", config.finetune.freeze_bn)
    finetune = config.finetune.to_dict()
    if isinstance(factors := finetune["lr_factors"], tuple | None):
        finetune["lr_factors"] = list(factors or ())  # as JSON has it
    warmup_fields = tuple(f"warmup_{unit}" for unit in UNITS)
    return Plan(
        seed=config.seed,
        seeds=_seeds(config),
        spec=spec,
        num_classes=config.net.num_classes,
        preprocessing=preprocessing,
        warm_start=warm_start,
        finetune=as_type(finetune, FinetunePlan, "finetune"),
        quant=_quant(config),
        compute=compute,
        data=DataPlan.read(config.data),
        augment=config.augment.to_dict() | {"normalize": preprocessing.normalize},
        batch_size=config.batch_size,
        accum_steps=config.accum_steps,
        total=Duration.read(config, "total"),
        warmup=Duration.read(config.schedule, "warmup", "schedule."),
        optimizer=Choice.read(config.optimizer),
        schedule=Choice.read(config.schedule, without=warmup_fields),
        loss=Choice.read(config.loss, without=("class_weights",)),
        class_weights=config.loss.get("class_weights"),
        distillation=_distillation(config),
        label_smoothing=config.label_smoothing,
        ema_decay=config.ema_decay,
        average_epochs=_average_epochs(config),
        log_every_steps=config.log_every_steps,
        eval_batch_size=config.eval_batch_size,
        eval_every=Duration.read(config, "eval_every"),
        checkpoint_every=Duration.read(config, "checkpoint_every"),
        keep_checkpoints=config.keep_checkpoints,
        on_damaged=on_damaged,
        best_by=_best_by(config),
        early_stop=_early_stop(config),
        save_predictions=config.save_predictions,
        profile=_profile(config.get("profile")),  # absent in older folders
        tracker=_tracker(config.get("tracker")),  # absent in older folders
    )


def _distillation(config: ConfigDict) -> DistillationPlan | None:
    given, group = config.get("teacher"), config.get("distillation")  # absent in older folders
    options = group.to_dict() if group else {}
    if given is None:
        for name, value in options.items():
            if value is not None:
                raise ValueError(
                    f"distillation.{name}: got {value!r}, but teacher is None; set "
                    "--config.teacher=DIR"
                )
        return None
    teachers = (given,) if isinstance(given, str) else given
    listed = isinstance(teachers, tuple | list) and len(teachers) > 0
    if not listed or not all(isinstance(teacher, str) and teacher for teacher in teachers):
        raise ValueError(
            f"teacher: got {given!r}, expected a run folder, an import folder or a .stablehlo "
            "file, or several as ('runs/a', 'runs/b')"
        )
    names = "name", "weight", "dtype", "features", "features_weight"
    name, weight, dtype, features, of_features = (options.pop(option, None) for option in names)
    if of_features is not None and not features:
        raise ValueError(
            f"distillation.features_weight: got {of_features}, but distillation.features is None"
        )
    least = {"at_least": 0} if features else {"above": 0}
    return DistillationPlan(
        teachers=tuple(teachers),
        loss=Choice(name=name or "kl", options=options),
        weight=check_number(
            "distillation.weight", WEIGHT if weight is None else weight, at_most=1, **least
        ),
        dtype=dtype,
        features=tuple(features or ()),
        features_weight=check_number(
            "distillation.features_weight", 1.0 if of_features is None else of_features, above=0
        ),
    )


def _tracker(name: str | None) -> str | None:
    return None if name is None else choose("tracker", name, tuple(TRACKERS))


def _profile(steps: Sequence[int] | None) -> tuple[int, int] | None:
    if steps is None:
        return None
    if len(steps) != 2:
        raise ValueError(f"profile: got {steps!r}, expected (first step, last step)")
    first = check_whole("profile", steps[0], at_least=1)
    return first, check_whole("profile", steps[1], at_least=first)


def _seeds(config: ConfigDict) -> tuple[int, ...]:
    if config.seeds is None:
        return ()
    seeds = tuple(config.seeds)
    for seed in seeds:
        loader.check_seed("seeds", seed)
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds: got {seeds}, expected different whole numbers")
    if config.seed:
        raise ValueError(f"seed: got {config.seed}, but seeds is given too: {seeds}")
    if config.compute.shard_optimizer:
        raise ValueError("compute.shard_optimizer: got True, expected False with seeds")
    if noise := config.schedule.get("noise"):  # absent in older folders
        raise ValueError(
            f"schedule.noise: got {tuple(noise)}, but seeds trained together have one learning "
            "rate; expected None, or a run for each seed"
        )
    return seeds


def _average_epochs(config: ConfigDict) -> float | None:
    epochs = config.get("average_epochs")  # runs of older versions have no such field
    if epochs is not None:
        check_number("average_epochs", epochs, above=0)
        if config.ema_decay is not None:
            raise ValueError(
                f"average_epochs: got {epochs}, but ema_decay is {config.ema_decay}; one of them "
                "must be None"
            )
    return epochs


def _best_by(config: ConfigDict) -> str | None:
    metric = config.get("keep_best_metric")  # runs of older versions have no such field
    if not config.keep_best:
        if metric is not None:
            raise ValueError(f"keep_best_metric: got {metric!r}, but keep_best is False")
        return None
    return best_metric(config)


def _early_stop(config: ConfigDict) -> EarlyStop | None:
    group = config.get("early_stop") or {}  # runs of older versions have no such group
    patience, metric = group.get("patience"), group.get("metric")
    if patience is None:
        if metric is not None:
            raise ValueError(f"early_stop.metric: got {metric!r}, but early_stop.patience is None")
        return None
    patience = check_whole("early_stop.patience", patience, at_least=1)
    if config.seeds is not None:
        raise ValueError(
            f"early_stop.patience: got {patience}, but seeds are trained together to the end; "
            "expected None, or a run for each seed"
        )
    default = default_metric(multi_label=is_multi_label(config))
    metric = choose("early_stop.metric", metric or default, EVAL_METRICS)
    return EarlyStop(patience=patience, metric=metric)


def _quant(config: ConfigDict) -> QuantPlan | None:
    group = config.quant
    if not flag("quant.enabled", group.enabled):
        durations = [k for k in group if k.startswith(("delay", "freeze")) and group[k] is not None]
        if durations:
            field = durations[0]
            raise ValueError(f"quant.{field}: got {group[field]}, but quant.enabled is False")
        return None
    choose("compute.dtype", config.compute.dtype, ("float32",))  # int8 is simulated in it
    return QuantPlan(
        delay=Duration.read(group, "delay", "quant."),
        freeze=Duration.read(group, "freeze", "quant."),
        range_decay=check_number("quant.range_decay", group.range_decay),
    )
