import dataclasses

import jax
import numpy as np
import pytest

from mbv3_jax.arch.spec import BlockSpec, ConvSpec, HeadSpec, NetSpec, SESpec
from mbv3_jax.arch.tables import mobilenet_v3_large, mobilenet_v3_small
from mbv3_jax.nn import functional
from mbv3_jax.search.netadapt import masks

OF_INPUT = SESpec(of="input", divisor=1, gate="sigmoid")
# A bottleneck of stem and block 1, which has no expansion layer; one of blocks 2 and 3, with a
# shortcut; a block without expansion layer behind a bottleneck of its own.
WHOLE = NetSpec(
    name="whole",
    stem=ConvSpec(kernel=3, out=16, act="h_swish", stride=2, se=SESpec()),
    blocks=(
        BlockSpec(kernel=3, expansion=16, out=16, act="relu", se=SESpec()),
        BlockSpec(kernel=5, expansion=48, out=24, act="h_swish", stride=2, se=OF_INPUT),
        BlockSpec(kernel=3, expansion=64, out=24, act="h_swish", se=SESpec()),
        BlockSpec(kernel=3, expansion=24, out=40, act="relu6", stride=2),
    ),
    last=ConvSpec(kernel=1, out=32, act="h_swish", se=OF_INPUT),
    head=HeadSpec(out=16, act="h_swish"),
    resolution=32,
    num_classes=10,
    dropout=0.2,
    drop_path=0.2,
)


def _narrower(spec, stem, expansions, outs):
    blocks = zip(spec.blocks, expansions, outs, strict=True)
    return spec.replace(
        name="narrower",
        stem=dataclasses.replace(spec.stem, out=stem),
        blocks=tuple(dataclasses.replace(b, expansion=e, out=o) for b, e, o in blocks),
    )


NARROWER = _narrower(WHOLE, 8, (8, 32, 48, 16), (8, 16, 16, 24))


@pytest.fixture(scope="module")
def variables():
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda x: (np.asarray(x) + 0.2 * rng.random(x.shape)).astype(np.float32),
        functional.init(WHOLE, jax.random.key(0)),
    )


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("keep", masks.KEEP)
def test_the_masked_network_computes_the_narrower_one(variables, train, keep):
    kept = masks.narrow(WHOLE, variables, masks.whole(WHOLE), NARROWER, keep=keep)
    masked = jax.tree.map(np.multiply, variables, masks.mask(WHOLE, kept))
    cut = masks.truncate(WHOLE, masked, NARROWER, kept)
    images = np.random.default_rng(1).standard_normal((4, 32, 32, 3)).astype(np.float32)
    run = jax.jit(
        lambda spec, v: functional.apply(spec, v, images, train=train, key=jax.random.key(2)),
        static_argnums=0,
    )
    (narrow, moved), (whole, stats) = run(NARROWER, cut), run(WHOLE, masked)
    np.testing.assert_allclose(whole, narrow, rtol=1e-5, atol=1e-5)
    assert np.std(narrow) > 0.01
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        masks.truncate(WHOLE, {"params": masked["params"], "batch_stats": stats}, NARROWER, kept),
        {"params": cut["params"], "batch_stats": moved},
    )


def test_the_mask_has_an_entry_for_every_weight_of_the_narrower_network(variables):
    kept = masks.narrow(WHOLE, variables, masks.whole(WHOLE), NARROWER)
    counted = jax.tree.map(np.sum, masks.mask(WHOLE, kept))
    expected = jax.tree.map(lambda x: x.size, functional.shapes(NARROWER))
    assert counted == expected


def test_the_channels_of_the_largest_norm_stay(variables):
    kernels = jax.tree.map(np.zeros_like, variables)
    params = kernels["params"]
    params["block2"]["expand"]["conv"]["kernel"][..., [3, 5, 40]] = 2
    # A bottleneck: what both of its layers produce counts.
    params["block2"]["project"]["conv"]["kernel"][..., 7] = 1
    params["block3"]["project"]["conv"]["kernel"][..., [7, 20]] = 0.5
    params["block3"]["se"]["reduce"]["kernel"][..., 9] = 1
    whole = masks.whole(WHOLE)
    kept = masks.narrow(WHOLE, kernels, whole, NARROWER)
    assert {3, 5, 40} < set(kept["block2/expansion"].tolist())
    assert {7, 20} < set(kept["block2"].tolist())
    assert 9 in kept["block3/squeezed"] and len(kept["block3/squeezed"]) == 16
    assert all((np.diff(found) > 0).all() for found in kept.values())
    # Of those that are left, not of all.
    once = _narrower(NARROWER, 8, (8, 16, 48, 8), (8, 8, 8, 24))
    again = masks.narrow(WHOLE, kernels, kept, once)
    assert all(set(again[name]) <= set(kept[name]) for name in kept)
    assert {3, 5, 40} < set(again["block2/expansion"].tolist())
    first = masks.narrow(WHOLE, kernels, whole, NARROWER, keep="first")
    assert first["block2/expansion"].tolist() == list(range(32))


@pytest.mark.parametrize("make", [mobilenet_v3_large, mobilenet_v3_small])
def test_the_widths_are_those_of_the_table(make):
    found = masks.widths(make())
    # SE, expansions and one width for each bottleneck.
    assert found["stem"] == 16
    for i, block in enumerate(make().blocks, start=1):
        assert found.get(f"block{i}/expansion") in (block.expansion, None)
        assert (f"block{i}/squeezed" in found) == (block.se is not None)


def test_other_layers_and_wider_ones_are_refused(variables):
    whole = masks.whole(WHOLE)
    longer = NARROWER.replace(blocks=(*NARROWER.blocks, NARROWER.blocks[2]))
    with pytest.raises(ValueError, match="narrower has other layers than whole"):
        masks.narrow(WHOLE, variables, whole, longer)
    kept = masks.narrow(WHOLE, variables, whole, NARROWER)
    with pytest.raises(ValueError, match="stem: got 16 channels, of which 8 are left"):
        masks.narrow(WHOLE, variables, kept, WHOLE)
    with pytest.raises(ValueError, match="keep: got 'last'"):
        masks.narrow(WHOLE, variables, whole, NARROWER, keep="last")
    with pytest.raises(ValueError, match="do not fit"):
        masks.truncate(WHOLE, variables, WHOLE, kept)
