"""Compiled programs are kept between commands, and no state of their folder ends a command."""

import os
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
from paths import ROOT, TINY
from run_checks import assert_same_end

from mbv3_jax.cli import compiled

OPTIONS = ("JAX_COMPILATION_CACHE_DIR", "JAX_ENABLE_COMPILATION_CACHE", *compiled._DEFAULTS)
CPUINFO = "processor\t: 0\nmodel name\t: A\nflags\t\t: fpu {flag}\ncpu MHz\t\t: {clock}\n"


@pytest.fixture
def root(tmp_path, monkeypatch):
    """The folder of all caches of a user who has set nothing."""
    for option in OPTIONS:
        monkeypatch.setenv(option, "")  # so that it is put back
        monkeypatch.delenv(option)
    monkeypatch.setattr(compiled, "user_cache_path", lambda name: tmp_path / name)
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    return tmp_path / "mbv3_jax" / "xla"


@pytest.fixture
def cpu(tmp_path, monkeypatch):
    """cpu(flag, clock) makes /proc/cpuinfo that of another CPU."""
    read = Path.read_text

    def replace(flag: str, clock: str = "2000"):
        def read_text(path, **options):
            is_info = path == Path("/proc/cpuinfo")
            return CPUINFO.format(flag=flag, clock=clock) if is_info else read(path, **options)

        monkeypatch.setattr(Path, "read_text", read_text)

    return replace


def test_chooses_a_folder_and_bounds_it(root, capsys):
    compiled.keep_programs()
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == str(root / compiled.host_digest())
    assert os.environ["JAX_COMPILATION_CACHE_MAX_SIZE"] == "1073741824"
    assert root.stat().st_mode & 0o077 == 0  # what is loaded from it is run
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    "option, value",
    [
        ("JAX_COMPILATION_CACHE_DIR", "/elsewhere"),
        ("JAX_COMPILATION_CACHE_DIR", ""),
        ("JAX_ENABLE_COMPILATION_CACHE", "False"),
    ],
)
def test_what_the_user_has_set_stays(root, monkeypatch, option, value):
    monkeypatch.setenv(option, value)
    compiled.keep_programs()
    assert {name: os.environ[name] for name in OPTIONS if name in os.environ} == {option: value}
    assert not root.exists()


def test_a_size_that_the_user_has_set_stays(root, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_MAX_SIZE", "1000")
    compiled.keep_programs()
    assert os.environ["JAX_COMPILATION_CACHE_MAX_SIZE"] == "1000"


def test_another_cpu_or_jaxlib_has_another_folder(cpu, monkeypatch):
    cpu("avx2")
    name = compiled.host_digest()
    cpu("avx2", clock="3000")
    assert compiled.host_digest() == name
    cpu("avx512f")
    assert compiled.host_digest() != name
    cpu("avx2")
    monkeypatch.setattr(compiled.metadata, "version", lambda package: "0.0.1")
    assert compiled.host_digest() != name


def test_a_folder_inherited_from_a_machine_with_another_cpu_is_not_used(root, cpu):
    cpu("avx512f")
    compiled.keep_programs()
    inherited = os.environ["JAX_COMPILATION_CACHE_DIR"]
    cpu("avx2")
    compiled.keep_programs()
    assert Path(os.environ["JAX_COMPILATION_CACHE_DIR"]).parent == root
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] != inherited


@pytest.mark.parametrize("of", ["root", "folder"])
def test_a_folder_that_cannot_be_used_is_one_line(root, capsys, of):
    path = root if of == "root" else root / compiled.host_digest()
    path.parent.mkdir(parents=True)
    path.write_text("a file in its place")
    compiled.keep_programs()
    assert "JAX_COMPILATION_CACHE_DIR" not in os.environ
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("compiled programs are not kept: File exists: ")


def test_removes_what_was_not_written_to_its_end_and_what_nobody_uses(root):
    folder = root / compiled.host_digest()
    used, unused = root / "used", root / "unused"
    for path in (folder, used, unused):
        path.mkdir(parents=True)
    for name in ("jit_whole-1-cache", "jit_whole-1-atime", "jit_torn-2-cache"):
        (folder / name).write_bytes(b"12345678")
    now = time.time()
    os.utime(used, (now, now - 89 * 86400))
    os.utime(unused, (now, now - 91 * 86400))
    os.utime(folder, (now, now - 91 * 86400))
    compiled.keep_programs()
    names = {path.name for path in folder.glob("jit_*")}
    assert names == {"jit_whole-1-cache", "jit_whole-1-atime"}
    assert (used.exists(), unused.exists()) == (True, False)


def test_warnings_of_jax_become_one_line_and_a_damaged_program_is_removed(root, capsys):
    compiled.keep_programs()
    folder = root / compiled.host_digest()
    for name in ("jit_step-1-cache", "jit_step-1-atime", "jit_add-2-cache"):
        (folder / name).touch()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        about = "persistent compilation cache entry for"
        warnings.warn(f"Error reading {about} 'jit_step': error: incorrect\nheader", stacklevel=1)
        warnings.warn(f"Error writing {about} 'jit_add': OSError: no space", stacklevel=1)
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"a compiled program is not kept or was damaged: error: incorrect: {folder}"
    assert [path.name for path in folder.glob("jit_*")] == ["jit_add-2-cache"]


@pytest.mark.slow
def test_the_second_trial_compiles_nothing_and_damaged_programs_are_made_again(tmp_path):
    def train(name: str, seed: int) -> tuple[int, int, list[str]]:
        environ = {key: value for key, value in os.environ.items() if key not in OPTIONS}
        environ |= {"JAX_DEBUG_LOG_MODULES": "jax._src.compiler", "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "main.py", f"--config={TINY}", f"--workdir={tmp_path / name}"]
        done = subprocess.run(
            [*command, f"--config.seed={seed}", "--config.total_steps=12"],
            cwd=ROOT,
            env=environ | {"XDG_CACHE_HOME": str(tmp_path / "cache")},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        lines = done.stderr.splitlines()
        hits = sum("Persistent compilation cache hit" in line for line in lines)
        misses = sum("PERSISTENT COMPILATION CACHE MISS" in line for line in lines)
        return hits, misses, [line for line in lines if "compiled program" in line]

    hits, programs, said = train("first", 0)
    assert hits == 0 and programs >= 2 and not said  # a training and an evaluation step
    assert train("second", 1) == (programs, 0, [])

    kept = list((tmp_path / "cache").rglob("*-cache"))
    for program in kept:
        contents = bytearray(program.read_bytes())
        contents[len(contents) // 2] ^= 1
        program.write_bytes(contents)
    hits, misses, said = train("third", 0)
    assert (hits, misses, len(said)) == (0, programs, 1)
    assert_same_end(tmp_path / "first", tmp_path / "third")
    assert train("fourth", 0) == (programs, 0, [])
    assert_same_end(tmp_path / "first", tmp_path / "fourth")
