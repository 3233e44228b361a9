"""Teachers: trained networks that a run learns from, `config.teacher`.

A teacher is a run folder or an import folder, or a StableHLO file: any function from images to
logits. It sees what the student sees, in the same compiled step, after augmentation and mixing: at
its own resolution, normalised as it was trained. BatchNorm uses its running statistics, there is no
dropout, and no gradient reaches the teacher. The weights of a folder are an input of the step;
those of a file are constants in it. No checkpoint holds them. teacher.json of the run folder has
their digest, so that a run does not resume with another teacher.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import jax
import jax.numpy as jnp
import numpy as np

from mbv3_jax.arch.spec import NetSpec, spec_to_json
from mbv3_jax.core.checks import choose, sides
from mbv3_jax.core.errors import UsageError, counted, plain, printable
from mbv3_jax.core.files import expand_user, read_bytes
from mbv3_jax.core.json_values import Number, as_type
from mbv3_jax.nn import functional
from mbv3_jax.nn.modules import DTYPES, Compute
from mbv3_jax.run.archive import read_archive
from mbv3_jax.run.exported import open_exported
from mbv3_jax.run.model import load_model
from mbv3_jax.train.distillation import DISTILLATION, Teaching
from mbv3_jax.train.hints import Hints, Maps, make_hints
from mbv3_jax.train.plan import DistillationPlan, Plan
from mbv3_jax.train.warm_start import weights_digest

Normalization = tuple[tuple[float, ...], tuple[float, ...]]  # mean and deviation of each channel


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """One teacher.

    path: the folder or the file.
    what: its network, for messages.
    num_classes: how many logits it has.
    class_names: by label; none if it does not say.
    size: height and width of the images that it takes, in pixels.
    channels: of them.
    normalize: of the images that it takes; None if it does not say, and takes them as the student.
    digest: of everything that its answers depend on.
    multi_label: whether its images have several labels; False of a file that does not say.
    variables: input of `answers`.
    answers: (variables, images, stages) -> logits [batch, classes], and the maps of the stages of
      `spec`, as `functional.apply_with_maps`.
    spec: of a folder; None of a file, which has no maps.
    """

    path: Path
    what: str
    num_classes: int
    class_names: tuple[str, ...]
    size: tuple[int, int]
    channels: int
    normalize: Normalization | None
    digest: str
    multi_label: bool
    variables: Any
    answers: Callable[[Any, jax.Array, Sequence[str]], tuple[jax.Array, Maps]]
    spec: NetSpec | None = None

    def record(self) -> dict[str, Any]:
        """What teacher.json of the run holds of it."""
        return {"path": str(self.path.absolute()), "network": self.what, "digest": self.digest}

    def check(self, spec: NetSpec, class_names: Sequence[str]) -> None:
        """Checks that it can teach a network of one label per image, as every student is.

        Args:
          spec: the student.
          class_names: of its data, by label.

        Raises:
          ValueError: it has several labels per image or other classes, or takes images of other
            channels.
        """
        where = f"teacher: {self.path}"
        if self.multi_label:
            raise ValueError(
                f"{where} is a network of several labels per image, whose classes are by sigmoids, "
                "but a network with a teacher has one, and they are compared by softmax; expected "
                "a teacher of one label per image"
            )
        if self.num_classes != spec.num_classes:
            raise ValueError(
                f"{where} has {counted(self.num_classes, 'class')}, but the data has "
                f"{spec.num_classes}; expected the same ones"
            )
        unnamed = tuple(map(str, range(self.num_classes)))  # of sources and runs without names
        if not {unnamed, ()} & {self.class_names, tuple(class_names)}:
            for label, (theirs, ours) in enumerate(zip(self.class_names, class_names, strict=True)):
                if theirs != ours:
                    same = sorted(self.class_names) == sorted(class_names)
                    order = "the same classes in another order" if same else "other classes"
                    raise ValueError(
                        f"{where} has {order}: its label {label} is {printable(theirs)!r}, that of "
                        f"the data {printable(ours)!r}"
                    )
        from_grey = spec.in_channels == 1 and self.normalize is not None
        if self.channels != spec.in_channels and not from_grey:
            raise ValueError(
                f"{where} takes images of {counted(self.channels, 'channel')}, but net.in_channels "
                f"is {spec.in_channels}"
            )

    def view(self, images: jax.Array, normalize: Normalization) -> jax.Array:
        """The student's images as this teacher takes them.

        Args:
          images: [batch, height, width, channels], normalised for the student.
          normalize: how they are.

        Returns:
          [batch, *size, channels]; grey images have become equal colours.
        """
        if self.normalize not in (None, normalize):
            (mean, std), (mean_here, std_here) = np.array(self.normalize), np.array(normalize)
            factor, offset = (std_here / std).astype("f4"), ((mean_here - mean) / std).astype("f4")
            images = images * factor + offset
        if images.shape[1:3] != self.size:
            shape = (len(images), *self.size, images.shape[-1])
            images = jax.image.resize(images, shape, "bilinear", antialias=True)
        return images


def read_teaching(plan: Plan, spec: NetSpec, class_names: Sequence[str]) -> Teaching | None:
    """Reads the teachers of a plan.

    Args:
      plan: what the configuration says.
      spec: the student.
      class_names: of its data, by label.

    Returns:
      None if the plan has no teacher.

    Raises:
      UsageError: there is no such teacher, or it is of another kind.
      RunError: it is damaged.
      ValueError: it does not fit the student or its data, or an option of the loss is wrong.
    """
    asked, normalize = plan.distillation, plan.preprocessing.normalize
    if asked is None:
        return None
    loss = DISTILLATION.bind(asked.loss.name, asked.loss.options)
    teachers = [read_teacher(path, asked.dtype) for path in asked.teachers]
    for teacher in teachers:
        teacher.check(spec, class_names)
    hints = _hints(asked, teachers, spec)

    def answers(variables: Sequence[Any], images: jax.Array) -> tuple[jax.Array, Maps]:
        stages = hints.of_teacher if hints else ()
        # The mean of logits is the geometric mean of what the teachers predict, which Hinton et
        # al. (arXiv 1503.02531, section 2) name besides the arithmetic one.
        given = [
            teacher.answers(weights, teacher.view(images, normalize), stages)
            for teacher, weights in zip(teachers, variables, strict=True)
        ]
        logits = [one.astype(jnp.float32) for one, _ in given]
        return sum(logits[1:], start=logits[0]) / len(logits), given[0][1]

    return Teaching(
        variables=[teacher.variables for teacher in teachers],
        answers=answers,
        loss=loss,
        hints=hints,
        weight=asked.weight,
        description=_describe(asked, teachers, spec),
        record=[teacher.record() for teacher in teachers],
    )


def _hints(plan: DistillationPlan, teachers: Sequence[Teacher], spec: NetSpec) -> Hints | None:
    if not plan.features:
        return None
    if len(teachers) > 1 or teachers[0].spec is None:
        got = "several teachers" if len(teachers) > 1 else f"{teachers[0].path}, which has no maps"
        raise ValueError(
            f"distillation.features: got {got}, expected one folder of a run or an import"
        )
    return make_hints(plan.features, plan.features_weight, spec, teachers[0].spec)


def _describe(plan: DistillationPlan, teachers: Sequence[Teacher], spec: NetSpec) -> str:
    names = " and ".join(f"{printable(str(teacher.path))} ({teacher.what})" for teacher in teachers)
    text = f"{names}; {plan.loss.name}, weight {plain(plan.weight)}"
    if plan.features:
        strides = " and ".join(map(str, plan.features))
        text += f"; features of stride {strides}, weight {plain(plan.features_weight)}"
    sizes = sorted({teacher.size for teacher in teachers} - {sides(spec.resolution)})
    if sizes:
        resized = " and ".join(f"{height}x{width}" for height, width in sizes)
        text += f"; images resized to {resized} pixels for it"
    if any(teacher.normalize is None for teacher in teachers):
        text += "; a file that does not say how images are normalised gets those of the student"
    return text


def read_teacher(given: str, dtype: str | None = None) -> Teacher:
    """Reads one teacher.

    Args:
      given: a run folder, an import folder or a StableHLO file.
      dtype: that a network of a folder computes in, a key of `modules.DTYPES`; None for float32.

    Raises:
      UsageError: the teacher does not exist, is of another kind, or the option does not apply.
      RunError: it is damaged.
      ValueError: the type is unknown.
    """
    path = expand_user(given, "config.teacher", error=UsageError)
    if dtype is not None:
        choose("distillation.dtype", dtype, DTYPES)
    if path.suffix in (".onnx", ".tflite"):
        raise UsageError(
            f"config.teacher: {path} runs outside the training step; expected a run folder, an "
            "import folder (mbv3 import reads weights of other libraries), or a .stablehlo file, "
            "which jax.export writes of any function in JAX"
        )
    if path.is_dir():
        return _read_folder(path, dtype or "float32")
    if not path.exists():
        several = ""
        if "," in given:
            several = '; several are given as --config.teacher=\'("DIR", "DIR")\''
        raise UsageError(f"config.teacher: {path}: no such folder or file{several}")
    if dtype is not None:
        raise UsageError(
            f"config: distillation.dtype: got {dtype!r}, but {path} computes in its own types; "
            "--config.distillation.dtype=None clears it"
        )
    return _read_file(path)


def _read_folder(path: Path, dtype: str) -> Teacher:
    try:
        model = load_model(path)
        model.require_head(path)
    except UsageError as e:
        raise UsageError(f"config.teacher: {e}") from e
    spec, compute = model.spec, Compute(dtype=dtype)
    if spec.quant and dtype != "float32":
        raise UsageError(
            f"config: distillation.dtype: got {dtype!r}, but {path} holds a network trained for "
            "int8, which is simulated in float32; --config.distillation.dtype=None clears it"
        )
    normalize = model.preprocessing.normalize
    size = sides(spec.resolution)
    text = f"{spec_to_json(spec)} {normalize} {weights_digest(model.variables)}"
    return Teacher(
        path=path,
        what=spec.name,
        num_classes=spec.num_classes,
        class_names=model.class_names,
        size=size,
        channels=spec.in_channels,
        normalize=normalize,
        digest=hashlib.sha256(text.encode()).hexdigest(),
        multi_label=model.multi_label,
        variables=model.variables,
        answers=lambda variables, images, stages: functional.apply_with_maps(
            spec, variables, images, stages=stages, compute=compute
        )[:2],
        spec=spec,
    )


class _Normalized(TypedDict):
    mean: list[Number]
    std: list[Number]


class _Metadata(TypedDict):
    """What is read of the metadata of an exported file, see `export.metadata.describe`."""

    network: str
    classes: list[str]
    labels: NotRequired[str]  # not in files of older versions
    preprocessing: _Normalized


def _read_file(path: Path) -> Teacher:
    try:
        content = read_bytes(path)
        exported = open_exported(path, content)
    except OSError as e:
        raise UsageError(f"config.teacher: {path}: {e.strerror}") from e
    except ValueError as e:
        raise UsageError(f"config.teacher: {e}") from e
    size, channels, num_classes = _signature(path, exported)
    dtype = exported.in_avals[0].dtype
    entries = read_archive(path)
    metadata: _Metadata | None = None
    if entries is not None:
        try:
            metadata = as_type(entries, _Metadata)
        except ValueError as e:
            raise UsageError(f"config.teacher: {path}: its metadata: {e}") from e
    normalize: Normalization | None = None
    if dtype == np.uint8:  # pixels, which the file normalises
        normalize = (0.0,) * channels, (1 / 255,) * channels
    elif metadata:
        mean, std = (metadata["preprocessing"][name] for name in ("mean", "std"))
        normalize = tuple(map(float, mean)), tuple(map(float, std))
    call = _by_seeds(exported.call)

    def answers(variables: Any, images: jax.Array, stages: Sequence[str]) -> tuple[jax.Array, Maps]:
        if dtype == np.uint8:
            images = jnp.clip(jnp.round(images), 0, 255)
        return call(images.astype(dtype)), {}

    return Teacher(
        path=path,
        what=metadata["network"] if metadata else exported.fun_name,
        num_classes=num_classes,
        class_names=tuple(metadata["classes"]) if metadata else (),
        size=size,
        channels=channels,
        normalize=normalize,
        digest=hashlib.sha256(content).hexdigest(),
        multi_label=metadata is not None and metadata.get("labels") == "multi",
        variables=(),
        answers=answers,
    )


def _signature(path: Path, exported: jax.export.Exported) -> tuple[tuple[int, int], int, int]:
    """Size and channels of the images, and the number of classes, of a function of images.

    Raises:
      UsageError: it is a function of something else, of a fixed number of images, or for other
        devices.
    """

    def refuse(got: str, expected: str) -> UsageError:
        return UsageError(f"config.teacher: {path}: got {got}, expected {expected}")

    inputs, outputs = exported.in_avals, exported.out_avals
    signature = f"a function ({', '.join(map(str, inputs))}) -> ({', '.join(map(str, outputs))})"
    expected = "one of images [N, height, width, channels] with logits [N, classes]"
    if len(inputs) != 1 or len(outputs) != 1 or len(outputs[0].shape) != 2:
        raise refuse(signature, expected)
    (images,), (logits,) = inputs, outputs
    if len(images.shape) != 4 or not jnp.issubdtype(logits.dtype, jnp.floating):
        raise refuse(signature, expected)
    count, height, width, channels = images.shape
    fixed = [n for n in (height, width, channels, logits.shape[1]) if isinstance(n, int)]
    kinds = (np.dtype("float32"), np.dtype("uint8"), jnp.dtype("bfloat16"), np.dtype("float16"))
    if len(fixed) < 4 or images.dtype not in kinds:
        raise refuse(signature, expected)
    if not jax.export.is_symbolic_dim(count):
        raise refuse(f"a file for batches of {count}", "one for any: mbv3 export --batch=any")
    platform = jax.export.default_export_platform()
    anywhere = jax.export.DisabledSafetyCheck.platform() in exported.disabled_safety_checks
    if platform not in exported.platforms and not anywhere:
        raise refuse(f"a file for {', '.join(exported.platforms)}", f"one for {platform}")
    if exported.nr_devices != 1:
        raise refuse(f"a file for {exported.nr_devices} devices", "one for a single device")
    return (height, width), channels, logits.shape[1]


def _by_seeds(call: Callable[[jax.Array], jax.Array]) -> Callable[[jax.Array], jax.Array]:
    """The function with a rule for `jax.vmap`, which exported functions do not have.

    Several seeds at once have several batches, which become one.
    """
    wrapped = jax.custom_batching.custom_vmap(call)

    @wrapped.def_vmap
    def rule(runs: int, is_batched: Any, images: jax.Array) -> tuple[jax.Array, bool]:
        # Images first: this axis is the one that devices share.
        images = images.swapaxes(0, 1)
        merged = images.reshape(-1, *images.shape[2:])
        logits = wrapped(merged).reshape(len(images), runs, -1)
        return logits.swapaxes(0, 1), True

    return wrapped
