from collections import Counter

import pytest

from benchmarks import collectives, interconnects, scaling
from benchmarks.collectives import BN_BACKWARD, BN_FORWARD, GRADIENTS, SCALARS
from mbv3_jax.arch import cost
from mbv3_jax.train.experiment import make_experiment

BATCH_NORMS = 8  # of the tiny network


def test_a_step_reduces_gradients_statistics_and_metrics_and_nothing_else(tiny_config):
    experiment = make_experiment(tiny_config())
    found = collectives.of_step(experiment)
    assert {c.kind for c in found} == {"all-reduce"}
    groups = collectives.bytes_by_group(found)
    assert groups == collectives.expected(experiment)
    params = cost.params(experiment.spec)
    assert groups[GRADIENTS] + groups[BN_BACKWARD] == 4 * params
    assert groups[BN_FORWARD] == groups[BN_BACKWARD] == 2 * 4 * (5 * 16 + 3 * 8)
    assert groups[SCALARS] == 2 * 4
    # Mean, then variance; the two sums of the backward pass at once.
    assert sum(c.batch_norm_bytes > 0 for c in found) == 3 * BATCH_NORMS


def test_no_layer_waits_for_statistics_per_device(tiny_config):
    experiment = make_experiment(tiny_config("--config.compute.batch_norm=per_device"))
    found = collectives.of_step(experiment)
    assert {c.kind for c in found} == {"all-reduce"}
    assert len(found) < BATCH_NORMS
    assert collectives.bytes_by_group(found) == collectives.expected(experiment)


@pytest.mark.parametrize("optimizer", ["rmsprop_tf", "lamb"])
def test_a_sharded_optimizer_adds_a_gathering_of_parameters_and_nothing_else(
    tiny_config, optimizer
):
    overrides = ["--config.compute.shard_optimizer=True", f"--config.optimizer.name={optimizer}"]
    experiment = make_experiment(tiny_config(*overrides))
    found = collectives.of_step(experiment)
    assert {c.kind for c in found} == {"all-reduce", "all-gather"}
    groups, want = collectives.bytes_by_group(found), collectives.expected(experiment)
    if optimizer == "lamb":  # two norms of every kernel on top
        assert groups.pop(SCALARS) > want.pop(SCALARS)
    assert groups == want
    assert groups["all-gather"] == 4 * cost.params(experiment.spec)  # all can be cut in two


def test_read_takes_joined_tensors_apart():
    (one, two, three) = collectives.read(
        """
  %a = f32[8]{0} all-reduce(%x), metadata={op_name="jit(step)/jvp()/reduce_sum" id=1}
  %b = (f32[3,3,1,16]{3,2,1,0}, f32[16]{0}, /*index=2*/bf16[]) all-reduce(%x, %y, /*index=2*/%z),
  ROOT %c = f32[4,8]{1,0} all-gather(%w), dimensions={0}
  %d = f32[16]{0} fusion(%all-reduce.3), calls=%e
""".replace("%z),", '%z), metadata={op_name="jit(step)/(transpose(jvp())/a:jvp()/b:jvp()/c)"}')
    )
    assert one.bytes_by_group() == Counter({BN_FORWARD: 32})
    assert two.bytes_by_group() == Counter({GRADIENTS: 576, BN_FORWARD: 64, SCALARS: 2})
    assert two.bytes == 642
    assert two.batch_norm_bytes == 64
    assert (three.kind, three.bytes_by_group()) == ("all-gather", Counter({"all-gather": 128}))
    with pytest.raises(ValueError, match="f8e4m3"):
        collectives.read("%a = f8e4m3[8]{0} all-reduce(%x)")


def test_times_follow_from_the_published_figures():
    v5e, v4, h100 = interconnects.INTERCONNECTS
    # 8 chips in a mesh: half of 200 GB/s; 1 + 3 hops there and back.
    assert v5e.bandwidth_ms("all-reduce", 8 * 10**6, 8) == pytest.approx(2 * 7e6 / 100e6)
    assert v5e.latency_ms("all-reduce", 8) == pytest.approx(8e-3)
    assert v5e.bandwidth_ms("all-gather", 256 * 10**6, 256) == pytest.approx(255e6 / 200e6)
    assert v5e.latency_ms("all-gather", 256) == pytest.approx(16e-3)
    assert v4.latency_ms("all-reduce", 256) == pytest.approx(2 * (2 + 4 + 4) * 1e-3)
    # Within a server, and with 1/8 of the bytes between four of them.
    within, between = 2 * 7e6 / 450e6, 2 * 3 / 4 * 1e6 / 50e6
    assert h100.bandwidth_ms("all-reduce", 8 * 10**6, 8) == pytest.approx(within)
    assert h100.bandwidth_ms("all-reduce", 8 * 10**6, 32) == pytest.approx(within + between)
    assert h100.latency_ms("all-reduce", 32) == pytest.approx(6.8e-3 + 2 * (7 * 0.6 + 10) / 1e3)


def test_only_batch_norm_is_waited_for():
    found = [
        collectives.Collective("all-reduce", (("f32", (64,)),), "jit(step)/jvp()/reduce_sum"),
        collectives.Collective(
            "all-reduce", (("f32", (1000, 1000)),), "jit(step)/transpose(jvp())"
        ),
    ]
    table = scaling.predicted(found, True, 10.0)
    all_ms, waited, step, hidden = (next(iter(c.cells)) for c in table.columns[4:])
    assert float(waited) == pytest.approx(0.008, abs=1e-3)  # latency alone
    assert float(all_ms) == pytest.approx(0.016 + 2 * 7 / 8 * 4e6 / 100e6, abs=2e-3)
    assert float(step) == pytest.approx(10 + float(all_ms), abs=1e-3)
    assert float(hidden) == pytest.approx(10 + float(waited), abs=1e-3)
    assert next(iter(scaling.predicted(found, False, None).columns[5].cells)) == "0.000"


@pytest.mark.parametrize("flag", ["--devices=1", "--step-ms=0", "--step-ms=nan"])
def test_flags_out_of_range_are_refused(flag, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["scaling", flag])
    with pytest.raises(SystemExit, match="2"):
        scaling.main()
    assert "expected" in capsys.readouterr().err
