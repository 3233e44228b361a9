from collections.abc import Sequence

import pytest

from mbv3_jax.core.registry import Registry, call_with_options, option_names


def _plain(size, *, rate=0.5, colour):
    return size, rate, colour


REGISTRY = {"plain": _plain, "bare": lambda size: size}


def test_options_reach_the_factory_and_none_means_not_given():
    assert option_names(_plain) == ("colour", "rate")
    assert call_with_options("x", REGISTRY, "plain", {"colour": "red", "rate": 2}, 7) == (
        7,
        2,
        "red",
    )
    assert call_with_options("x", REGISTRY, "plain", {"colour": "red", "rate": None}, 7)[1] == 0.5
    assert call_with_options("x", REGISTRY, "bare", {"rate": None}, 7) == 7


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("plane", {}, r"^paint.name: got 'plane', expected one of 'plain', 'bare'$"),
        (["plain"], {}, r"^paint.name: got \['plain'\], expected one of"),
        ("plain", {"colour": 1, "rats": 1}, r"^paint: 'plain' has no option rats; .* colour, rate"),
        ("plain", {"colour": 1, "size": 1}, r"no option size"),
        ("plain", {"rate": 1}, r"^paint: 'plain' needs colour; its options: colour, rate$"),
        ("plain", {"colour": None}, r"needs colour"),
        (
            "bare",
            {"rate": 1},
            r"^paint: 'bare' has no option rate; its options: none; --config\.paint\.rate=None c",
        ),
    ],
)
def test_wrong_names_and_options_list_the_valid_ones(name, options, message):
    with pytest.raises(ValueError, match=message):
        call_with_options("paint", REGISTRY, name, options, 7)


@pytest.fixture
def shapes():
    """A registry with an entry."""
    registry = Registry("shape")

    @registry.register("box")
    def box(origin, *, side: float = 1.0, colours: Sequence[str] = (), name: str | None = None):
        return origin, side, colours, name

    return registry


def test_one_decorated_factory_is_an_entry(shapes):
    assert list(shapes) == ["box"]
    assert shapes.build("box", {"side": 2.0, "name": None}, 7) == (7, 2.0, (), None)
    assert shapes.fields() == {"side": float, "colours": tuple, "name": str}
    with pytest.raises(ValueError, match=r"^shape: 'box' has no option edge; its options: colours"):
        shapes.build("box", {"edge": 1}, 7)


def test_incomplete_and_contradictory_entries_are_refused(shapes):
    with pytest.raises(ValueError, match=r"^shape: option side of 'disc' needs a type annotation"):
        shapes.register("disc")(lambda origin, *, side: side)

    def disc(origin, *, side: int = 1):
        return side

    with pytest.raises(ValueError, match=r"option side of 'disc' is of type int, that of another"):
        shapes.register("disc")(disc)
    with pytest.raises(ValueError, match=r"^shape: two entries have the name 'box'"):
        shapes.register("box")(lambda origin: origin)


def test_a_file_that_is_executed_again_replaces_its_entries(tmp_path):
    registry = Registry("shape")
    path = tmp_path / "mine.py"
    path.write_text("@registry.register('ring')\ndef ring(*, width: float = 1.0): return width\n")
    for _ in range(2):
        exec(compile(path.read_text(), str(path), "exec"), {"registry": registry})
    assert list(registry) == ["ring"]


def test_a_users_entry_takes_the_place_of_the_packages():
    from mbv3_jax.core.checks import choose, flag

    shapes = Registry("shape")
    shapes.register("box")(choose)

    def own(): ...

    shapes.register("box")(own)
    assert shapes["box"] is own
    with pytest.raises(ValueError, match=r"^shape: two entries have the name 'box'"):
        shapes.register("box")(flag)
