"""Learning from a teacher: its losses, what it sees, and what the step does with its answers."""

import dataclasses
import json
import re
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon
from tiny_config import SPEC

from mbv3_jax.arch.spec import QuantSpec
from mbv3_jax.core.checks import sides
from mbv3_jax.core.errors import UsageError
from mbv3_jax.export import formats, metadata
from mbv3_jax.nn import functional
from mbv3_jax.nn.modules import Compute
from mbv3_jax.run.model import Model, Preprocessing, save_model
from mbv3_jax.train import teacher as teachers
from mbv3_jax.train.distillation import DISTILLATION, Teaching
from mbv3_jax.train.experiment import make_experiment
from mbv3_jax.train.sharding import put_batch
from mbv3_jax.train.state import STEP_STREAM

NAMES = tuple(f"class{i}" for i in range(10))
TORCH = Preprocessing(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
STUDENT, TEACHER = np.random.default_rng(0).standard_normal((2, 6, 10)).astype(np.float32) * 3


def value(name, **options):
    loss = DISTILLATION.bind(name, options)
    return np.asarray(loss(jnp.asarray(STUDENT), jnp.asarray(TEACHER)))


def softmax(logits):
    p = np.exp(np.asarray(logits, np.float64) - np.max(logits, -1, keepdims=True))
    return p / p.sum(-1, keepdims=True)


def kl_of(student, teacher, temperature):
    p, q = softmax(teacher / temperature), softmax(student / temperature)
    return temperature**2 * np.sum(p * np.log(p / q), -1)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
def test_kl_is_that_of_pytorch(temperature):
    torch = pytest.importorskip("torch", reason="PyTorch's kl_div needs the extra peers")
    f = torch.nn.functional
    student, teacher = (torch.from_numpy(x) / temperature for x in (STUDENT, TEACHER))
    log_q, p = f.log_softmax(student, dim=1), f.softmax(teacher, dim=1)
    want = f.kl_div(log_q, p, reduction="batchmean") * temperature**2
    assert value("kl", temperature=temperature).mean() == pytest.approx(float(want), rel=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
def test_kl_and_its_gradient_are_the_formulas_written_out(temperature):
    got = value("kl", temperature=temperature)
    np.testing.assert_allclose(got, kl_of(STUDENT, TEACHER, temperature), rtol=1e-5)
    gradient = jax.grad(lambda x: DISTILLATION["kl"](x, TEACHER, temperature=temperature).sum())
    want = temperature * (softmax(STUDENT / temperature) - softmax(TEACHER / temperature))
    np.testing.assert_allclose(gradient(jnp.asarray(STUDENT)), want, atol=1e-5)


def test_js_is_that_of_scipy():
    want = jensenshannon(softmax(STUDENT), softmax(TEACHER), axis=1) ** 2
    np.testing.assert_allclose(value("js"), want, rtol=1e-4)
    apart = DISTILLATION["js"](jnp.array([[100.0, 0.0]]), jnp.array([[0.0, 100.0]]))
    np.testing.assert_allclose(apart, [np.log(2)], rtol=1e-6)


def test_symmetric_kl_is_half_of_both():
    want = (kl_of(STUDENT, TEACHER, 1) + kl_of(TEACHER, STUDENT, 1)) / 2
    np.testing.assert_allclose(value("symmetric_kl"), want, rtol=1e-5)


def test_hard_labels_are_the_most_probable_classes():
    want = -np.log(softmax(STUDENT)[np.arange(6), TEACHER.argmax(1)])
    np.testing.assert_allclose(value("hard"), want, rtol=1e-5)
    tie = DISTILLATION["hard"](jnp.array([[1.0, 2.0, 3.0]]), jnp.array([[0.0, 5.0, 5.0]]))
    np.testing.assert_allclose(tie, [-np.log(softmax([[1.0, 2.0, 3.0]])[0, 1])], rtol=1e-6)


@pytest.mark.parametrize("name", DISTILLATION)
def test_a_student_like_its_teacher_has_no_gradient_but_from_hard_labels(name):
    same = jnp.asarray(TEACHER)
    loss, gradient = jax.value_and_grad(lambda x: DISTILLATION[name](x, same).sum())(same)
    assert np.isfinite(gradient).all()
    if name != "hard":
        np.testing.assert_allclose([loss, np.abs(gradient).max()], 0, atol=1e-5)
    large = DISTILLATION[name](jnp.array([[1e4, -1e4]]), jnp.array([[-1e4, 1e4]]))
    assert large.dtype == jnp.float32 and np.isfinite(large).all()


def test_no_gradient_reaches_the_teacher():
    for loss in DISTILLATION.values():
        teaching = Teaching(
            variables=[], answers=None, loss=loss, weight=0.3, description="", record=[]
        )

        def mixed(student, teacher, teaching=teaching):
            return teaching.mixed(jnp.float32(2), student, teacher)[0]

        by_student, by_teacher = jax.grad(mixed, argnums=(0, 1))(STUDENT, TEACHER)
        assert np.abs(by_student).max() > 1e-3
        assert not np.any(by_teacher)
        want = 0.7 * 2 + 0.3 * np.mean(loss(STUDENT, TEACHER))
        np.testing.assert_allclose(mixed(STUDENT, TEACHER), want, rtol=1e-5)


def random_model(seed, *, names=NAMES, preprocessing=None, **changes):
    """A network that answers differently to different images, with running statistics of its own.

    Its statistics are far from those of a batch.
    """
    # Without dropout, so that nothing but BatchNorm tells training from inference.
    spec = SPEC.replace(num_classes=max(len(names), 1), dropout=0.0, **changes)
    variables = functional.init(spec, jax.random.key(seed))
    rng = np.random.default_rng(seed)
    params, stats = variables["params"], variables["batch_stats"]
    params |= {
        name: jax.tree.map(lambda x: x + rng.normal(size=x.shape) * 0.5, params[name])
        for name in ("head", "logits")
    }
    stats = jax.tree.map(lambda x: x + rng.uniform(0.2, 0.6, x.shape), stats)
    variables = {"params": params, "batch_stats": stats}
    return Model(
        spec=spec,
        variables=jax.tree.map(lambda x: np.asarray(x, np.float32), variables),
        preprocessing=preprocessing or Preprocessing(),
        class_names=names,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """folder(model) -> a new import folder of it."""

    def save(model):
        path = tmp_path_factory.mktemp("teachers") / "teacher"
        save_model(path, model, origin={})
        return path

    return save


@pytest.fixture(scope="module")
def other():
    """A teacher of another resolution and normalisation than the student."""
    return random_model(1, resolution=(48, 40), preprocessing=TORCH)


@pytest.fixture(scope="module")
def taught(tiny_config, folder, other):
    """The experiment of a student with `other` as its teacher, and its configuration."""
    config = tiny_config(f"--config.teacher={folder(other)}", "--config.distillation.weight=0.3")
    return make_experiment(config)


def first_batch(experiment, seed=None):
    batches = experiment.train_batches(0, seed=seed)
    try:
        return next(batches)
    finally:
        batches.close()


def step_once(experiment):
    """The first state, the batch, and what a step makes of them."""
    state = experiment.create_state()
    before = jax.tree.map(np.array, state)
    batch = first_batch(experiment)
    after, metrics = experiment.train_step(state, put_batch(batch, experiment.mesh))
    return before, batch, after, {k: float(v) for k, v in metrics.items()}


def seen(experiment, batch):
    """The augmented view of the first step, its labels, and the key of dropout."""
    key = jax.random.fold_in(jax.random.key(np.uint32(experiment.plan.seed)), STEP_STREAM)
    key_data, key_net = jax.random.split(jax.random.fold_in(key, 0))
    return *experiment.preprocess(batch, key_data), key_net


def answers(model, images):
    """Logits of a teacher for the student's images, which are from -1 to 1."""
    preprocessing, side = model.preprocessing, model.spec.resolution
    pixels = (np.asarray(images) + 1) / 2
    normalised = (pixels - np.array(preprocessing.mean)) / np.array(preprocessing.std)
    shape = (len(images), *sides(side), model.spec.in_channels)
    if normalised.shape != shape:
        normalised = jax.image.resize(normalised, shape, "bilinear")
    return np.asarray(functional.apply(model.spec, model.variables, jnp.asarray(normalised))[0])


def test_a_step_is_the_weighted_sum_with_the_teacher_at_inference(taught, other):
    before, batch, _, metrics = step_once(taught)
    images, labels, key = seen(taught, batch)
    teacher = answers(other, images)

    def total(params):
        variables = before.variables | {"params": params}
        student, _ = functional.apply(taught.spec, variables, images, train=True, key=key)
        log_q = jax.nn.log_softmax(student)
        by_label = -jnp.mean(log_q[jnp.arange(len(labels)), labels])
        p = softmax(teacher / 3.0)
        log_q = jax.nn.log_softmax(student / 3.0)
        by_teacher = 9.0 * jnp.mean(jnp.sum(p * (np.log(p) - log_q), -1))
        return 0.7 * by_label + 0.3 * by_teacher, (by_label, by_teacher)

    (loss, parts), gradient = jax.value_and_grad(total, has_aux=True)(before.variables["params"])
    assert float(parts[1]) > 0.1  # the teacher says something
    got = [metrics[name] for name in ("loss", "label_loss", "teacher_loss")]
    np.testing.assert_allclose(got, [loss, *parts], rtol=2e-4)
    norm = np.sqrt(sum(np.sum(np.square(x)) for x in jax.tree.leaves(gradient)))
    assert metrics["grad_norm"] == pytest.approx(float(norm), rel=1e-3)
    assert metrics["teacher_top1"] == np.mean(teacher.argmax(1) == labels)


def test_the_teacher_is_an_input_that_stays_as_it_is(taught, other):
    before, batch, *_ = step_once(taught)
    for given in (taught.teaching.variables, taught.train_step.args[1]):
        jax.tree.map(np.testing.assert_array_equal, given, [other.variables])
    changed = jax.tree.map(lambda x: x * 1.5, taught.train_step.args[1])
    state = jax.device_put(before, jax.tree.leaves(changed)[0].sharding)
    func, (seed, _) = taught.train_step.func, taught.train_step.args
    _, metrics = func(seed, changed, state, put_batch(batch, taught.mesh))
    assert abs(float(metrics["teacher_loss"]) - step_once(taught)[3]["teacher_loss"]) > 1e-3


def test_parts_of_a_batch_ask_the_teacher_for_their_own_images(taught, tiny_config):
    config = tiny_config(
        f"--config.teacher={taught.teaching.record[0]['path']}", "--config.accum_steps=2"
    )
    *_, whole = step_once(taught)
    *_, metrics = step_once(make_experiment(config))
    assert metrics["teacher_top1"] == whole["teacher_top1"]
    # BatchNorm of the student sees half of the batch.
    assert metrics["teacher_loss"] == pytest.approx(whole["teacher_loss"], rel=0.05)
    mixed = (metrics["label_loss"] + metrics["teacher_loss"]) / 2
    assert metrics["loss"] == pytest.approx(mixed, rel=1e-5)


def test_weights_focal_loss_and_mixing_are_of_the_label_part(taught, tiny_config):
    path = taught.teaching.record[0]["path"]
    flags = (
        "--config.augment.mixup_alpha=0.8",
        "--config.augment.cutmix_alpha=1.0",
        "--config.loss.name=focal",
        "--config.loss.class_weights=(1,2,3,4,5,6,7,8,9,10)",
    )
    plain = step_once(make_experiment(tiny_config(*flags)))[3]
    with_teacher = make_experiment(
        tiny_config(*flags, f"--config.teacher={path}", "--config.distillation.name=hard")
    )
    before, batch, _, metrics = step_once(with_teacher)
    assert metrics["label_loss"] == pytest.approx(plain["loss"], rel=1e-5)
    assert metrics["loss"] == pytest.approx(
        (metrics["label_loss"] + metrics["teacher_loss"]) / 2, rel=1e-5
    )
    images, labels, key = seen(with_teacher, batch)
    assert labels.ndim == 2
    student, _ = functional.apply(with_teacher.spec, before.variables, images, train=True, key=key)
    teacher = with_teacher.teaching.answers(with_teacher.teaching.variables, images)[0]
    want = np.mean(-np.log(softmax(student)[np.arange(8), np.argmax(teacher, 1)]))
    assert metrics["teacher_loss"] == pytest.approx(want, rel=1e-4)


def test_several_teachers_are_averaged(tiny_config, folder, other):
    models = other, random_model(2)
    paths = tuple(str(folder(model)) for model in models)
    experiment = make_experiment(tiny_config(f"--config.teacher={paths!r}"))
    images, *_ = seen(experiment, first_batch(experiment))
    got = experiment.teaching.answers(experiment.teaching.variables, images)[0]
    want = np.mean([answers(model, images) for model in models], 0)
    np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-3)
    assert [entry["path"] for entry in experiment.teaching.record] == list(paths)


def test_a_teacher_in_bfloat16_answers_nearly_the_same(taught, other):
    path = taught.teaching.record[0]["path"]
    images = np.random.default_rng(0).standard_normal((4, 48, 40, 3)).astype(np.float32)
    full, half = (teachers.read_teacher(path, dtype) for dtype in (None, "bfloat16"))
    a, b = (np.asarray(t.answers(t.variables, images, ())[0]) for t in (full, half))
    assert 1e-5 < np.abs(a - b).max() < 0.05 * np.abs(a).max()
    wide = functional.apply(other.spec, other.variables, images, compute=Compute())[0]
    np.testing.assert_allclose(a, wide, rtol=1e-5)


def test_a_teacher_trained_for_int8_computes_in_float32(folder):
    quant = QuantSpec(range_decay=0.9, delay_steps=0, freeze_steps=4)
    spec = SPEC.replace(quant=quant)
    variables = jax.tree.map(np.asarray, functional.init(spec, jax.random.key(0)))
    model = Model(spec=spec, variables=variables, preprocessing=TORCH, class_names=NAMES)
    with pytest.raises(UsageError, match=r"distillation.dtype: got 'bfloat16', but .* for int8"):
        teachers.read_teacher(str(folder(model)), "bfloat16")


def test_seeds_together_have_one_teacher(taught, tiny_config, exported):
    for path in (taught.teaching.record[0]["path"], exported("float32")):
        flags = f"--config.teacher={path}", "--config.distillation.weight=0.3"
        together = make_experiment(tiny_config(*flags, "--config.seeds=(0, 5)"))
        states = [together.create_state(seed) for seed in (0, 5)]
        state = jax.tree.map(lambda *x: jnp.stack(x), *states)
        batches = [first_batch(together, seed) for seed in (0, 5)]
        batch = {k: np.stack([b[k] for b in batches]) for k in batches[0]}
        _, metrics = together.train_step(state, put_batch(batch, together.mesh, axis=1))
        *_, want = step_once(make_experiment(tiny_config(*flags, "--config.seed=5")))
        for name in ("loss", "teacher_loss", "teacher_top1", "grad_norm"):
            assert float(metrics[name][1]) == pytest.approx(want[name], rel=2e-4), name
            assert float(metrics[name][0]) != float(metrics[name][1]) or name == "teacher_top1"


def test_a_network_that_netadapt_narrows_keeps_its_teacher(taught):
    narrowed = taught.with_network(taught.spec.replace(bn_decay=0.5), taught.tx)
    assert narrowed.teaching is taught.teaching
    assert "teacher_loss" in step_once(narrowed)[3]


def test_a_grey_student_may_have_a_teacher_for_colours(tiny_config, folder, other):
    grey = random_model(3, in_channels=1, preprocessing=Preprocessing().for_channels(1))
    colours = teachers.read_teacher(str(folder(other)))
    colours.check(grey.spec, NAMES)
    images = np.random.default_rng(0).uniform(-1, 1, (2, 48, 40, 1)).astype(np.float32)
    view = colours.view(images, grey.preprocessing.normalize)
    want = answers(other, np.repeat(images, 3, -1))
    np.testing.assert_allclose(
        colours.answers(colours.variables, view, ())[0], want, rtol=1e-3, atol=1e-3
    )
    with pytest.raises(UsageError, match=r"takes images of 1 channel, but net.in_channels is 3"):
        make_experiment(tiny_config(f"--config.teacher={folder(grey)}"))


@pytest.fixture(scope="module")
def exported(tmp_path_factory, other):
    """exported(input type, batch) -> `other`, or a model, as `mbv3 export` writes it."""
    pytest.importorskip("flatbuffers", reason="jax.export needs the extra export")

    def write(dtype, batch=None, *, described=True, model=other):
        target = formats.Target(file_format="stablehlo", input_dtype=dtype, batch=batch)
        file = formats.write(model, target)
        if described:
            origin = {"run": "small", "step": 24, "weights": "ema"}
            entries = metadata.describe(model, target, origin)
            file = metadata.attach(file, "stablehlo", entries)
        path = tmp_path_factory.mktemp("exported") / "big.stablehlo"
        path.write_bytes(file)
        return path

    return write


@pytest.mark.parametrize("dtype", ["float32", "uint8"])
def test_an_exported_file_answers_like_its_network(tiny_config, exported, other, dtype):
    experiment = make_experiment(tiny_config(f"--config.teacher={exported(dtype)}"))
    teaching = experiment.teaching
    images, labels, _ = seen(experiment, first_batch(experiment))
    want = answers(other, images)
    rounding = 1e-3 if dtype == "float32" else 0.1 * np.abs(want).max()  # uint8 rounds pixels
    got = np.asarray(teaching.answers(teaching.variables, images)[0])
    np.testing.assert_allclose(got, want, rtol=1e-3, atol=rounding)
    *_, metrics = step_once(experiment)  # on two devices
    assert metrics["teacher_top1"] == np.mean(got.argmax(1) == labels)
    assert teaching.record[0]["network"] == "tiny"


def test_a_file_without_metadata_gets_what_the_student_gets(exported):
    path = exported("float32", described=False)
    foreign = teachers.read_teacher(str(path))
    assert (foreign.class_names, foreign.normalize, foreign.size) == ((), None, (48, 40))
    foreign.check(SPEC, NAMES)  # by their number alone
    images = np.random.default_rng(0).uniform(-1, 1, (2, 48, 40, 3)).astype(np.float32)
    assert foreign.view(images, TORCH.normalize) is images
    with pytest.raises(ValueError, match="has 10 classes, but the data has 5"):
        foreign.check(SPEC.replace(num_classes=5), NAMES[:5])


def test_files_that_cannot_teach(exported, tmp_path):
    with pytest.raises(UsageError, match="a file for batches of 4, expected one for any: mbv3"):
        teachers.read_teacher(str(exported("float32", batch=4)))
    with pytest.raises(UsageError, match=r"got 'bfloat16', but .*big.stablehlo computes in"):
        teachers.read_teacher(str(exported("float32")), "bfloat16")
    for name in ("net.onnx", "net.tflite"):
        with pytest.raises(UsageError, match=f"{name} runs outside the training step; expected a"):
            teachers.read_teacher(name)
    whole = exported("float32")
    with zipfile.ZipFile(whole) as archive:
        entries = json.loads(archive.read("metadata.json"))
    (tmp_path / "cut.stablehlo").write_bytes(metadata.attach(b"cut", "stablehlo", entries))
    with pytest.raises(UsageError) as refused:
        teachers.read_teacher(str(tmp_path / "cut.stablehlo"))
    assert re.fullmatch(
        rf"config.teacher: {tmp_path}/cut.stablehlo cannot be read by jaxlib \S+: .+; jaxlib \S+ "
        r"exported it on \d{4}-\d\d-\d\d, and JAX promised to read it until \d{4}-\d\d-\d\d. "
        r"Export it again: python -m mbv3_jax export --run=PATH/small --step=24 --weights=ema "
        rf"--format=stablehlo --precision=float32 --batch=any --input=float32 "
        rf"--out={tmp_path}/cut.stablehlo",
        str(refused.value),
    )
    (tmp_path / "x.stablehlo").write_text("nothing")
    with pytest.raises(UsageError, match=r"x.stablehlo is not a StableHLO file of jax.export: "):
        teachers.read_teacher(str(tmp_path / "x.stablehlo"))
    for function, shape in (
        (lambda x: (x, x), ("N", 8, 8, 3)),
        (lambda x: x[:, 0, 0], ("N", "H", 16, 3)),
        (lambda x: x, ("N", 8)),
        (lambda x: x[:, 0, 0].astype(int), ("N", 8, 8, 3)),
    ):
        (tmp_path / "f.stablehlo").write_bytes(formats.to_stablehlo(function, shape))
        with pytest.raises(UsageError, match=r"f.stablehlo: got a function \(.*expected one of im"):
            teachers.read_teacher(str(tmp_path / "f.stablehlo"))
    file = jax.export.export(jax.jit(lambda x: x[:, 0, 0]), platforms=["tpu"])(
        jax.ShapeDtypeStruct(jax.export.symbolic_shape("N,8,8,3"), "float32")
    )
    (tmp_path / "t.stablehlo").write_bytes(bytes(file.serialize()))
    with pytest.raises(UsageError, match=r"t.stablehlo: got a file for tpu, expected one for cpu"):
        teachers.read_teacher(str(tmp_path / "t.stablehlo"))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (NAMES[:5], "has 5 classes, but the data has 10; expected the same ones"),
        (NAMES[::-1], "has the same classes in another order: its label 0 is 'class9', that of"),
        ((*NAMES[:9], "x"), "has other classes: its label 9 is 'x', that of the data 'class9'"),
        ((), "a network without a head, so without classes"),
    ],
)
def test_classes_must_be_those_of_the_data(tiny_config, folder, names, message):
    path = folder(random_model(1, names=names))
    with pytest.raises(UsageError, match=f"^config.*teacher: .*{message}"):
        make_experiment(tiny_config(f"--config.teacher={path}"))


