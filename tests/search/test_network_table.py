"""Tables of trained networks: what is read back, what is refused, and Accel-NASBench's archive."""

import dataclasses
import gzip
import hashlib
import io
import json
import math
import tarfile

import numpy as np
import pytest

from mbv3_jax.arch import cost
from mbv3_jax.arch.spec import spec_to_json
from mbv3_jax.cli.main import main
from mbv3_jax.core.errors import RunError, UsageError
from mbv3_jax.search import accel_nasbench
from mbv3_jax.search.network_table import (
    Column,
    make_network_table,
    open_network_table,
    summarise,
    write_network_table,
)
from mbv3_jax.search.presets import preset
from mbv3_jax.search.space import Space, Stage

TOY = preset("toy")
# Expansion, kernel, depth and squeeze-and-excite of the seven stages of three networks, and their
# millions of parameters as Accel-NASBench publishes them.
PUBLISHED = [
    ((1, 6, 6, 4, 6, 1, 1), (5, 3, 5, 3, 3, 3, 5), (1, 1, 1, 3, 1, 2, 1), "0000000", 2.074952),
    ((1, 4, 4, 4, 1, 4, 4), (5, 5, 3, 3, 5, 5, 5), (3, 3, 3, 2, 2, 1, 1), "1001011", 2.54093),
    ((4, 6, 4, 6, 4, 6, 4), (5, 3, 3, 5, 5, 3, 5), (1, 1, 2, 2, 3, 4, 2), "1001000", 5.043038),
]


def columns(**values):
    made = {
        "top1": Column(kind="accuracy", unit="%", values=((50.0, 52.0), (60.0,), ())),
        "speed": Column(
            kind="cost", unit="images/s", higher_is_better=True, values=((100.0,), (), (25.0,))
        ),
        "time": Column(
            kind="cost", unit="ms", higher_is_better=False, values=((3.0,), (2.0,), (1.0,))
        ),
    }
    return made | values


def table(space: Space | None = TOY, networks=None):
    points = TOY.sample(np.random.default_rng(0), 3)
    if space is not TOY and networks is None:
        networks = [TOY.to_spec(p, name=f"n{i}") for i, p in enumerate(points)]
    return make_network_table(
        name="t",
        source="s",
        license="CC0-1.0",
        space=space,
        networks=networks or points,
        columns=columns(),
    )


OWN = Space(name="own", base=TOY.base, stages=(Stage(out=(16, 24), kernel=(3, 5)),), last_factor=2)


@pytest.mark.parametrize("space", [TOY, None])
def test_what_is_written_is_read_back(tmp_path, space):
    write_network_table(tmp_path / "t.json", table(space))
    assert open_network_table(tmp_path / "t.json") == table(space)


def test_a_space_of_ones_own_is_written_with_it(tmp_path):
    written = dataclasses.replace(
        table(), space=OWN, networks=tuple(OWN.sample(np.random.default_rng(0), 3))
    )
    write_network_table(tmp_path / "t.json", written)
    assert open_network_table(tmp_path / "t.json") == written


def test_means_are_fractions_and_less_is_better():
    made = columns()
    np.testing.assert_allclose(made["top1"].means(), [0.51, 0.6, math.nan])
    np.testing.assert_allclose(made["speed"].means(), [0.01, math.nan, 0.04])
    np.testing.assert_allclose(made["time"].means(), [3, 2, 1])


def test_summary():
    top1, speed, time = summarise(table())
    assert (top1.networks, top1.repeated, top1.lowest, top1.highest) == (2, 1, 51.0, 60.0)
    assert (speed.networks, speed.repeated) == (2, 0)
    madds = [cost.madds(table().spec(i)) for i in range(3)]
    order = np.argsort(np.argsort(madds))
    assert time.spearman == pytest.approx(np.corrcoef(order, [2, 1, 0])[0, 1])


def head(**changes):
    """A table of two networks of the space `toy`, with changes at the top."""
    first = {d.name: d.choices[0] for d in TOY.decisions}
    rows = [{"choices": first, "top1": 50.0, "ms": 3}]
    rows.append({"choices": first | {"stage1/kernel": 5}, "top1": [60.0, 61.0], "ms": None})
    tree = {"format": "mbv3_jax network table", "version": 1, "name": "t", "source": "s"}
    tree |= {"license": "CC0-1.0", "space": "toy", "networks": rows}
    tree["columns"] = {
        "top1": {"kind": "accuracy", "unit": "%"},
        "ms": {"kind": "cost", "unit": "ms"},
    }
    return tree | changes


