"""Whatever stands in a JSON file, each of its readers ends well, or with one line that names it."""

import contextlib
import json
import shutil
import types
import zipfile

import old_files
import pytest
import tiny_v1
from rich.console import Console

from mbv3_jax.arch.spec import spec_to_json
from mbv3_jax.cli.main import main
from mbv3_jax.core.errors import RunError, UsageError
from mbv3_jax.data.prepare import convert
from mbv3_jax.data.source import NotFound
from mbv3_jax.export import metadata
from mbv3_jax.interop.class_names import find_class_names
from mbv3_jax.run.checkpoint import Checkpoints
from mbv3_jax.run.folder import claim_folder, read_config, read_summary
from mbv3_jax.run.metrics import Metrics
from mbv3_jax.run.model import load_model
from mbv3_jax.search import candidates
from mbv3_jax.search.netadapt.log import Log
from mbv3_jax.search.network_table import FORMAT, open_network_table
from mbv3_jax.search.program import Search
from mbv3_jax.search.selection import by_surrogate
from mbv3_jax.search.settings import read_search_config
from mbv3_jax.sweep import state
from mbv3_jax.train.plan import read_plan

DAMAGE = {
    "a number": b"5",
    "a list": b"[]",
    "an object": b"{}",
    "a list of numbers": b"[1]",
    "another object": b'{"seed": [], "trials": 5, "found": 3, "settings": 1, "version": "x"}',
    "a string": b'"x"',
    "null": b"null",
    "100,000 lists": b"[" * 10**5,
    "300 lists": b"[" * 300 + b"]" * 300,
    "400 digits": b"1" + b"0" * 400,
    "400 digits in it": b'{"version": 1%s}' % (b"0" * 400),
    "5,000 digits": b"1" + b"0" * 5000,
    "no UTF-8": b'{"a":\n"\xff"}',
    "half a character": rb'{"a": "\ud800"}',
    "nothing": b"",
    "half": None,
}
NAMES = [f"class{i}" for i in range(10)]
QUIET = Console(quiet=True)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(candidates, "_PATIENCE", 0)
    return tmp_path


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    """unpacked(name) -> where NAME.tar.xz has been unpacked, once for all tests."""
    made = {}

    def unpack(name):
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name)
            old_files.unpack(name, made[name])
        return made[name]

    return unpack


def tool(*arguments):
    """A reader that is a command; the others return None and raise what commands print."""
    return lambda: main(list(arguments))


def resumes(folder, argument="run"):
    """What training does in a folder before the first step."""

    def run():
        config = tiny_v1.get_config(argument)
        plan = read_plan(config, folder)
        with claim_folder(folder, config, plan.spec, NAMES):
            if read_summary(folder) is None:
                Metrics(folder, resume_step=48, keep_best=True).close()

    return run


def evaluates(folder):
    def run():
        config = read_config(folder)
        read_plan(config, folder)
        with contextlib.closing(Checkpoints(folder, read_only=True)) as checkpoints:
            checkpoints.description(checkpoints.find("best" if config.keep_best else None))

    return run


def of_finished(here):
    run = here / "runs" / "finished"
    return [
        tool("report", str(run), "--no-latency"),
        tool("report", str(run), "--no-latency", "--format=json"),
        tool("report", "--compare", str(run), str(run)),
        resumes(run),
    ]


def with_checkpoints(here):
    run = here / "runs" / "finished"
    return [evaluates(run), lambda: load_model(run)]


def of_pictures(here):
    run = here / "runs" / "finished"
    what = ("confusion", "mistakes")
    return [tool("plot", f"--run={run}", f"--what={w}", f"--out={here}/a.png") for w in what]


def of_import(here):
    return [lambda: load_model(here / "imported")]


def of_int8(here):
    run = here / "runs" / "int8"
    return [lambda: read_plan(read_config(run), run)]


def of_sweep(here):
    folder = here / "sweep"
    job = types.SimpleNamespace(
        name="plain", folder=folder / "plain", group="plain", config=tiny_v1.trial(), overrides={}
    )
    return [
        tool("report", str(folder), "--no-latency"),
        lambda: state.Record(folder, [], sweep="x", executor="local").save(),
        lambda: state.write_results(folder, state.rows([job])),
    ]


def of_search(here):
    folder = here / "search"
    shutil.copy(old_files.HERE / "toy.json", here)

    def stages():
        search = Search(tiny_v1.search(), folder, QUIET)
        problem = types.SimpleNamespace(space=search.space, rewards={"one": None})
        pricing = types.SimpleNamespace(
            targets={"one": {"ms": 1.0}}, problem=types.SimpleNamespace(cost_name="ms"), cost=len
        )
        return search, problem, pricing

    def adapts():
        search, _, pricing = stages()
        with search.config.unlocked():
            search.config.netadapt.enabled = False
        search.adapt(pricing, "one")

    def chooses():
        search, problem, _ = stages()
        by_surrogate(search.config, problem, object(), folder, QUIET)

    def works():
        ended = iter([False, True])
        brief = read_search_config(folder).brief
        candidates.work(brief, folder / "candidates", lambda: next(ended), QUIET)

    return {
        "search.json": [tool("report", str(folder)), lambda: stages()[0].run()],
        "found.json": [lambda: stages()[0].choose(None)],
        "one_found.json": [adapts],
        "rounds.json": [chooses],
        "candidates/wanted.json": [works],
        "config.json": [tool("report", str(folder)), works],
        "runs/one/summary.json": [lambda: candidates._top1(folder / "runs" / "one")],
    }


