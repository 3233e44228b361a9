"""Tables of pieces: what is in them, kept, refused; the model that is fitted on them."""

import itertools
import json
import os

import numpy as np
import pytest

from mbv3_jax import __main__
from mbv3_jax.arch import build, cost
from mbv3_jax.core.errors import UsageError
from mbv3_jax.core.packages import installed
from mbv3_jax.latency import cost_model
from mbv3_jax.latency import table as latency_table
from mbv3_jax.latency.cost_model import calibrate
from mbv3_jax.latency.measure import Effort, Timing
from mbv3_jax.latency.pieces import Piece, network, pieces
from mbv3_jax.latency.table import (
    TARGETS,
    Table,
    Whole,
    fill_table,
    open_table,
    read_table,
    table_from_csv,
    table_to_csv,
    unique,
)
from mbv3_jax.search.objective import Costs
from mbv3_jax.search.presets import preset

NAMES = ("mobilenet_v3_large", "mobilenet_v3_small", "mobilenet_v2", "mnasnet_a1")
QUICK = Effort(warmup_seconds=0, seconds=0.001, runs=2, turn_seconds=0.0005)


def made(specs, scale=1.0) -> Table:
    """A table of a machine that takes 1 ms for a million multiply-adds, and 1 us for a piece."""
    found = {
        p: scale * (1e-3 + 1e-6 * sum(layer.madds for layer in layers_of(p))) for p in unique(specs)
    }
    return Table("litert", 1, {"cpu": "made"}, {"made": "1"}, found)


def layers_of(piece: Piece):
    """The layers of a piece, as arch.cost counts them in the network made for it."""
    spec = network(piece)
    spec = spec.replace(resolution=max(spec.resolution, piece.size))
    parts = {"stem": ("stem",), "block": ("block1",), "tail": ("last", "head", "logits")}
    return [layer for layer in cost.layers(spec) if layer.part in parts[piece.kind]]


@pytest.mark.parametrize("name", NAMES)
def test_pieces_are_the_network(name):
    spec = build(name, resolution=(96, 64))
    found = pieces(spec)
    assert [p.kind for p in found] == ["stem", *["block"] * len(spec.blocks), "tail"]
    assert all(a.out_sizes == b.sizes and a.out == b.inputs for a, b in itertools.pairwise(found))
    # The networks that pieces are measured in hold the layers of the network they are from.
    parts = ["stem", *(f"block{i + 1}" for i in range(len(spec.blocks))), "tail"]
    tail = ("last", "head", "logits")
    for part, piece in zip(parts, found, strict=True):
        own = [la for la in cost.layers(spec) if la.part in (tail if part == "tail" else (part,))]
        assert sum(la.params for la in layers_of(piece)) == sum(la.params for la in own)
    # And the counts of `work` are those of arch.cost.
    madds = ("conv", "expand", "project", "depthwise3", "depthwise5", "depthwise7", "dense")
    counted = sum(cost_model.work(p)[k] for p in found for k in madds)
    assert counted == pytest.approx(cost.madds(spec) / 1e6, rel=1e-9)


def test_equal_pieces_are_one():
    spec = build("mobilenet_v3_small")
    # Blocks 5 and 6 are alike, and so are 10 and 11.
    assert (len(pieces(spec)), len(unique([spec, spec]))) == (13, 11)


def test_predictions_are_sums_of_entries():
    specs = [build(name, resolution=64) for name in NAMES]
    table = made(specs)
    fitted = cost_model.fit(table)
    for spec in specs:
        assert fitted.covered(spec) == 1
        wanted = sum(table.pieces[p] for p in pieces(spec))
        assert fitted(spec) == pytest.approx(wanted, rel=1e-12)


