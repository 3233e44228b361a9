"""Shipped files are found by name, from any folder, and can be imported from there."""

import subprocess
import sys

import pytest
from paths import ROOT

from mbv3_jax.core.errors import UsageError
from mbv3_jax.run import shipped
from mbv3_jax.run.config import parse_config
from mbv3_jax.run.shipped import find_file, shipped_names


@pytest.fixture
def empty(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "function", "file"),
    [
        ("small", "get_config", "small.py"),
        ("search/small", "get_config", "search/small.py"),
        ("configs/small.py", "get_config", "small.py"),
        ("qat", "get_config", "qat.py"),
        ("qat", "get_sweep", "ablations/qat.py"),
        ("nonlinearity", "get_sweep", "ablations/nonlinearity.py"),
        ("ablations/nonlinearity", "get_sweep", "ablations/nonlinearity.py"),
        ("configs/ablations/stem.py", "get_sweep", "ablations/stem.py"),
    ],
)
def test_a_name_is_a_shipped_file_from_any_folder(empty, name, function, file):
    assert find_file(name, function) == ROOT / "configs" / file


def test_a_file_of_the_working_directory_comes_first(empty):
    (empty / "configs").mkdir()
    (empty / "configs" / "small.py").touch()
    assert find_file("configs/small.py", "get_config").resolve() == empty / "configs" / "small.py"
    assert find_file("small", "get_config") == ROOT / "configs" / "small.py"


@pytest.mark.parametrize(
    ("name", "function", "message"),
    [
        ("smal", "get_config", "named 'smal'; did you mean small? The shipped ones are"),
        ("smal.py", "get_config", "no Python file 'smal.py'; did you mean small"),
        ("configs/larg.py", "get_config", "'configs/larg.py'; did you mean large? The shipped"),
        ("common", "get_config", "no configuration is named 'common'; "),
        ("stem", "get_config", "no configuration is named 'stem'; "),
        ("../main", "get_config", "no configuration is named '../main'; "),
        ("/etc/passwd", "get_config", "no configuration is named '/etc/passwd'; "),
        ("nonlinear", "get_sweep", "--sweep: no sweep is named 'nonlinear'; did you mean ablation"),
        ("task", "get_sweep", "no sweep is named 'task'; "),
    ],
)
def test_an_unknown_name_lists_what_there_is(empty, name, function, message):
    with pytest.raises(UsageError) as caught:
        find_file(name, function)
    assert message in str(caught.value)
    assert ", ".join(shipped_names(function)) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_shipped_names():
    assert {"small", "large", "v2", "search/small"} <= set(shipped_names("get_config"))
    assert "common" not in shipped_names("get_config")
    assert {"ablations/smoke", "ablations/stem"} <= set(shipped_names("get_sweep"))
    assert "ablations/task" not in shipped_names("get_sweep")


def test_a_name_gives_the_same_configuration_as_its_path(empty):
    flags = ["--config.seed=3", "--config.data.data_dir=None"]
    by_name = parse_config("small:imagenet", flags)
    assert by_name.to_dict() == parse_config(f"{ROOT}/configs/small.py:imagenet", flags).to_dict()
    assert by_name.seed == 3 and by_name.data.name == "imagenet"


USERS = {
    "no package": {},
    "folder": {"configs/mine.py": "VALUE = 2"},
    "package": {"configs/__init__.py": "", "configs/mine.py": "VALUE = 2"},
    "module": {"configs.py": "VALUE = 1"},
    "of the same name": {"configs/common.py": "raise RuntimeError", "configs/recipes.py": "x"},
}


@pytest.mark.parametrize("files", USERS.values(), ids=USERS)
def test_files_import_the_shipped_ones_whatever_else_has_that_name(tmp_path, files):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    imports_mine = "from configs import mine\n" if "configs/mine.py" in files else ""
    (tmp_path / "own.py").write_text(
        f"from configs import common\n{imports_mine}"
        "def get_config():\n    return common.default('mobilenet_v2')\n"
    )
    code = (
        "from mbv3_jax.run.config import parse_config\n"
        "print(parse_config('own.py').net.name, parse_config('large').net.name)"
    )
    # The package alone is importable, as it is where it has been installed.
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "mbv3_jax").symlink_to(ROOT / "mbv3_jax")
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path / "site"), "PATH": ""},
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == ["mobilenet_v2", "mobilenet_v3_large"], done.stderr


def test_a_file_is_run_on_every_call(tmp_path):
    path = tmp_path / "counts.py"
    path.write_text(
        "values = []\ndef get_config():\n    values.append(1)\n    return len(values)\n"
    )
    assert [shipped.call_file(str(path), "get_config") for _ in range(2)] == [1, 1]