@pytest.mark.parametrize("form", ["import", "file"])
def test_a_teacher_of_several_labels_an_image_is_refused(
    tiny_config, folder, exported, other, form
):
    several = dataclasses.replace(other, multi_label=True)
    path = folder(several) if form == "import" else exported("float32", model=several)
    with pytest.raises(UsageError) as refused:
        make_experiment(tiny_config(f"--config.teacher={path}"))
    assert str(refused.value) == (
        f"config: teacher: {path} is a network of several labels per image, whose classes are by "
        "sigmoids, but a network with a teacher has one, and they are compared by softmax; "
        "expected a teacher of one label per image"
    )


def test_classes_without_names_are_compared_by_their_number(tiny_config, folder):
    path = folder(random_model(1, names=tuple(map(str, range(10)))))
    teachers.read_teacher(str(path)).check(SPEC, NAMES)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"distillation.weight": 0.5}, "distillation.weight: got 0.5, but teacher is None"),
        ({"distillation.name": "js"}, "distillation.name: got 'js', but teacher is None"),
        ({"teacher": "there", "distillation.weight": 0.0}, "distillation.weight: got 0.0, expect"),
        ({"teacher": "there", "distillation.weight": 1.5}, "distillation.weight: got 1.5, expect"),
        ({"teacher": "there", "distillation.name": "mse"}, "distillation.name: got 'mse', expect"),
        (
            {"teacher": "there", "distillation.name": "js", "distillation.temperature": 2.0},
            "distillation: 'js' has no option temperature; its options: none; --config.distillat",
        ),
        (
            {"teacher": "there", "distillation.temperature": 0.0},
            "distillation.temperature: got 0.0, expected a number above 0",
        ),
        ({"teacher": "there", "distillation.dtype": "int8"}, "distillation.dtype: got 'int8', ex"),
        ({"teacher": "nowhere"}, "config.teacher: nowhere: no such folder or file$"),
        ({"teacher": "a,b"}, r"a,b: no such folder or file; several are given as --config.teach"),
        ({"teacher": 3}, "teacher: got 3, expected a run folder, an import folder or a .stablehlo"),
        ({"teacher": ("a", "")}, r"teacher: got \('a', ''\), expected a run folder"),
        ({"teacher": "~no-such-user/x"}, "config.teacher: got ~no-such-user/x, but there is no ho"),
        ({"teacher": "empty"}, "config.teacher: .*empty is neither a run folder"),
    ],
)
def test_options_that_do_not_fit(tiny_config, taught, tmp_path, flags, message):
    (tmp_path / "empty").mkdir()
    there = {"there": taught.teaching.record[0]["path"], "empty": tmp_path / "empty"}
    given = [f"--config.{k}={there.get(v, v) if k == 'teacher' else v}" for k, v in flags.items()]
    with pytest.raises(UsageError, match=message):
        make_experiment(tiny_config(*given))
