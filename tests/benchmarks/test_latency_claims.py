"""The networks of the claims: each is another one, and the first of its claim the reference."""

import pytest

from benchmarks.latency_claims import CLAIMS
from mbv3_jax.arch import build, cost


@pytest.mark.parametrize("claim", CLAIMS)
def test_networks_of_a_claim_differ(claim):
    (first, published), *others = CLAIMS[claim].values()
    assert published is None and others
    specs = []
    for (name, options), _ in CLAIMS[claim].values():
        built = {key: value for key, value in options.items() if key != "precision"}
        specs.append((build(name, **built), options.get("precision")))
    assert all(a != b for i, a in enumerate(specs) for b in specs[:i])
    assert first[1].get("precision", "float32") == "float32"


def test_the_efficient_last_stage_and_stem_save_what_the_paper_says():
    madds = {
        name: cost.madds(build(network, **options)) / 1e6
        for claim in ("last stage", "stem")
        for name, ((network, options), _) in CLAIMS[claim].items()
    }
    assert madds["original"] - madds["efficient"] == pytest.approx(30, abs=5)
    assert madds["32 swish"] - madds["16 h-swish"] == pytest.approx(10, abs=5)
