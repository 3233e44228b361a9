"""What `import mbv3_jax` gives: quick to import, compiled, and the same numbers as the rooms'."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from paths import ROOT

import mbv3_jax
from mbv3_jax.nn import functional
from mbv3_jax.nn.modules import Compute
from mbv3_jax.run.model import Model, Preprocessing, save_model

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)


def test_the_names_are_there():
    names = ["NetSpec", "apply", "build", "cost", "features", "init", "load"]
    assert sorted(mbv3_jax.__all__) == names
    spec = mbv3_jax.build("mobilenet_v3_large")
    assert isinstance(spec, mbv3_jax.NetSpec)
    assert round(mbv3_jax.cost.madds(spec) / 1e6) == 217
    assert all(getattr(mbv3_jax, name).__doc__ for name in mbv3_jax.__all__)


def test_importing_it_imports_no_other_package():
    code = "import sys, mbv3_jax, json; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    modules = {name.partition(".")[0] for name in json.loads(done.stdout)}
    assert not modules & {"jax", "flax", "numpy", "ml_collections", "rich", "absl"}


def test_init_and_apply_are_those_of_functional(tiny_spec, images):
    variables = mbv3_jax.init(tiny_spec, KEY)
    jax.tree.map(np.testing.assert_array_equal, variables, functional.init(tiny_spec, KEY))
    compiled = jax.jit(functional.apply, static_argnums=0, static_argnames="train")
    for train in (False, True):
        ours = mbv3_jax.apply(tiny_spec, variables, images, train=train)
        theirs = compiled(tiny_spec, variables, images, train=train)
        jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    logits, batch_stats = mbv3_jax.apply(tiny_spec, variables, images)
    assert logits.shape == (2, 10) and logits.dtype == np.float32
    jax.tree.map(np.testing.assert_array_equal, batch_stats, variables["batch_stats"])
    eager, _ = functional.apply(tiny_spec, variables, images)
    np.testing.assert_allclose(logits, eager, rtol=1e-5, atol=1e-6)


def test_features_are_those_of_functional_and_compiled_once(tiny_spec, images):
    variables = mbv3_jax.init(tiny_spec, KEY)
    for stages in (None, ["stem", "last"]):
        ours = mbv3_jax.features(tiny_spec, variables, images, stages=stages)
        theirs = functional.features(tiny_spec, variables, images, stages=stages)
        assert [(f.stage, f.stride) for f in ours] == [(f.stage, f.stride) for f in theirs]
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(a.values, b.values, rtol=1e-4, atol=1e-5)
    count = mbv3_jax._compiled("features", "stages", "compute")._cache_size
    before = count()
    mbv3_jax.features(tiny_spec, variables, images + 1, stages=("stem", "last"))
    assert count() == before
    with pytest.raises(ValueError, match="block99"):
        mbv3_jax.features(tiny_spec, variables, images, stages=["block99"])


def test_apply_compiles_once_for_each_shape(tiny_spec, images):
    variables = mbv3_jax.init(tiny_spec, KEY)
    mbv3_jax.apply(tiny_spec, variables, images)
    before = mbv3_jax._compiled("apply", "train", "compute")._cache_size()
    mbv3_jax.apply(tiny_spec.replace(), variables, images + 1)
    assert mbv3_jax._compiled("apply", "train", "compute")._cache_size() == before
    mbv3_jax.apply(tiny_spec, variables, images[:1])
    assert mbv3_jax._compiled("apply", "train", "compute")._cache_size() == before + 1


def test_dropout_takes_a_key_and_compute_a_type(tiny_spec, images):
    spec = tiny_spec.replace(dropout=0.5)
    variables = mbv3_jax.init(spec, KEY)
    with pytest.raises(ValueError, match="key"):
        mbv3_jax.apply(spec, variables, images, train=True)
    one, other = (
        mbv3_jax.apply(spec, variables, images, train=True, key=jax.random.key(i))[0]
        for i in (1, 2)
    )
    assert not np.array_equal(one, other)
    half, _ = mbv3_jax.apply(spec, variables, images, compute=Compute(dtype="bfloat16"))
    whole, _ = mbv3_jax.apply(spec, variables, images)
    assert half.dtype == np.float32 and not np.array_equal(half, whole)


def test_apply_works_inside_jit_and_grad(tiny_spec, images):
    variables = mbv3_jax.init(tiny_spec, KEY)

    def loss(params):
        logits, _ = mbv3_jax.apply(tiny_spec, {**variables, "params": params}, images)
        return (logits**2).sum()

    slopes = jax.jit(jax.grad(loss))(variables["params"])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slopes))


def test_load_reads_a_folder(tmp_path, tiny_spec, images):
    variables = mbv3_jax.init(tiny_spec, KEY)
    names = tuple(map(str, range(10)))
    model = Model(
        spec=tiny_spec, variables=variables, preprocessing=Preprocessing(), class_names=names
    )
    save_model(tmp_path / "folder", model, origin={})
    loaded = mbv3_jax.load(str(tmp_path / "folder"))
    assert loaded.spec == tiny_spec and loaded.class_names == names
    ours, _ = mbv3_jax.apply(loaded.spec, loaded.variables, images)
    np.testing.assert_array_equal(ours, mbv3_jax.apply(tiny_spec, variables, images)[0])
