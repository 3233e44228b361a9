import sys

import pytest

from mbv3_jax.core import packages
from mbv3_jax.core.errors import UsageError


@pytest.mark.parametrize(
    ("checkout", "command"), [(True, "pip install -e '.[x]'"), (False, "pip install 'mbv3_jax[x]'")]
)
def test_the_advice_is_for_a_checkout_or_an_installed_package(monkeypatch, checkout, command):
    monkeypatch.setattr(packages, "IS_CHECKOUT", checkout)
    assert packages.install("x") == command
    with pytest.raises(UsageError) as caught:
        packages.need("no_such_package.inner", "a thing", "x")
    assert str(caught.value) == f"a thing needs no_such_package: {command}"


def test_the_advice_works_from_another_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(packages, "CHECKOUT", tmp_path / "my clone")
    assert packages.install("x") == f"pip install -e '{tmp_path}/my clone[x]'"


def test_this_is_a_checkout():
    assert packages.IS_CHECKOUT


def test_a_package_that_lacks_something_says_what(tmp_path, monkeypatch):
    (tmp_path / "half_a_package.py").write_text("import no_such_package")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UsageError, match=r"needs half_a_package \(No module named 'no_such_pa"):
        packages.need("half_a_package", "a thing", "x")


@pytest.mark.parametrize(
    ("started", "written"),
    [
        ("/venv/bin/mbv3", "mbv3"),
        ("/code/mbv3_jax/__main__.py", "python -m mbv3_jax"),
        ("main.py", "python -m mbv3_jax"),
    ],
)
def test_commands_are_written_as_the_user_starts_them(monkeypatch, started, written):
    monkeypatch.setattr(sys, "argv", [started])
    assert packages.program() == written


def test_a_hidden_package_cannot_be_imported_meanwhile(tmp_path, monkeypatch):
    (tmp_path / "some_package.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    with packages.hidden("some_package"), pytest.raises(ImportError):
        import some_package
    import some_package

    with packages.hidden("some_package"):  # it is imported already, and stays
        assert sys.modules["some_package"] is some_package