def with_row(**changes):
    tree = head()
    tree["networks"][1] |= changes
    return tree


def without(key):
    tree = head()
    del tree[key]
    return tree


def with_choice(name, value):
    return with_row(choices={d.name: d.choices[0] for d in TOY.decisions} | {name: value})


FIRST = head()["networks"][0]["choices"]


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ([], 'not a table of networks; one begins with "format"'),
        (head(format="a table"), "not a table of networks"),
        (head(version=2), "version: got 2, this program reads 1"),
        (without("license"), "license is missing"),
        (without("columns"), "columns is missing"),
        (head(licence="x"), "unknown 'licence'; expected format"),
        (head(space="toys"), "space: got 'toys', expected one of"),
        (head(space={"name": "x", "base": "mobilenet_v3_small"}), "space: stages is missing"),
        (head(networks=[]), "got 0 networks"),
        (head(networks="rows.csv"), "rows.csv: No such file"),
        (head(columns={"top1": {"kind": "speed"}}), "columns.top1.kind: got 'speed'"),
        (head(columns={"top1": {"kind": "accuracy", "unit": "points"}}), "unknown 'ms'"),
        (with_row(fps=3), "row 2: unknown 'fps'"),
        (with_row(top1=101.0), "row 2, top1: got 101.0, expected a number at least 0 and at most"),
        (with_row(ms=-1), "row 2, ms: got -1.0, expected a number above 0"),
        (with_row(ms=0), "row 2, ms: got 0.0"),
        (with_row(ms=math.nan), "row 2, ms: got nan"),
        (with_row(ms="fast"), "row 2, ms: got 'fast', expected a number"),
        (with_row(choices={}), "row 2: stage1/depth is missing"),
        (with_choice("stage1/kernel", 7), r"row 2, stage1/kernel: got 7, expected one of 3, 5"),
        (with_choice("stage9/kernel", 3), "row 2, choices: unknown 'stage9/kernel'"),
        (with_choice("stage2/se", 0), "row 2, stage2/se: got '0'"),
        (
            with_row(choices=FIRST, top1=51.0),
            "row 1 and row 2 are the same network, but top1 is 50 and 51",
        ),
    ],
)
def test_what_is_refused(tmp_path, tree, message):
    path = tmp_path / "t.json"
    path.write_text(json.dumps(tree))
    with pytest.raises(UsageError) as caught:
        open_network_table(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_equal_rows_of_a_network_are_taken_once(tmp_path):
    (tmp_path / "t.json").write_text(json.dumps(with_row(choices=FIRST, top1=50.0, ms=3)))
    assert len(open_network_table(tmp_path / "t.json").networks) == 1


PER_BLOCK = Space(
    name="own",
    base=TOY.base,
    stages=(Stage(out=(16,), depth=(1, 2), kernel=(3, 5), per_block=("kernel",)),),
)


@pytest.mark.parametrize("unused", [{}, {"stage1/block2/kernel": 5}])
def test_a_choice_that_makes_no_difference_makes_no_network(tmp_path, unused):
    """A network of one block is the same whatever is said of its second."""
    one = {"stage1/depth": 1, "stage1/block1/kernel": 5}
    write_network_table(
        tmp_path / "t.json",
        dataclasses.replace(table(), space=PER_BLOCK, networks=tuple((d, 0, 0) for d in (0, 1, 0))),
    )
    tree = json.loads((tmp_path / "t.json").read_text())
    tree["networks"] = [
        {"choices": choices, "top1": 50.0, "speed": 1, "time": 1} for choices in (one, one | unused)
    ]
    (tmp_path / "t.json").write_text(json.dumps(tree))
    assert open_network_table(tmp_path / "t.json").networks == ((0, 1, 0),)


def test_a_network_without_a_space_is_known_by_what_it_is_not_by_its_name():
    spec = TOY.to_spec(TOY.sample(np.random.default_rng(0), 1)[0])
    with pytest.raises(ValueError, match="row 1 and row 3 are the same network, but top1 is 50"):
        table(None, [spec, spec.replace(resolution=64), spec.replace(name="another")])


def test_a_column_without_any_value_is_refused(tmp_path):
    tree = head()
    tree["networks"][0]["ms"] = None
    (tmp_path / "t.json").write_text(json.dumps(tree))
    with pytest.raises(UsageError, match=r"columns\.ms: no network has a value"):
        open_network_table(tmp_path / "t.json")


def csv_of(tree):
    names = [*FIRST, "top1", "ms"]
    lines = [",".join(names)]
    for row in tree["networks"]:
        top1 = row["top1"] if isinstance(row["top1"], list) else [row["top1"]]
        cells = [*row["choices"].values(), " ".join(map(str, top1)), row["ms"] or ""]
        lines.append(",".join(map(str, cells)))
    return lines


def test_rows_in_a_csv_file_are_those_of_the_json(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(head()))
    (tmp_path / "b.json").write_text(json.dumps(head(networks="rows.csv")))
    (tmp_path / "rows.csv").write_text("\n".join(csv_of(head())))
    assert open_network_table(tmp_path / "a.json") == open_network_table(tmp_path / "b.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: [lines[0].replace("ms", "s"), *lines[1:]], "rows.csv: ms is missing"),
        (lambda lines: [*lines, "1,2"], "rows.csv, line 4: expected 9 cells"),
        (lambda lines: [lines[0], lines[1].replace("50.0", "x")], "line 2, top1: got 'x'"),
        (lambda lines: [lines[0], lines[1].replace("8", "9", 1)], "line 2, stage1/width"),
    ],
)
def test_what_a_csv_file_cannot_hold(tmp_path, change, message):
    (tmp_path / "t.json").write_text(json.dumps(head(networks="rows.csv")))
    (tmp_path / "rows.csv").write_text("\n".join(change(csv_of(head()))))
    with pytest.raises(UsageError) as caught:
        open_network_table(tmp_path / "t.json")
    assert message in str(caught.value)