def test_a_factor_and_a_power_are_found():
    space = preset("small").replace(resolution=64)
    specs = [space.to_spec(p) for p in space.sample(np.random.default_rng(0), 8)]
    table = made(specs)
    sums = cost_model.fit(table).pieces_ms
    table.wholes = [Whole(s, 1.2 * sums(s) ** 1.1, False) for s in specs]
    fitted = cost_model.fit(table)
    assert (fitted.whole.factor, fitted.whole.power) == pytest.approx((1.2, 1.1), rel=1e-6)
    assert fitted(specs[0]) == pytest.approx(table.wholes[0].ms)


def test_held_out_networks_do_not_change_the_fit():
    space = preset("small").replace(resolution=64)
    specs = [space.to_spec(p) for p in space.sample(np.random.default_rng(0), 8)]
    table = made(specs)
    sums = cost_model.fit(table).pieces_ms
    fitted = [Whole(s, 1.2 * sums(s) ** 1.1, False) for s in specs[:4]]
    table.wholes = fitted
    alone = cost_model.fit(table)
    table.wholes = [*fitted, *(Whole(s, 50 / sums(s), True) for s in specs[4:])]
    both = cost_model.fit(table)
    assert both.whole == alone.whole and both(specs[5]) == alone(specs[5])
    assert cost_model.judge(both, table).networks == 4


def test_pieces_that_the_table_lacks_are_predicted():
    space = preset("small").replace(resolution=64)
    specs = [space.to_spec(p) for p in space.sample(np.random.default_rng(0), 20)]
    other = [space.to_spec(p) for p in space.sample(np.random.default_rng(1), 10)]
    table = made(specs)
    fitted = cost_model.fit(table)
    true = made(other).pieces
    sums = [sum(true[p] for p in pieces(s)) for s in other]
    assert max(fitted.covered(s) for s in other) < 1
    table.wholes = [Whole(s, ms, True) for s, ms in zip(other, sums, strict=True)]
    found = cost_model.judge(fitted, table)
    assert found.networks == 10 and found.mape < 5 and found.spearman > 0.95
    # A search takes it as a cost.
    points = space.sample(np.random.default_rng(2), 3)
    costs = Costs(space, {"latency_ms": fitted})(points)
    assert list(costs["latency_ms"]) == [fitted(space.to_spec(p)) for p in points]


def test_a_calibration_finds_the_factor_and_needs_two_networks():
    assert calibrate([1, 2, 3], [2, 4, 6]).factor == pytest.approx(2)
    with pytest.raises(ValueError, match="two or more"):
        calibrate([1], [1])


def test_errors():
    found = cost_model.errors([1.1, 1.8, 4.0], [1, 2, 4])
    assert found.mape == pytest.approx(20 / 3)
    assert (found.low, found.high) == pytest.approx((-10, 10))
    assert (found.spearman, found.kendall) == (1, 1)
    assert cost_model.errors([3, 2, 1], [1, 2, 3]).kendall == -1
    with pytest.raises(ValueError, match="at least one"):
        cost_model.errors([], [])


def test_files_and_csv(tmp_path):
    specs = [build(name, resolution=64) for name in NAMES]
    table, path = made(specs), tmp_path / "table.json"
    table.wholes = [Whole(specs[0], 1.5, False), Whole(specs[1], 2.5, True)]
    table.write(path)
    assert read_table(path) == table
    out, back = tmp_path / "table.csv", tmp_path / "back.json"
    assert __main__.main(["latency", "csv", str(path), f"--out={out}"]) == 0
    assert table_from_csv(out.read_text()) == table.pieces
    assert __main__.main(["latency", "csv", str(out), f"--out={back}"]) == 2  # of which machine?
    assert __main__.main(["latency", "csv", str(out), f"--out={back}", "--machine=P"]) == 0
    assert read_table(back) == Table("litert", 1, {"cpu": "P"}, {}, table.pieces)
    # What was not measured is left out; what is wrong is said.
    lines = table_to_csv({p: None for p in table.pieces}).splitlines()
    assert table_from_csv("\n".join(lines)) == {}
    with pytest.raises(UsageError, match="line 2: ms: got -1"):
        table_from_csv("\n".join([lines[0], lines[1] + "-1"]))
    with pytest.raises(UsageError, match="no column ms"):
        table_from_csv(lines[0].removesuffix(",ms"))
    newer = path.read_text().replace('"version": 1', '"version": 2')
    back.write_text(newer)
    with pytest.raises(UsageError, match="newer version of mbv3_jax, in format 2"):
        read_table(back)
    for text in ("{}", "[]", path.read_text().replace('"unit": "ms"', '"unit": "us"')):
        back.write_text(text)
        with pytest.raises(UsageError, match=str(back)):
            read_table(back)


