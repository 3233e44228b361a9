"""Imports point one way, and every configuration builds a network.

The arrows: core <- arch <- nn, data <- run <- train <- quant, interop, sweep <- export <- latency
<- search <- cli; nn and data do not know each other; report reads run folders.
"""

import ast
import sys
from pathlib import Path

import pytest

from mbv3_jax.arch import spec_from_json, spec_to_json
from mbv3_jax.arch.published import published
from mbv3_jax.core.errors import UsageError
from mbv3_jax.run.config import config_from_json, config_to_json, parse_config, spec_of

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "mbv3_jax"

# Room -> the rooms that it may import besides itself.
MAY_IMPORT = {
    "core": set(),
    "arch": {"core"},
    "nn": {"core", "arch"},
    "data": {"core"},
    "run": {"core", "arch", "nn", "data"},
    "train": {"core", "arch", "nn", "data", "run"},
    "quant": {"core", "arch", "nn", "data"},
    "interop": {"core", "arch", "run"},
    "sweep": {"core", "run", "train"},
    "export": {"core", "arch", "nn", "data", "run", "train", "quant"},
    "latency": {"core", "arch", "nn", "run", "quant", "export"},
    "search": {"core", "arch", "nn", "data", "run", "train", "latency"},
    "report": {"core", "arch", "run"},
    "cli": {
        *("core", "arch", "data", "run", "train", "quant"),
        *("interop", "export", "latency", "search", "sweep", "report"),
    },
    "__main__": {"core", "cli"},
    "__init__": {"arch", "nn", "run"},
}
FLAX_ROOMS = {"nn", "quant"}
ORBAX_MODULE = ROOT / PACKAGE / "run" / "checkpoint.py"  # Orbax's API is about to change
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
    assert rooms == set(MAY_IMPORT), "each room has its place among the arrows"
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
        elif room in ("core", "arch") and at_top and first not in sys.stdlib_module_names:
            wrong.append(f"{name}: {room} needs only the standard library")
        elif first == "flax" and room not in FLAX_ROOMS:
            wrong.append(f"{name}: flax only in {sorted(FLAX_ROOMS)}")
        elif first == "orbax" and path != ORBAX_MODULE:
            wrong.append(f"{name}: orbax only in {identify(ORBAX_MODULE)}")
        elif first in HEAVY and (at_top or room not in HEAVY_ROOMS):
            wrong.append(f"{name}: only inside functions of {sorted(HEAVY_ROOMS)}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("path", MODULES, ids=identify)
def test_only_one_module_parses_json(path):
    if path == ROOT / PACKAGE / "core" / "json_values.py":
        return
    wrong = {"load", "loads", "JSONDecoder", "decoder"}
    names = {name for name, _ in imports(path)} & {f"json.{name}" for name in wrong}
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Attribute) and node.attr in wrong:
            names |= {ast.unparse(node)} & {f"json.{name}" for name in wrong}
    assert not names, f"{names}: JSON is read by core.json_values, with its types"


def test_no_permission_is_unused():
    used = {room: set() for room in MAY_IMPORT}
    for path in MODULES:
        for name, _ in imports(path):
            first, _, rest = name.partition(".")
            if first == PACKAGE and rest:
                used[room_of(path)].add(rest.split(".")[0])
    unused = {room: MAY_IMPORT[room] - used[room] for room in MAY_IMPORT}
    assert not any(unused.values()), unused


def test_no_circles():
    """Of modules, imports inside functions included."""
    names = {
        ".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p
        for p in MODULES
    }
    graph = {
        name: {
            target
            for found, _ in imports(path)
            for target in (found, found.rpartition(".")[0])
            if target in names and target != name and not name.startswith(f"{target}.")
        }
        for name, path in names.items()
    }
    while leaves := [name for name, targets in graph.items() if not targets & graph.keys()]:
        for name in leaves:
            del graph[name]
    assert not graph, "modules in circles, or above one: " + ", ".join(sorted(graph))


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
    given = parse_config(f"{path}:{argument}" if argument else str(path))
    spec = spec_of(given)
    assert spec_from_json(spec_to_json(spec)) == spec
    assert config_from_json(config_to_json(given)).to_dict() == given.to_dict()
    if argument.startswith("imagenet") and path.parent == ROOT / "configs":
        assert published(spec), "a paper's recipe trains the paper's network"
        assert (spec.num_classes, spec.resolution) == (1000, 224)


@pytest.mark.parametrize("argument", ["mnist", "imagenet,recipe=best", "digits,recipe=paper"])
def test_unknown_arguments_are_refused(argument):
    with pytest.raises(UsageError, match=r"argument .*(expected one of|takes recipe=)"):
        parse_config(f"{ROOT / 'configs' / 'small.py'}:{argument}")


def test_a_file_of_tests_can_be_collected_alone():
    """Pytest adds only its own folder to sys.path; what folders share lies in tests/support."""
    tests = sorted((ROOT / "tests").rglob("test_*.py"))
    folder = {path.stem: path.parent for path in tests}
    for path in tests:
        for name, _ in imports(path):
            module = name.partition(".")[0]
            assert folder.get(module, path.parent) == path.parent, f"{path} imports {module}"
