"""Folders and files that commit c7ffdd9 wrote are opened, used and gone on with; see README.md."""

import csv
import io
import json
import runpy
import shutil
import sys
import warnings
import zipfile

import numpy as np
import old_files
import pytest
import tiny_v1  # noqa: F401 (registers the network of the runs)
from paths import ROOT

EXPECTED = json.loads((old_files.HERE / "expected.json").read_text())
CONFIG = f"--config={old_files.HERE / 'tiny_v1.py'}"
SAME_MACHINE = old_files.machine() == EXPECTED["machine"]
# What one image more or less makes of a fraction of 50 images, or of 64.
_AN_IMAGE = 0.021


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """The directory where commands run: paths inside the folders are relative to it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GLIBC_TUNABLES", "")  # main.py would start itself again
    return tmp_path


@pytest.fixture
def old(here):
    """old(name, ...) -> unpacks these; returns the directory."""

    def unpack(*names):
        for name in names:
            old_files.unpack(name, here)
        return here

    return unpack


@pytest.fixture
def do(monkeypatch, capsys):
    """do(program, *arguments, code=0) -> (output, errors) of a command, run in this process.

    A program is a script of the repository, or a module, as after `python -m`.
    """

    def run(program, *arguments, code=0):
        monkeypatch.setattr(sys, "argv", [program, *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended, warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # of runpy: it is imported already
            if program.endswith(".py"):
                runpy.run_path(str(ROOT / program), run_name="__main__")
            else:
                runpy.run_module(program, run_name="__main__", alter_sys=True)
        said = capsys.readouterr()
        assert (ended.value.code or 0) == code, said.err
        return said

    return run


@pytest.fixture
def tool(do):
    """tool(*arguments) -> the output of python -m mbv3_jax."""
    return lambda *arguments, **how: do("mbv3_jax", *arguments, **how).out


def same(found, wanted, *, rel=1e-3, more=False):
    """Holds values of JSON to be the same: floats nearly, fractions of images up to one.

    With `more`, objects may have further fields.
    """
    if isinstance(wanted, dict):
        assert found.keys() >= wanted.keys() if more else found.keys() == wanted.keys()
        for name in wanted:
            close = _AN_IMAGE if name.startswith("top") else None
            if close and isinstance(wanted[name], float):
                assert found[name] == pytest.approx(wanted[name], abs=close), name
            else:
                same(found[name], wanted[name], rel=rel, more=more)
    elif isinstance(wanted, list):
        assert len(found) == len(wanted)
        for one, other in zip(found, wanted, strict=True):
            same(one, other, rel=rel, more=more)
    elif isinstance(wanted, float) and not isinstance(found, bool):
        assert found == pytest.approx(wanted, rel=rel, abs=1e-5)
    else:
        assert found == wanted


def assert_ended(run, name, *, rel=1e-3):
    """The run ended as it did at that commit: with the same bits on the same machine.

    On another one floats are as near as `rel`; None: of many steps, which lead anywhere.
    """
    wanted = EXPECTED["ends"][name]
    found = old_files.records(run)
    assert [(r["step"], r["kind"]) for r in found] == [
        (r["step"], r["kind"]) for r in wanted["records"]
    ]
    for record, before in zip(found, wanted["records"], strict=True):
        if record["kind"] == "eval":  # newer versions measure more
            for name in record.keys() - before.keys():
                del record[name]
    if rel is not None:
        same(found, wanted["records"], rel=rel)
    if SAME_MACHINE:
        assert found == wanted["records"]
        assert old_files.weights_digest(run, wanted["step"]) == wanted["weights"]


def read(path):
    return json.loads(path.read_text())


def test_a_finished_run_is_done(old, do):
    run = old("finished") / "runs" / "finished"
    before = old_files.contents(run)
    said = do("main.py", CONFIG, "--workdir=runs/finished").err
    assert "done: 48 steps, 7.7 epochs" in said
    assert "top-1 42.00% on all 50 test images (ema weights)" in said
    assert "best: top-1 50.00% at step 32" in said
    assert old_files.contents(run) == before
    said = do("main.py", CONFIG, "--workdir=runs/finished", "--config.seed=1", code=2).err
    assert "seed: this command 1, the folder 3" in said
    assert old_files.contents(run) == before


def test_a_finished_run_is_evaluated(old, tool):
    old("finished")
    for name, flags in {"finished": (), "raw": ("--step=best", "--weights=raw")}.items():
        found = json.loads(tool("eval", "--run=runs/finished", *flags))
        assert found.pop("run") == "runs/finished"
        wanted = {k: v for k, v in EXPECTED["eval"][name].items() if k != "run"}
        same(found, wanted, more=True)
    assert (found["step"], found["weights"], found["count"]) == (32, "raw", 50)


@pytest.mark.parametrize("name", ["finished", "imported"])
def test_pictures_are_predicted(old, tool, here, name):
    old(name)
    old_files.draw(here / "pictures")
    folder = "--run=runs/finished" if name == "finished" else "--import=imported"
    lines = tool("predict", folder, "pictures", "--json", "--save=sheet.png").splitlines()
    for line, wanted in zip(lines, EXPECTED["predict"][name], strict=True):
        found = json.loads(line)
        assert found["image"] == wanted["image"]
        # By class: the order of those that are as good as equal is anybody's.
        ours, theirs = (
            {p["class"]: (p["label"], p["probability"]) for p in one["predictions"]}
            for one in (found, wanted)
        )
        assert found["predictions"][0]["class"] == wanted["predictions"][0]["class"]
        for label in ours.keys() & theirs.keys():
            assert ours[label] == pytest.approx(theirs[label], abs=0.005)
        assert len(ours.keys() & theirs.keys()) >= 4
    assert (here / "sheet.png").read_bytes().startswith(b"\x89PNG")


def test_pictures_are_embedded(old, tool, here):
    old("finished")
    old_files.draw(here / "pictures")
    tool("embed", "--run=runs/finished", "pictures", "--out=embedding.npz")
    found, wanted = np.load("embedding.npz"), np.array(EXPECTED["embed"])
    assert [str(p) for p in found["path"]] == [f"pictures/{i}.png" for i in range(4)]
    assert found["embedding"].shape == wanted.shape
    assert np.max(np.abs(found["embedding"] - wanted)) < 0.01 * np.max(np.abs(wanted))


@pytest.mark.parametrize(
    ("form", "packages"),
    [
        ("stablehlo", ["flatbuffers"]),
        ("tflite", ["litert_converter", "ai_edge_litert"]),
        ("onnx", ["onnx", "onnxruntime"]),
    ],
)
def test_a_finished_run_is_exported(old, tool, here, form, packages):
    for package in packages:
        pytest.importorskip(package)
    old("finished")
    file = here / f"net.{form}"
    said = tool("export", "--run=runs/finished", f"--format={form}", f"--out={file}", "--check=all")
    assert "on 50 images of synthetic" in said
    assert "against the network: 100.00% of the top-1 classes agree" in said
    assert "top-1: network 42.00%" in said
    if form == "onnx":
        import onnx

        entries = {p.key: json.loads(p.value) for p in onnx.load(file).metadata_props}
    else:
        with zipfile.ZipFile(file) as archive:
            entries = json.loads(archive.read("metadata.json"))
    assert entries["origin"] == {"run": "finished", "step": 48, "weights": "ema"}
    assert entries["classes"] == [f"class{i}" for i in range(10)]


def test_runs_are_reported_and_drawn(old, tool, command, here):
    old("finished", "unfinished")
    runs = ("runs/finished", "runs/unfinished")
    found = json.loads(tool("report", *runs, "--format=json", "--no-latency"))
    same(found, EXPECTED["report"]["runs"], more=True)
    # In a process of its own, which knows nothing of the network but what the folders say.
    paths = [str(here / run) for run in runs]
    page = f"--out={here / 'page.html'}"
    done = command("-m", "mbv3_jax", "report", *paths, page, "--no-latency")
    assert done.returncode == 0, done.stderr
    text = (here / "page.html").read_text()
    assert "42.0" in text and "unfinished" in text
    said = tool("report", "--compare", *runs, "--format=json")
    assert "checkpoint_every" not in said  # nothing is set differently
    for what in ("curves", "confusion", "mistakes"):
        tool("plot", "--run=runs/finished", f"--what={what}", f"--out={what}.png")
        assert (here / f"{what}.png").read_bytes().startswith(b"\x89PNG")


def test_an_unfinished_run_goes_on(old, do):
    run = old("unfinished") / "runs" / "unfinished"
    assert not (run / "summary.json").exists()
    said = do("main.py", CONFIG, "--workdir=runs/unfinished").err
    assert f"resuming from step 38 in {run}" in said
    assert_ended(run, "finished")
    summary = read(run / "summary.json")
    assert (summary["steps"], summary["weights"], summary["eval"]["count"]) == (48, "ema", 50)
    assert summary["eval"]["top1"] == pytest.approx(0.42, abs=_AN_IMAGE)
    same(summary["best"], {"step": 32, "top1": 0.5})
    assert len((run / "sessions.jsonl").read_text().splitlines()) == 2
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["32", "48"]


@pytest.mark.slow
def test_a_run_for_int8_goes_on_without_the_folder_that_it_started_from(old, do, tool):
    run = old("int8") / "runs" / "int8"
    before = read(run / "init.json")
    assert before["digest"] == EXPECTED["init.json"]["int8"]["digest"]
    do("main.py", f"{CONFIG}:int8", "--config.init=runs/finished", "--workdir=runs/int8")
    assert read(run / "init.json") == before
    # What is rounded to integers goes another way after the smallest difference.
    assert_ended(run, "int8", rel=1e-3 if SAME_MACHINE else 0.03)
    found = json.loads(tool("eval", "--run=runs/int8"))
    wanted = {k: EXPECTED["eval"]["int8"][k] for k in ("step", "weights", "split", "loss", "top1")}
    same({k: found[k] for k in wanted}, wanted, rel=1e-3 if SAME_MACHINE else 0.03)


def test_a_new_run_starts_from_an_old_one(old, do):
    here = old("finished")
    said = do("main.py", CONFIG, "--config.init=runs/finished", "--workdir=runs/new").err
    assert f"starting from all the weights of {here / 'runs' / 'finished'}" in said
    init = read(here / "runs" / "new" / "init.json")
    assert (init["digest"], init["new"]) == (EXPECTED["init.json"]["int8"]["digest"], [])
    assert init["preprocessing"]["crop_fraction"] == 0.875
    first = old_files.records(here / "runs" / "new")[0]
    assert first["loss"] < 1.8 < EXPECTED["ends"]["finished"]["records"][0]["loss"]


def test_weights_of_another_library(old, tool, here):
    old("imported")
    pytest.importorskip("torch")
    tool("export-weights", "--import=imported", "--to=torchvision", "--out=again.pth")
    assert old_files.tensors_digest(here / "again.pth") == EXPECTED["imported"]
    shown = tool("summary", f"{CONFIG}:tune", "--config.init=imported")
    assert "119,842" in shown and "mobilenet_v3_small" in shown


@pytest.mark.slow
def test_a_sweep_is_reported_and_goes_on(old, do, tool, here):
    old("sweep", "finished")
    folder = here / "sweep"
    found = json.loads(tool("report", "sweep", "--format=json", "--no-latency"))
    same(found, EXPECTED["report"]["sweep"], more=True)
    before = old_files.contents(folder / "plain")
    flags = (f"--sweep={old_files.HERE / 'tiny_v1.py'}", "--config.log_every_steps=6")
    do("launch/sweep.py", *flags, "--workdir=sweep", "--executor.jobs=2")
    trials = read(folder / "sweep.json")["trials"]
    assert {k: (v["state"], v["failures"]) for k, v in trials.items()} == {
        "plain": ("finished", 0),
        "started-seed3": ("finished", 1),  # before its folder was there
        "pair": ("finished", 0),
    }
    assert old_files.contents(folder / "plain") == before
    log = (folder / "jobs" / "pair.log").read_text()
    assert "resuming from step 8 in" in log
    for name in ("plain", "started-seed3", "pair/seed0", "pair/seed1"):
        assert_ended(folder / name, name, rel=None if name.startswith("started") else 1e-3)
    found = (folder / "results.csv").read_text()
    ours, theirs = (
        list(csv.DictReader(io.StringIO(text))) for text in (found, EXPECTED["results.csv"])
    )
    assert [row["trial"] for row in ours] == ["plain", "started-seed3", "pair/seed0", "pair/seed1"]
    for row, wanted in zip(ours, theirs, strict=True):
        assert row.keys() >= wanted.keys()  # newer versions measure more
        for name, value in wanted.items():
            if name in ("eval.loss", "eval.top1", "eval.top5"):
                known = SAME_MACHINE or not row["trial"].startswith("started")
                assert float(row[name]) == pytest.approx(float(value), abs=_AN_IMAGE) or not known
            elif name not in ("seconds", "images_per_second"):
                assert row[name] == value, name
    (report,) = json.loads(tool("report", "sweep", "--format=json", "--no-latency"))
    assert [(row["trial"], row["runs"], row["missing"]) for row in report["trials"]] == [
        ("plain", 1, None),
        ("started", 1, None),
        ("pair", 2, None),
    ]


def test_ended_searches_are_over(old, do, tool, here):
    shutil.copy(old_files.HERE / "toy.json", here)
    old("search", "supernet")
    for name in ("search", "supernet"):
        (here / name / "lock").unlink()
        before = old_files.contents(here / name)
        said = do("main.py", f"{CONFIG}:{name}", f"--workdir={name}").err
        assert f"spec: {name}/one.json" in said and f"search folder: {name}" in said
        (here / name / "lock").unlink()
        assert old_files.contents(here / name) == before
    found = json.loads(tool("report", "search", "supernet", "--format=json"))
    same(found, EXPECTED["report"]["search"], more=True)
    tool("report", "search", "supernet", "--out=page.html")
    assert "tiny_v1" in (here / "page.html").read_text()
    # The run's network is that of a file, search/one.json.
    found = json.loads(tool("eval", "--run=search/runs/one"))
    same(found, EXPECTED["eval"]["search"], more=True)
    shown = tool("summary", f"--config={ROOT}/configs/found.py:spec=search/one.json,digits")
    assert "found_one" in shown


@pytest.mark.slow
@pytest.mark.parametrize("name", ["search", "supernet"])
def test_a_search_without_its_result_finds_it_again(old, do, here, name):
    """What the stages have written is read: rounds, checkpoints, trainings, NetAdapt, the table.

    The networks that were trained in rounds are the same; which of them is chosen is not, since the
    choice has changed, so that what was done with the chosen one is done again.
    """
    shutil.copy(old_files.HERE / "toy.json", here)
    folder = old(name) / name
    kept = {file: read(folder / file) for file in ("search.json", "found.json")}
    for file in kept:
        (folder / file).unlink()
    is_same_choice = name != "search"
    if not is_same_choice:
        for path in (*folder.glob("runs/one*"), *folder.glob("adapted/one"), *folder.glob("one*")):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    before = old_files.contents(folder)
    do("main.py", f"{CONFIG}:{name}", f"--workdir={name}")
    for file, wanted in kept.items():
        found = read(folder / file)
        if SAME_MACHINE and is_same_choice:
            same(found, wanted)
        assert found.keys() == wanted.keys()
        # A cost is predicted anew, and ends otherwise on another processor.
        close = [c | {"cost": pytest.approx(c["cost"], rel=1e-9)} for c in wanted["candidates"]]
        assert found["candidates"] == close
    after = old_files.contents(folder)
    changed = {file for file in after if after[file] != before.get(file)}
    allowed = {*kept, "rounds.json", "candidates/wanted.json", "lock"}
    again = () if is_same_choice else ("runs/one", "adapted/one", "one")
    changed = {f for f in changed if not f.endswith("/lock") and not f.startswith(again)}
    assert changed <= allowed


@pytest.mark.slow
def test_netadapt_goes_on(old, do, tool, here):
    old("finished", "netadapt")
    folder, wanted = here / "netadapt", EXPECTED["netadapt"]
    begun = read(folder / "netadapt.json")
    assert len(begun["steps"]) == len(begun["pending"]) == 1
    flags = ("--run=runs/finished", "--target-madds=95000", "--steps=2", "--delta=0.05")
    flags += ("--divisor=4", "--max-proposals=3", "--out=netadapt")
    said = do("mbv3_jax", "search", "netadapt", *flags)
    assert "resuming after step 1" in said.err
    found = read(folder / "netadapt.json")
    assert found["steps"][0] == begun["steps"][0]
    assert found["steps"][1]["proposals"][0] == begun["pending"][0]
    assert found["steps"][-1]["cost"] <= 95000 and read(folder / "spec.json")["blocks"]
    if SAME_MACHINE:
        # The settings have fields that did not exist when the folder was written.
        same(found.pop("settings"), wanted["log"].pop("settings"), rel=0, more=True)
        assert found == wanted["log"]
        assert read(folder / "spec.json") == wanted["spec"]
    evaluated = json.loads(tool("eval", "--import=netadapt/model", CONFIG, "--batch=16"))
    assert evaluated["labels"] == "by name" and evaluated["count"] == 50
    if not SAME_MACHINE:
        return
    same(evaluated, wanted["eval"], more=True)
    do("main.py", f"{CONFIG}:tune", "--config.init=netadapt/model", "--workdir=runs/tune")
    assert (
        read(here / "runs" / "tune" / "init.json")["digest"]
        == (EXPECTED["init.json"]["tune"]["digest"])
    )
    assert_ended(here / "runs" / "tune", "tune")


def test_a_latency_table(tool, here):
    for name in ("toy.json", "toy.csv"):
        shutil.copy(old_files.HERE / name, here / f"old_{name}")
    tool("latency", "csv", "old_toy.json", "--out=new.csv")
    assert (here / "new.csv").read_text() == (here / "old_toy.csv").read_text()
    tool("latency", "csv", "old_toy.csv", "--out=new.json", "--machine=a phone", "--threads=4")
    table, before = read(here / "new.json"), read(here / "old_toy.json")
    assert table["pieces"] == before["pieces"] and len(table["pieces"]) == 9
    assert (table["machine"], table["threads"], table["version"]) == ({"cpu": "a phone"}, 4, 1)