def of_netadapt(here):
    folder = here / "netadapt"
    settings = {"config": tiny_v1.run().to_dict()}
    return [lambda: Log(folder, settings).network(tiny_v1.SPEC)]


CASES = [
    *(
        ("finished", f"runs/finished/{name}", of_finished)
        for name in ("config.json", "spec.json", "summary.json", "classes.json")
    ),
    ("finished", "runs/finished/config.json", with_checkpoints),
    ("finished", "runs/finished/classes.json", with_checkpoints),
    ("finished", "runs/finished/checkpoints/32/digests.json", with_checkpoints),
    ("finished", "runs/finished/classes.json", of_pictures),
    *(
        ("imported", f"imported/{name}.json", of_import)
        for name in ("spec", "classes", "preprocessing", "digests", "origin")
    ),
    ("int8", "runs/int8/init.json", of_int8),
    ("int8", "runs/int8/config.json", of_int8),
    ("int8", "runs/int8/spec.json", of_int8),
    ("sweep", "sweep/sweep.json", of_sweep),
    ("sweep", "sweep/pair/config.json", of_sweep),
    ("sweep", "sweep/plain/summary.json", of_sweep),
    *(
        ("search", f"search/{name}", of_search)
        for name in (
            *("search.json", "found.json", "one_found.json", "rounds.json", "config.json"),
            *("candidates/wanted.json", "runs/one/summary.json"),
        )
    ),
    ("netadapt", "netadapt/netadapt.json", of_netadapt),
]


def check_damage(path, readers, capsys):
    """Puts each damage into a file, and calls each reader."""
    before = path.read_bytes()
    for label, damage in DAMAGE.items():
        for reader in readers:
            path.write_bytes(before[: len(before) // 2] if damage is None else damage)
            capsys.readouterr()
            said = ""
            try:
                if reader() in (1, 2):
                    said = capsys.readouterr().err.removeprefix("error: ").rstrip("\n")
                    assert said, label
            except (UsageError, RunError, NotFound) as e:
                said = str(e)
            if said:
                if "holds a run with another configuration" in said:
                    continue  # and lists what differs
                assert len(said.splitlines()) == 1, (label, said)
                assert path.name in said or "does not fit together: class_names" in said, label
                assert len(said) < 700, (label, said)
    path.write_bytes(before)


@pytest.mark.parametrize(
    ("fixture", "file", "make"), CASES, ids=[f"{c[2].__name__}-{c[1]}" for c in CASES]
)
def test_a_file(fixture, file, make, unpacked, here, capsys):
    for path in unpacked(fixture).iterdir():
        shutil.copytree(path, here / path.name)
    readers = make(here)
    if isinstance(readers, dict):
        readers = readers[file.partition("/")[2]]
    check_damage(here / file, readers, capsys)


@pytest.mark.parametrize("file", ["metrics.jsonl", "sessions.jsonl"])
def test_a_line(file, unpacked, here, capsys):
    shutil.copytree(unpacked("finished") / "runs", here / "runs")
    run = here / "runs" / "finished"
    (run / "summary.json").unlink()
    path = run / file
    first, *rest = path.read_bytes().splitlines(keepends=True)
    report = tool("report", str(run), "--no-latency")
    for label, damage in DAMAGE.items():
        line = first[: len(first) // 2] if damage is None else damage.replace(b"\n", b" ")
        for reader in (report, resumes(run)):
            path.write_bytes(line + b"\n" + b"".join(rest))
            capsys.readouterr()
            assert not reader(), label
            said = capsys.readouterr().err
            if reader is report or file == "metrics.jsonl":  # a resumed run only adds a session
                assert f"{path}: cannot read and leaves out line 1 (" in said, label
            for content in (line, line + b"\n"):  # nothing else
                path.write_bytes(content)
                assert not reader(), label
                state.ProgressReader()(run, tiny_v1.run())
    path.write_bytes(line + b"\n" + b"".join(rest))
    assert not main(["plot", f"--run={run}", f"--out={here}/a.png"])


def test_tables_and_other_files(here, capsys):
    shutil.copy(old_files.HERE / "toy.json", here)
    check_damage(here / "toy.json", [tool("latency", "csv", "toy.json", "--out=a.csv")], capsys)
    spec = here / "spec.json"
    spec.write_text(spec_to_json(tiny_v1.SPEC))
    configuration = "--config=found:spec=spec.json,digits"
    check_damage(spec, [tool("summary", configuration)], capsys)
    table = here / "networks.json"
    table.write_text(json.dumps({"format": FORMAT, "version": 1}))
    check_damage(table, [lambda: open_network_table(table)], capsys)
    names = here / "names.json"
    names.write_text(json.dumps(NAMES))
    check_damage(names, [lambda: find_class_names(10, names)], capsys)
    info = here / "dataset_info.json"
    info.write_text(json.dumps({"name": "x", "splits": []}))
    check_damage(info, [lambda: convert(here)], capsys)


@pytest.mark.parametrize("label", DAMAGE)
def test_metadata_of_an_exported_file(here, label):
    file = here / "net.tflite"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("metadata.json", DAMAGE[label] or b'{"a": ')
    try:
        assert isinstance(metadata.read(file), dict)
    except RunError as e:
        assert str(e).startswith(f"{file} has no metadata of this package: ")
