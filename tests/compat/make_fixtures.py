"""How the fixtures of tests/compat were made: python tests/compat/make_fixtures.py

It is kept as a record and for review. Only commit c7ffdd9 may run it: in a checkout of that commit
with this folder in it (git worktree add OLD c7ffdd9; cp -r tests/compat OLD/tests/).
"""

import contextlib
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HERE = ROOT / "tests" / "compat"
COMMIT = "c7ffdd9"
CONFIG = str(HERE / "tiny_v1.py")
WHERE = Path("/home/ada/nets")  # stands in the fixtures; Orbax writes where it was into checkpoints
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"  # as in tests/conftest.py
os.environ["PYTHONPATH"] = str(ROOT)

# Orbax leaves every version of its index that it has written behind; where a write takes long,
# it gathers more for the next, and a checkpoint has a quarter of the size.
SLOW_DISK = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <unistd.h>
#define SLOW(name) int name(int fd) { usleep(300000); \\
  return ((int (*)(int))dlsym(RTLD_NEXT, #name))(fd); }
SLOW(fsync)
SLOW(fdatasync)
"""
# A file as torchvision's own code saves it. Weights of two values a layer make a small archive.
TORCHVISION = """
import sys
sys.path.insert(0, sys.argv[1])
from torch_stub import import_torchvision
torchvision = import_torchvision()
import torch
torch.manual_seed(0)
net = torchvision.models.mobilenet_v3_small(width_mult=0.25, num_classes=10)
with torch.no_grad():
    for value in net.parameters():
        if value.dim() > 1:
            value.copy_(value.std() * torch.sign(value))
    norms = [m for m in net.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None  # the mean over what follows
    net(torch.randn(16, 3, 64, 64))
    for value in (v for norm in norms for v in (norm.running_mean, norm.running_var)):
        value.copy_(value.bfloat16())
torch.save(net.state_dict(), "weights.pth")
"""


def main() -> None:
    found = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    if found != COMMIT:
        sys.exit(f"this is {found}, but only {COMMIT} may make them")
    WHERE.mkdir(parents=True)
    os.chdir(WHERE)
    Path("slow.c").write_text(SLOW_DISK)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", "slow.so", "slow.c", "-ldl"], check=True)
    expected: dict = {}
    sys.path.insert(0, str(HERE))
    for part in (runs, imported, sweep, latency, search, netadapt):
        part(expected)
    from old_files import machine

    expected["machine"] = machine()
    text = json.dumps(expected, indent=1, ensure_ascii=False)
    (HERE / "expected.json").write_text(text.replace(str(HERE), "tests/compat") + "\n")
    shutil.rmtree(WHERE)


def call(*arguments, code=0, slow=False) -> str:
    """Runs a command of this commit; returns what it printed."""
    environ = {**os.environ, "LD_PRELOAD": str(Path("slow.so").absolute())} if slow else None
    done = subprocess.run(
        [sys.executable, *map(str, arguments)], env=environ, capture_output=True, text=True
    )
    if done.returncode != code:
        sys.exit(f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}")
    print(" ".join(map(str, arguments)), flush=True)
    return done.stdout


def train(workdir, *arguments, argument="run", **how) -> None:
    config = f"--config={CONFIG}:{argument}"
    call(ROOT / "main.py", config, f"--workdir={workdir}", *arguments, **how)


def stopped(moment, workdir, *arguments, argument="run") -> None:
    """A run that gets SIGTERM at a moment, see tests/signalled_main.py."""
    script, config = ROOT / "tests" / "signalled_main.py", f"--config={CONFIG}:{argument}"
    call(
        script, f"SIGTERM@{moment}", config, f"--workdir={workdir}", *arguments, code=75, slow=True
    )


def tool(*arguments) -> str:
    """A command that is not training; run in a process that knows the network."""
    program = (
        "import sys; sys.path.insert(0, sys.argv.pop(1)); import tiny_v1; "
        "from mbv3_jax.__main__ import main; sys.exit(main(sys.argv[1:]))"
    )
    return call("-c", program, HERE, *arguments)


def end(expected: dict, name: str, run: Path, step: int) -> None:
    """Notes how a run ends."""
    from old_files import records, weights_digest

    expected.setdefault("ends", {})[name] = {
        "step": step,
        "records": records(run),
        "weights": weights_digest(run, step),
    }


def runs(expected: dict) -> None:
    """finished; unfinished, its like; int8, which starts from it."""
    import numpy as np
    from old_files import draw

    train("runs/finished", slow=True)
    # Metrics of steps 33 to 37 are in its checkpoint, not yet on record.
    stopped("step38", "runs/unfinished")
    # In its first evaluation, which is then due.
    int8 = {"argument": "int8"}
    stopped("evaluation", "runs/int8", "--config.init=runs/finished", **int8)
    for name in ("finished", "unfinished", "int8"):
        pack(name, f"runs/{name}")
    shutil.copytree("runs/int8", "ends/int8")
    train("ends/int8", "--config.init=runs/finished", **int8)
    end(expected, "finished", Path("runs/finished"), 48)
    end(expected, "int8", Path("ends/int8"), 10)
    shutil.copytree("runs/unfinished", "ends/unfinished")
    train("ends/unfinished")
    end(expected, "unfinished", Path("ends/unfinished"), 48)
    assert expected["ends"]["unfinished"] == expected["ends"]["finished"]
    del expected["ends"]["unfinished"]

    expected["eval"] = {
        name: json.loads(tool("eval", *flags))
        for name, flags in {
            "finished": ["--run=runs/finished"],
            "raw": ["--run=runs/finished", "--step=best", "--weights=raw"],
            "int8": ["--run=ends/int8"],
        }.items()
    }
    draw(Path("pictures"))
    use(expected, "finished", "--run=runs/finished")
    tool("embed", "--run=runs/finished", "pictures", "--out=embedding.npz")
    embedding = np.load("embedding.npz")["embedding"]
    expected["embed"] = embedding.astype(float).round(6).tolist()
    rows = tool("report", "runs/finished", "runs/unfinished", "--format=json", "--no-latency")
    expected["report"] = {"runs": json.loads(rows)}


def use(expected: dict, name: str, folder: str) -> None:
    """Notes what is predicted of pictures."""
    lines = tool("predict", folder, "pictures", "--json").splitlines()
    expected.setdefault("predict", {})[name] = [json.loads(line) for line in lines]


def imported(expected: dict) -> None:
    from old_files import tensors_digest

    call("-c", TORCHVISION, ROOT / "tests" / "peers")
    Path("classes.txt").write_text("".join(f"class{i}\n" for i in range(10)))
    file = "--weights=weights.pth"
    flags = ("--from=torchvision", file, "--classes=classes.txt", "--out=imported")
    call("-m", "mbv3_jax", "import", *flags, slow=True)
    pack("imported", "imported")
    use(expected, "imported", "--import=imported")
    expected["imported"] = tensors_digest(Path("weights.pth"))


SWEEP = (f"--sweep={CONFIG}", "--config.log_every_steps=6")


def sweep(expected: dict) -> None:
    """A trial has finished, one has failed, since a folder was not there, one is stopped."""
    Path("runs/finished").rename("runs/elsewhere")
    environ = {**os.environ, "LD_PRELOAD": str(Path("slow.so").absolute())}
    command = [sys.executable, ROOT / "launch" / "sweep.py", *SWEEP, "--workdir=sweep"]
    process = subprocess.Popen(command, env=environ)
    metrics = Path("sweep/pair/seed1/metrics.jsonl")
    while not (metrics.is_file() and '"step": 6' in metrics.read_text()):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 75
    Path("runs/elsewhere").rename("runs/finished")
    states = json.loads(Path("sweep/sweep.json").read_text())["trials"]
    assert {k: v["state"] for k, v in states.items()} == {
        "plain": "finished",
        "started-seed3": "failed",
        "pair": "interrupted",
    }
    pack("sweep", "sweep")
    rows = tool("report", "sweep", "--format=json", "--no-latency")
    expected["report"]["sweep"] = json.loads(rows)
    shutil.copytree("sweep", "ends/sweep")
    call(ROOT / "launch" / "sweep.py", *SWEEP, "--workdir=ends/sweep")
    for trial in ("plain", "started-seed3", "pair/seed0", "pair/seed1"):
        end(expected, trial, Path("ends/sweep") / trial, 24 if "pair" in trial else 48)
    expected["results.csv"] = Path("ends/sweep/results.csv").read_text()


def latency(expected: dict) -> None:
    flags = ("--space=toy", "--networks=2", "--check=1", "--out=toy.json")
    call("-m", "mbv3_jax", "latency", "measure", *flags)
    call("-m", "mbv3_jax", "latency", "csv", "toy.json", "--out=toy.csv")
    for name in ("toy.json", "toy.csv"):
        shutil.copy(name, HERE / name)


def search(expected: dict) -> None:
    train("search", argument="search", slow=True)
    # Shared weights that begin with few values and stay as they are make a small archive.
    program = (
        "import sys, jax; from mbv3_jax.nn import functional; init = functional.init\n"
        "def few(spec, key):\n"
        "  sign = lambda x: jax.random.rademacher(key, x.shape, 'float32')\n"
        "  one = lambda x: sign(x) * x[..., 0].size ** -0.5\n"
        "  return jax.tree.map(lambda x: one(x) if x.ndim > 1 else x, init(spec, key))\n"
        "functional.init = few; from mbv3_jax.search import program\n"
        "from mbv3_jax.train.cli import main\n"
        "sys.exit(main(sys.argv[1:], {'search': program.run}))"
    )
    call("-c", program, f"--config={CONFIG}:supernet", "--workdir=supernet", slow=True)
    for name in ("search", "supernet"):
        for checkpoints in Path(name).glob("*/*/checkpoints"):
            # Of trainings that have ended nobody reads them but NetAdapt, and who uses the result.
            if name == "supernet" or not checkpoints.parent.name.startswith("one"):
                shutil.rmtree(checkpoints)
        pack(name, name)
    rows = tool("report", "search", "supernet", "--format=json")
    expected["report"]["search"] = json.loads(rows)
    expected["eval"]["search"] = json.loads(tool("eval", "--run=search/runs/one"))


NETADAPT = ("--target-madds=95000", "--steps=2", "--delta=0.05", "--divisor=4", "--max-proposals=3")


def netadapt(expected: dict) -> None:
    """Stopped among the proposals of the second step."""
    flags = ("--run=runs/finished", *NETADAPT)
    program = (
        "import os, signal, sys; from mbv3_jax.search.netadapt import log; write = log.Log.write\n"
        "def stop(self):\n write(self)\n"
        " if self.steps and len(self.pending) == 1: os.kill(os.getpid(), signal.SIGTERM)\n"
        "log.Log.write = stop; sys.path.insert(0, sys.argv.pop(1)); import tiny_v1\n"
        "from mbv3_jax.__main__ import main; sys.exit(main(sys.argv[1:]))"
    )
    call("-c", program, HERE, "search", "netadapt", *flags, "--out=netadapt", code=75, slow=True)
    pack("netadapt", "netadapt")
    tool("search", "netadapt", *flags, "--out=netadapt")
    folder = Path("netadapt")
    expected["netadapt"] = {
        "log": json.loads((folder / "netadapt.json").read_text()),
        "spec": json.loads((folder / "spec.json").read_text()),
        "eval": json.loads(
            tool("eval", "--import=netadapt/model", f"--config={CONFIG}", "--batch=16")
        ),
    }
    flags = (f"--config={CONFIG}:tune", "--config.init=netadapt/model")
    call(ROOT / "main.py", *flags, "--workdir=ends/tune")
    end(expected, "tune", Path("ends/tune"), 2)
    expected["init.json"] = {
        name: {k: json.loads((Path(run) / "init.json").read_text())[k] for k in ("digest", "new")}
        for name, run in {"int8": "runs/int8", "tune": "ends/tune"}.items()
    }


def pack(name: str, folder: str) -> None:
    """Writes NAME.tar.xz of a folder, without events and without what is this machine's."""
    copy = Path("packed") / folder
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("events.out.*"))
    replaced = {
        str(HERE): "tests/compat",
        str(ROOT): str(WHERE.parent / "mbv3_jax"),
        sys.executable: "python",
    }
    for path in (p for p in copy.rglob("*") if p.is_file()):
        if path.name == "lock":
            path.write_text("process 4711 on laptop" if path.read_text() else "")
        elif path.name == "sessions.jsonl":
            lines = map(json.loads, path.read_text().splitlines())
            texts = (json.dumps(line | {"host": "laptop"}) + "\n" for line in lines)
            path.write_text("".join(texts))
        with contextlib.suppress(UnicodeDecodeError):
            text = new = path.read_text()
            for ours, theirs in replaced.items():
                new = new.replace(ours, theirs)
            if new != text:
                assert "checkpoints" not in path.parts and "weights" not in path.parts, path
                path.write_text(new)
        host = socket.gethostname()
        for bad in (sys.prefix, str(Path.home()), "/tmp/", f'"{host}"', f"on {host}"):
            assert bad.encode() not in path.read_bytes(), (path, bad)
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w:xz", preset=9) as archive:
        for path in sorted(copy.rglob("*")):
            entry = archive.gettarinfo(path, arcname=path.relative_to("packed"))
            entry.uid = entry.gid = entry.mtime = 0
            entry.uname = entry.gname = ""
            entry.mode = 0o755 if path.is_dir() else 0o644
            with path.open("rb") if path.is_file() else contextlib.nullcontext() as file:
                archive.addfile(entry, file)
    (HERE / f"{name}.tar.xz").write_bytes(written.getvalue())
    print(f"{name}: {len(written.getvalue())} bytes", flush=True)


if __name__ == "__main__":
    main()
