"""Imports point one way, and every configuration builds a network.

The arrows: arch <- nn, data <- train <- sweep, interop, quant <- export <- latency <- search <-
main.py, __main__.py; nn and data do not know each other; report reads run folders and knows only
arch.
"""

import ast
import sys
from pathlib import Path

import pytest

from mbv3_jax.arch import from_json, to_json
from mbv3_jax.arch.published import published
from mbv3_jax.train import config
from mbv3_jax.train.errors import UsageError

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "mbv3_jax"

_BELOW_TRAIN = {"arch", "nn", "data"}
_ABOVE_TRAIN = {"sweep", "quant", "interop"}
# Room -> the rooms that it may import besides itself.
MAY_IMPORT = {
    "arch": set(),
    "nn": {"arch"},
    "data": {"arch"},
    "train": _BELOW_TRAIN,
    **{room: _BELOW_TRAIN | {"train"} for room in _ABOVE_TRAIN},
    "export": _BELOW_TRAIN | {"train", "quant", "interop"},
    "latency": _BELOW_TRAIN | {"train", "quant", "interop", "export"},
    "search": _BELOW_TRAIN | {"train", "interop", "sweep", "export", "latency"},
    "report": {"arch"},
    "__main__": _BELOW_TRAIN | {"train", "report", "export", "latency", "search"} | _ABOVE_TRAIN,
    "__init__": set(),
}
FLAX_ROOMS = {"nn", "quant"}
# Imported only where a user asked for them: inside functions of these rooms.
HEAVY = {"tensorflow", "torch", "keras", "tensorflow_datasets"}
HEAVY_ROOMS = {"interop", "data"}

MODULES = sorted((ROOT / PACKAGE).rglob("*.py"))
CONFIGS = sorted((ROOT / "configs").rglob("*.py"))


def room_of(path: Path) -> str:
    parts = path.relative_to(ROOT / PACKAGE).parts
    return parts[0] if len(parts) > 1 else path.stem


def imports(path: Path):
    """(dotted name, whether at module level) of everything that a file imports."""
    tree = ast.parse(path.read_text(), str(path))
    inside = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import in line {node.lineno}"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            yield name, id(node) not in inside


def identify(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_rooms_are_those_of_the_design():
    rooms = {room_of(path) for path in MODULES}
    assert {"arch", "nn", "data", "train"} <= rooms
    assert rooms <= set(MAY_IMPORT), "a new room needs its place among the arrows"
    assert not [p for p in MODULES if p.name in ("utils.py", "util.py", "helpers.py", "misc.py")]


@pytest.mark.parametrize("path", MODULES, ids=identify)
def test_arrows(path):
    room, wrong = room_of(path), []
    for name, at_top in imports(path):
        first, *rest = name.split(".")
        if first == PACKAGE:
            other = rest[0] if rest else "__init__"
            if other != room and other not in MAY_IMPORT[room]:
                wrong.append(f"{name}: {room} may import {sorted(MAY_IMPORT[room])}")
        elif first in ("configs", "tests", "benchmarks", "main"):
            wrong.append(f"{name}: outside the package")
        elif room == "arch" and first not in sys.stdlib_module_names:
            wrong.append(f"{name}: arch needs only the standard library")
        elif first == "flax" and room not in FLAX_ROOMS:
            wrong.append(f"{name}: flax only in {sorted(FLAX_ROOMS)}")
        elif first in HEAVY and (at_top or room not in HEAVY_ROOMS):
            wrong.append(f"{name}: only inside functions of {sorted(HEAVY_ROOMS)}")
    assert not wrong, "\n".join(wrong)


def test_main_imports_only_the_package():
    names = {name.split(".")[0] for name, _ in imports(ROOT / "main.py")}
    assert names <= {PACKAGE, "sys", "os"}


def test_the_walk_sees_what_it_should(tmp_path):
    file = tmp_path / "module.py"
    file.write_text(
        "import torch\nfrom a.b import c\ntry:\n    import d\nexcept ImportError:\n    pass\n"
        "def f():\n    import tensorflow as tf\nclass G:\n    import e\n"
    )
    assert list(imports(file)) == [
        ("torch", True),
        ("a.b.c", True),
        ("d", True),
        ("tensorflow", False),
        ("e", True),
    ]


ARGUMENTS = ["", "digits", "synthetic", "imagenet"]
RECIPES = [f"imagenet,recipe={name}" for name in ("paper", "slim", "garden")]
CONFIGURATIONS = [
    (path, argument)
    for path in CONFIGS
    if "def get_config(" in path.read_text()
    and path.stem not in ("finetune", "found", "qat")  # any network's
    and path.parent.name != "search"
    for argument in (ARGUMENTS + RECIPES if "def get_config(argument" in path.read_text() else [""])
]


def test_every_network_has_a_configuration():
    files = {path.stem for path, _ in CONFIGURATIONS}
    assert {"small", "large", "v2", "mnasnet_a1"} <= files


@pytest.mark.parametrize(
    ("path", "argument"), CONFIGURATIONS, ids=lambda v: v if isinstance(v, str) else identify(v)
)
def test_configurations_build_a_network(path, argument):
    given = config.parse(f"{path}:{argument}" if argument else str(path))
    spec = config.spec_of(given)
    assert from_json(to_json(spec)) == spec
    assert config.from_json(config.to_json(given)).to_dict() == given.to_dict()
    if argument.startswith("imagenet") and path.parent == ROOT / "configs":
        assert published(spec), "a paper's recipe trains the paper's network"
        assert (spec.num_classes, spec.resolution) == (1000, 224)


@pytest.mark.parametrize("argument", ["mnist", "imagenet,recipe=best", "digits,recipe=paper"])
def test_unknown_arguments_are_refused(argument):
    with pytest.raises(UsageError, match=r"argument .*(expected one of|takes recipe=)"):
        config.parse(f"{ROOT / 'configs' / 'small.py'}:{argument}")
