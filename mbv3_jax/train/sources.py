"""The data that a plan names: opened, checked against the plan, and what follows from its size."""

import dataclasses

from mbv3_jax.arch.spec import NetSpec, QuantSpec
from mbv3_jax.core.errors import UsageError, printable
from mbv3_jax.data.source import Source, crop_for, open_pair
from mbv3_jax.run.durations import Duration
from mbv3_jax.run.metrics import MULTI_LABEL_METRICS
from mbv3_jax.train.plan import Plan


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
    """What a plan trains on, and what follows from it. Durations are in steps.

    spec: the network with as many classes as the data has, and with the steps of its quantization.
    training, held_out: the examples.
    steps_per_epoch: training examples over batch size; need not be whole.
    """

    spec: NetSpec
    training: Source
    held_out: Source
    steps_per_epoch: float
    total_steps: int
    warmup_steps: int
    eval_every: int
    checkpoint_every: int

    @property
    def notes(self) -> list[str]:
        """Notes on the data before it is used, a line each."""
        return [printable(note) for note in (*self.training.notes, *self.held_out.notes)]


def open_sources(plan: Plan) -> tuple[NetSpec, Source, Source]:
    """Opens the training and the held-out examples, and gives the network their number of classes.

    Raises:
      UsageError: the data does not exist (the message says how to get it), has another number of
        classes or channels than the plan, or does not have an option.
    """
    source, crop = plan.data.source, dict(plan.data.crop)
    try:
        if plan.warm_start:
            crop |= crop_for(source.name, plan.preprocessing.crop)
        training, held_out = open_pair(
            source.name,
            resolution=plan.spec.resolution,
            channels=plan.spec.in_channels,
            crop=crop,
            on_error=plan.data.on_error,
            **source.options,
        )
    except (ValueError, FileNotFoundError) as e:
        raise UsageError(f"config: {e}") from e
    classes = training.num_classes
    if plan.num_classes not in (None, classes):
        raise UsageError(
            f"config: net.num_classes: got {plan.num_classes}, but the data {source.name!r} "
            f"has {classes} classes; None follows the data"
        )
    return plan.spec.replace(num_classes=classes), training, held_out


def open_data(plan: Plan) -> Data:
    """Opens the data of a plan and converts its durations to steps.

    Raises:
      UsageError: as `open_sources`, or a duration is wrong.
    """
    spec, training, held_out = open_sources(plan)
    sizes = {"batch_size": plan.batch_size, "train_examples": len(training)}
    try:
        _check_labels(plan, training.label_kind)
        _check_metrics(plan, spec.num_classes)
        if plan.data.repeats > plan.batch_size:
            raise ValueError(
                f"data.repeats: got {plan.data.repeats}, expected at most batch_size, "
                f"{plan.batch_size}"
            )
        total_steps = plan.total.in_steps(**sizes)
        if total_steps < 1:
            raise ValueError(f"{plan.total.field}: got 0, expected a run of at least one step")
        warmup_steps = plan.warmup.in_steps(**sizes)
        if warmup_steps > total_steps:
            raise ValueError(_too_long(plan.warmup, plan.total, warmup_steps, total_steps, sizes))
        return Data(
            spec=spec.replace(quant=_quant_spec(plan, sizes)),
            training=training,
            held_out=held_out,
            steps_per_epoch=len(training) / plan.batch_size,
            total_steps=total_steps,
            warmup_steps=warmup_steps,
            eval_every=max(1, plan.eval_every.in_steps(**sizes)),
            checkpoint_every=max(1, plan.checkpoint_every.in_steps(**sizes)),
        )
    except ValueError as e:
        raise UsageError(f"config: {e}") from e


def _check_metrics(plan: Plan, num_classes: int) -> None:
    """Checks that evaluations with this number of classes have the metrics that the plan uses.

    Raises:
      ValueError: they do not; the message names the field.
    """
    early = plan.early_stop.metric if plan.early_stop else None
    for field, metric in (("keep_best_metric", plan.best_by), ("early_stop.metric", early)):
        if metric is not None and plan.multi_label and metric not in MULTI_LABEL_METRICS:
            expected = ", ".join(MULTI_LABEL_METRICS)
            raise ValueError(
                f"{field}: got {metric!r}, expected one of {expected} for several labels per image"
            )
        if metric == "mean_average_precision" and not plan.multi_label:
            raise ValueError(f"{field}: got {metric!r}, which is for several labels per image")
        if metric == "semantic_accuracy" and plan.loss.name != "semantic_softmax":
            raise ValueError(f"{field}: got {metric!r}, which is of loss.name='semantic_softmax'")
        if metric == "top5" and num_classes <= 5:
            raise ValueError(f"{field}: got 'top5', expected top1 for {num_classes} classes")
        if metric in ("auc", "average_precision") and num_classes != 2:
            raise ValueError(
                f"{field}: got {metric!r}, which is for two classes, but the data has {num_classes}"
            )


def _check_labels(plan: Plan, kind: str) -> None:
    """Checks that what the plan asks for makes sense for labels of a kind.

    Args:
      plan: the plan.
      kind: of the data, one of `source.LABEL_KINDS`.

    Raises:
      ValueError: it does not; the message names the field.
    """
    if plan.multi_label and kind != "multi":
        raise ValueError(
            "loss.name: got 'bce', which is for several labels per image, but the data has "
            f"{'probabilities' if kind == 'soft' else 'one'}; data.labels=multi reads several of a "
            "table"
        )
    if kind == "multi" and not plan.multi_label:
        raise ValueError(
            f"loss.name: got {plan.loss.name!r}, expected 'bce' for several labels per image"
        )
    weights = plan.class_weights
    refused = {
        "data.balanced": (plan.data.balanced, kind != "single"),
        "loss.class_weights": (
            weights,
            kind == "multi" or (kind == "soft" and isinstance(weights, str)),
        ),
        "save_predictions": (plan.save_predictions, kind == "multi"),
        "seeds": (plan.seeds, kind == "multi"),
        "teacher": (plan.distillation and plan.distillation.teachers, kind == "multi"),
    }
    for field, (value, unfit) in refused.items():
        if value and unfit:
            what = "several labels per image" if kind == "multi" else "probabilities as labels"
            cleared = False if isinstance(value, bool) else None
            raise ValueError(
                f"{field}: got {value!r}, which does not go with {what}; expected {cleared}"
            )


def _too_long(
    part: Duration, whole: Duration, part_steps: int, whole_steps: int, sizes: dict[str, int]
) -> str:
    """What to say of a part that lasts longer than the whole, by the fields that hold them."""
    return (
        f"{part.field}: got {part.value} ({part_steps} steps), but {whole.field}={whole.value} "
        f"is only {whole_steps} steps; set --config.{part.field} to at most "
        f"{part.of_steps(whole_steps, **sizes)}, or a larger {whole.field}"
    )


def _quant_spec(plan: Plan, sizes: dict[str, int]) -> QuantSpec | None:
    """The quantization, with durations in batches that the network sees."""
    if plan.quant is None:
        return None
    durations = plan.quant.delay, plan.quant.freeze
    delay_steps, freeze_steps = (duration.in_steps(**sizes) for duration in durations)
    if freeze_steps < delay_steps:
        raise ValueError(_too_long(*durations, delay_steps, freeze_steps, sizes))
    delay, freeze = plan.accum_steps * delay_steps, plan.accum_steps * freeze_steps
    try:
        return QuantSpec(delay_steps=delay, freeze_steps=freeze, range_decay=plan.quant.range_decay)
    except ValueError as e:
        raise ValueError(f"quant.{e}") from e