def test_a_spec_cell_that_is_not_one_names_its_row(tmp_path):
    tree = head(networks="rows.csv", columns={"ms": {"kind": "cost", "unit": "ms"}}, space=None)
    (tmp_path / "t.json").write_text(json.dumps(tree))
    (tmp_path / "rows.csv").write_text("spec,ms\n{,3\n")
    with pytest.raises(UsageError, match=r"rows\.csv, line 2: spec"):
        open_network_table(tmp_path / "t.json")


def architecture(e, k, l, se):  # noqa: E741 (the names of the archive)
    keys = {"e": e, "k": k, "l": l, "se": [s == "1" for s in se]}
    return {f"block{i}_{key}": values[i] for key, values in keys.items() for i in range(7)}


@pytest.mark.parametrize("network", PUBLISHED)
def test_parameters_are_those_that_accel_nasbench_publishes(network):
    *rows, millions = network
    names, space = architecture(*rows), preset("accel_nasbench")
    keys = {"depth": "l", "kernel": "k", "expansion": "e", "se": "se"}
    point = [d.choices.index(names[f"block{d.stage}_{keys[d.what]}"]) for d in space.decisions]
    assert cost.params(space.to_spec(point)) == round(millions * 1e6)


def test_the_space_of_accel_nasbench_has_its_strides_and_padding():
    """Neither changes the parameters, by which the test above recognises a network."""
    space = preset("accel_nasbench")
    assert [stage.stride for stage in space.stages] == [1, 2, 2, 2, 1, 2, 1]
    assert space.base.padding == "symmetric"


def archive(results) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, content in results.items():
            data = json.dumps(content).encode()
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return gzip.compress(out.getvalue(), mtime=0)


def results():
    made = {"x/README": "nothing"}
    for i, (*rows, _) in enumerate([*PUBLISHED, PUBLISHED[0]]):
        speeds = {}
        for device, field, _unit in accel_nasbench._COSTS.values():
            speeds.setdefault(device, {})[field] = 10.0 * (i + 1)
        speeds["throughput_tpuv3"]["throughput_mean"] = None if i == 1 else 5.0
        made[f"x/result_{i}.json"] = {
            "architecture": architecture(*rows),
            "metrics": {"val_top1": 50.0 + i},
            "platform_perf": speeds,
        }
    return made