@pytest.mark.parametrize("target", TARGETS)
def test_measuring_goes_on_and_refuses_to_mix(target, tmp_path, capsys):
    packages = {"litert": ("litert_converter", "ai_edge_litert"), "xla": ("jax",)}[target]
    if not (installed(*packages) or os.environ.get("MBV3_REQUIRE_PEERS")):
        pytest.skip("not installed")
    space, path = preset("toy"), tmp_path / "table.json"
    specs = [space.to_spec(p) for p in space.sample(np.random.default_rng(0), 2)]
    wanted = unique(specs)[:3]
    table = open_table(path, target, 1)
    fill_table(path, table, tmp_path, wanted[:2], effort=QUICK)
    first = read_table(path).pieces
    assert set(first) == set(wanted[:2]) and all(ms > 0 for ms in first.values())
    seen = []
    table = open_table(path, target, 1)
    fill_table(
        path,
        table,
        tmp_path,
        wanted,
        fitted=specs[:1],
        effort=QUICK,
        note=lambda done, of: seen.append((done, of)),
    )
    assert seen == [(2, 2)]  # a piece and a network: the first two pieces are not measured again
    again = read_table(path)
    assert set(again.pieces) == set(wanted) and first.items() <= again.pieces.items()
    assert [w.spec for w in again.wholes] == specs[:1]
    tree = json.loads(path.read_text())
    assert tree["unit"] == "ms" and tree["machine"] and tree["versions"]
    path.write_text(json.dumps(tree | {"machine": {"cpu": "another"}}))
    with pytest.raises(UsageError, match=r"is for machine .*another"):
        open_table(path, target, 1)
    with pytest.raises(UsageError, match="threads"):
        path.write_text(json.dumps(tree))
        open_table(path, target, 2)


def test_a_table_holds_what_an_undisturbed_machine_takes(tmp_path, monkeypatch):
    """The lower quartile: others may use the machine for a part of the time."""
    rest = {"mad": 1, "least": 1, "runs": 9, "turns": (), "threads": 1, "versions": {}}
    disturbed = Timing(ms=5, low=3, high=9, runtime="xla", profile=None, when="", **rest)
    monkeypatch.setattr(
        latency_table, "measure_files", lambda models, **_: [disturbed] * len(models)
    )
    spec = build("mobilenet_v3_small", resolution=64)
    table = open_table(tmp_path / "table.json", "xla", 1)
    fill_table(tmp_path / "table.json", table, tmp_path, unique([spec])[:1], fitted=[spec])
    assert [*table.pieces.values(), *(w.ms for w in table.wholes)] == [3, 3]


def test_the_command_needs_a_space(tmp_path):
    arguments = ["latency", "measure", f"--out={tmp_path / 't.json'}"]
    assert __main__.main([*arguments, "--space=none"]) == 2
    assert __main__.main([*arguments, "--space=toy", "--only-files"]) == 2


def test_the_width_is_in_a_table_only_where_it_is_another_than_the_height():
    for resolution in (64, (64, 96)):
        found = dict.fromkeys(pieces(build("mobilenet_v3_small", resolution=resolution)), 0.5)
        text = table_to_csv(found)
        assert ("width" in text.splitlines()[0].split(",")) == (resolution != 64)
        assert table_from_csv(text) == found
