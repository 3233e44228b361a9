import functools
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbv3_jax.core.errors import RunError, UsageError
from mbv3_jax.run import digests
from mbv3_jax.run.checkpoint import Checkpoints, Progress, newest_intact
from mbv3_jax.run.config import config_differences
from mbv3_jax.train.state import TrainState

SIDE = 300  # an array larger than what the storage keeps inside its own, checked, index


def make_state(step, side=SIDE, with_ema=True):
    key = jax.random.fold_in(jax.random.key(0), step)
    values = jax.random.normal(key, (2, side, side))
    variables = {"params": {"kernel": values[0]}, "batch_stats": {"mean": values[1, 0]}}
    ema = jax.tree.map(lambda x: x / 2, variables) if with_ema else None
    return TrainState(jnp.int32(step), variables, (jnp.int32(step), values[1]), ema)


def abstract(state):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )


def assert_same(got, want):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for a, b in zip(*map(jax.tree.leaves, (got, want)), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


@pytest.fixture
def save(tiny_spec, tiny_config):
    """save(checkpoints, state): starts a checkpoint with what else belongs into it."""
    config = tiny_config()

    def start(checkpoints, state):
        progress = Progress(examples=8 * int(state.step), fingerprint="data")
        checkpoints.save(state, progress, tiny_spec, config)

    return start


@pytest.fixture
def run(tmp_path, save):
    """A run folder with checkpoints of steps 1 and 2."""
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (1, 2):
        save(checkpoints, make_state(step))
    checkpoints.wait()
    checkpoints.close()
    return tmp_path


@pytest.mark.parametrize("with_ema", [True, False])
def test_round_trip(tmp_path, save, tiny_spec, tiny_config, with_ema):
    state = make_state(3, with_ema=with_ema)
    writer = Checkpoints(tmp_path)
    assert writer.steps() == []
    save(writer, state)
    writer.wait()
    assert writer.steps() == [3]
    writer.close()
    reader = Checkpoints(tmp_path, read_only=True)
    restored, progress = reader.restore(3, abstract(state))
    assert_same(restored, state)
    assert progress == Progress(examples=24, fingerprint="data")
    spec, config = reader.description(3)
    assert spec == tiny_spec
    assert config_differences(config, tiny_config()) == {}


def test_the_state_may_be_donated_while_it_is_written(tmp_path, save):
    @functools.partial(jax.jit, donate_argnums=0)
    def train(state):
        return jax.tree.map(lambda x: -x if jnp.issubdtype(x.dtype, jnp.floating) else x, state)

    checkpoints = Checkpoints(tmp_path, keep=3)
    for step in (1, 2, 3):
        state = make_state(step, side=1500)  # 36 MB: not written in an instant
        want = jax.tree.map(np.array, state)
        save(checkpoints, state)
        for _ in range(5):
            state = train(state)
        checkpoints.wait()
        got, _ = checkpoints.restore(step, abstract(state))
        assert_same(got, want)
    checkpoints.close()


def test_only_the_newest_are_kept(tmp_path, save):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (1, 2, 10):
        save(checkpoints, make_state(step, side=4))
    checkpoints.wait()
    assert checkpoints.steps() == [2, 10]
    checkpoints.close()
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["10", "2"]


def data_file(step_folder):
    return max(step_folder.rglob("d/*"), key=lambda p: p.stat().st_size)


def flip_a_bit(step_folder):
    path = data_file(step_folder)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def truncate(step_folder):
    path = data_file(step_folder)
    path.write_bytes(path.read_bytes()[:1000])


DAMAGE = {
    "bit": flip_a_bit,
    "truncated": truncate,
    "file": lambda folder: data_file(folder).unlink(),
    "index": lambda folder: (folder / "state" / "manifest.ocdbt").write_bytes(b""),
    "state": lambda folder: shutil.rmtree(folder / "state"),
    "position": lambda folder: (folder / "position" / "metadata").write_text("{}"),
    "digests": lambda folder: (folder / "digests.json").unlink(),
    "all": lambda folder: [shutil.rmtree(p) for p in folder.iterdir() if p.is_dir()],
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damage_is_one_line_and_the_earlier_checkpoint_serves(run, damage, capfd):
    newest = run / "checkpoints" / "2"
    damage(newest)
    checkpoints = Checkpoints(run)
    with pytest.raises(RunError) as caught:
        checkpoints.restore(2, abstract(make_state(2)))
    message = str(caught.value)
    assert "\n" not in message
    assert f"{newest} cannot be read: its " in message
    assert "to resume from step 1, remove that folder and run the same command again" in message
    assert capfd.readouterr() == ("", "")
    shutil.rmtree(newest)
    again = Checkpoints(run)
    assert again.steps() == [1]
    assert_same(again.restore(1, abstract(make_state(1)))[0], make_state(1))


def swap(folder):
    (folder / "1").rename(folder / "x")
    (folder / "2").rename(folder / "1")
    (folder / "x").rename(folder / "2")


def rename(folder):
    shutil.rmtree(folder / "2")
    (folder / "1").rename(folder / "2")


@pytest.mark.parametrize("move", [swap, rename])
@pytest.mark.parametrize("read", ["restore", "variables", "description"])
def test_a_checkpoint_is_that_of_the_step_it_is_called_by(run, move, read):
    move(run / "checkpoints")
    state = make_state(2)
    options = {
        "restore": (abstract(state),),
        "variables": (jax.eval_shape(lambda: state.variables),),
        "description": (),
    }
    how = {"averaged": False} if read == "variables" else {}
    with pytest.raises(RunError) as caught:
        getattr(Checkpoints(run, read_only=True), read)(2, *options[read], **how)
    assert str(caught.value) == (
        f"{run / 'checkpoints' / '2'} holds the checkpoint of step 1: it was renamed, or swapped "
        "with another; rename it to 1, or remove it, and run the same command again"
    )


def test_a_step_that_is_not_there(run):
    with pytest.raises(UsageError, match=r"no checkpoint of step 7 in .*; there are: 1, 2"):
        Checkpoints(run, read_only=True).description(7)
    with pytest.raises(UsageError, match=r"no checkpoint of step 7 in .*; there are: 1, 2"):
        Checkpoints(run, read_only=True).find(7)
    assert Checkpoints(run, read_only=True).find(1) == 1


def test_another_network_is_one_line(run):
    state = make_state(2, side=SIDE + 1)
    with pytest.raises(RunError, match="cannot be read") as caught:
        Checkpoints(run).restore(2, abstract(state))
    assert "\n" not in str(caught.value)


def test_half_written_folders_are_no_checkpoints_and_go_at_the_next_start(run, save):
    folder = run / "checkpoints"
    half = folder / "3.orbax-checkpoint-tmp"
    shutil.copytree(folder / "2", half)
    reader = Checkpoints(run, read_only=True)
    assert reader.steps() == [1, 2]
    assert half.exists()
    writer = Checkpoints(run, keep=2)
    save(writer, make_state(3, side=4))
    writer.wait()
    writer.close()
    assert sorted(p.name for p in folder.iterdir()) == ["2", "3"]


def test_a_full_disk_spares_the_earlier_checkpoint(run, save, small_files, capfd):
    checkpoints = Checkpoints(run, keep=2)
    with small_files(10_000), pytest.raises(RunError) as caught:
        save(checkpoints, make_state(3))
        checkpoints.wait()
    message = str(caught.value)
    assert "\n" not in message
    assert "could not write the checkpoint of step 3 in " in message
    assert "File too large" in message and len(message) < 900
    assert "run the same command again to resume from its last checkpoint, step 2" in message
    checkpoints.close()
    assert capfd.readouterr() == ("", "")
    again = Checkpoints(run, keep=2)
    assert again.steps() == [1, 2]
    assert_same(again.restore(2, abstract(make_state(2)))[0], make_state(2))
    save(again, make_state(3))
    again.wait()
    again.close()
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["2", "3"]


def test_a_file_in_the_way_is_one_line(tmp_path):
    (tmp_path / "checkpoints").write_text("not a folder")
    with pytest.raises(RunError, match=r"cannot use .*/checkpoints: .*File exists") as caught:
        Checkpoints(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_disk_that_cannot_be_read_is_no_damage(run, monkeypatch):
    def fails(path):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(digests, "_crc", fails)
    with pytest.raises(OSError, match="Input/output error"):
        newest_intact([Checkpoints(run)])
    assert Checkpoints(run).steps() == [1, 2]