def test_the_archive_becomes_a_table():
    made = accel_nasbench.convert(archive(results()))
    assert (len(made.networks), made.license) == (3, "Apache-2.0")
    assert made.columns["top1"].values == ((50.0, 53.0), (51.0,), (52.0,))
    assert made.columns["tpuv3_throughput"].values == ((5.0, 5.0), (), (5.0,))
    np.testing.assert_allclose(made.columns["a100_throughput"].means(), [1 / 25, 1 / 20, 1 / 30])
    assert made.columns["vck190_latency"].values == ((10.0, 40.0), (20.0,), (30.0,))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "EOFError|ReadError"),
        (b"text", "BadGzipFile"),
        (archive(results())[:200], "EOFError"),
        (archive({"x/result_0.json": {}}), "KeyError: 'architecture'"),
        (archive({"x/result_0.json": "a" * 20_000}), "x/result_0.json has 20002 bytes"),
        (archive({}), "got 0 networks"),
    ],
    ids=["empty", "text", "cut", "no fields", "large member", "no members"],
)
def test_what_is_not_the_archive(data, message):
    with pytest.raises(RunError, match=f"not an archive of Accel-NASBench: .*({message})"):
        accel_nasbench.convert(data)


def test_a_download_is_checked(tmp_path, monkeypatch):
    data = archive(results())
    (tmp_path / "a.tar.gz").write_bytes(data)
    monkeypatch.setattr(accel_nasbench, "URL", (tmp_path / "a.tar.gz").as_uri())
    monkeypatch.setattr(accel_nasbench, "SHA256", hashlib.sha256(data).hexdigest())
    assert accel_nasbench.fetch() == data
    (tmp_path / "a.tar.gz").write_bytes(data[:-1])
    with pytest.raises(RunError, match=f"{len(data) - 1} bytes with SHA-256 .* --archive=FILE"):
        accel_nasbench.fetch()
    (tmp_path / "a.tar.gz").unlink()
    with pytest.raises(RunError, match=r"cannot read file:.*a.tar.gz: .* --archive=FILE"):
        accel_nasbench.fetch()


def test_an_archive_that_unpacks_to_too_much_is_refused(monkeypatch):
    monkeypatch.setattr(accel_nasbench, "_MAX_UNPACKED", 1000)
    with pytest.raises(RunError, match="unpacks to more than 1000 bytes"):
        accel_nasbench.convert(archive(results()))


def test_the_command_converts_and_describes(tmp_path, monkeypatch, capsys):
    data = archive(results())
    file, out = tmp_path / "a.tar.gz", tmp_path / "out.json"
    file.write_bytes(data)
    command = ["search", "table", "accel_nasbench", f"--archive={file}", f"--out={out}"]
    assert main(command) == 1
    assert "is not the published archive" in capsys.readouterr().err
    assert not out.exists()
    monkeypatch.setattr(accel_nasbench, "SHA256", hashlib.sha256(data).hexdigest())
    assert main(command) in (None, 0)
    converted = capsys.readouterr().out
    assert open_network_table(out) == accel_nasbench.convert(data)
    assert main(["search", "table", str(out)]) in (None, 0)
    assert capsys.readouterr().out == converted
    assert "3 networks of the space accel_nasbench" in converted


def test_the_command_refuses_what_it_does_not_use(tmp_path, capsys):
    (tmp_path / "t.json").write_text(json.dumps(head()))
    assert main(["search", "table", str(tmp_path / "t.json"), "--out=x.json"]) == 2
    assert "only for the table accel_nasbench" in capsys.readouterr().err
    assert main(["search", "table", str(tmp_path / "none.json")]) == 2
    assert "none.json: there is no such file" in capsys.readouterr().err


def test_a_spec_in_a_row(tmp_path):
    tree = head(space=None)
    for i, row in enumerate(tree["networks"]):
        del row["choices"]
        spec = TOY.to_spec(TOY.sample(np.random.default_rng(i), 1)[0])
        row["spec"] = json.loads(spec_to_json(spec))
    (tmp_path / "t.json").write_text(json.dumps(tree))
    made = open_network_table(tmp_path / "t.json")
    assert made.spec(1) == TOY.to_spec(TOY.sample(np.random.default_rng(1), 1)[0])
