import errno
import fcntl
import json
import os
import sys

import pytest

from mbv3_jax.arch.spec import spec_from_json
from mbv3_jax.core.errors import RunError, UsageError
from mbv3_jax.run.folder import FORMAT_VERSION, claim_folder, read_config, read_summary
from mbv3_jax.run.model import load_model


def files(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_a_new_folder_holds_configuration_and_network(tmp_path, tiny_config, tiny_spec):
    run = tmp_path / "runs" / "new"
    claim_folder(run, tiny_config(), tiny_spec)
    assert sorted(files(run)) == [
        "config.json",
        "format.json",
        "lock",
        "sessions.jsonl",
        "spec.json",
    ]
    assert read_config(run).to_dict() == tiny_config().to_dict()
    assert spec_from_json((run / "spec.json").read_text()) == tiny_spec
    before = files(run)
    claim_folder(run, tiny_config(), tiny_spec)
    after = files(run)
    started = [json.loads(line) for line in after.pop("sessions.jsonl").splitlines()]
    assert len(started) == 2 and all("python" in session["command"] for session in started)
    del before["sessions.jsonl"]
    assert after == before
    assert read_summary(run) is None


def test_another_configuration_is_refused_with_the_fields_that_differ(
    tmp_path, tiny_config, tiny_spec
):
    claim_folder(tmp_path, tiny_config(), tiny_spec)
    before = files(tmp_path)
    other = tiny_config("--config.seed=3", "--config.net.width=0.5", "--config.ema_decay=None")
    with pytest.raises(UsageError) as caught:
        claim_folder(tmp_path, other, tiny_spec)
    head, *fields, advice = str(caught.value).splitlines()
    assert head == f"{tmp_path} holds a run with another configuration:"
    assert fields == [
        "  ema_decay: this command None, the folder 0.9",
        "  net.width: this command 0.5, the folder 1.0",
        "  seed: this command 3, the folder 0",
    ]
    assert "--workdir" in advice
    assert files(tmp_path) == before


def test_a_folder_of_something_else_is_left_alone(tmp_path, tiny_config, tiny_spec):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(UsageError, match=r"is not a run folder \(it holds thesis.tex and no"):
        claim_folder(tmp_path, tiny_config(), tiny_spec)
    assert sorted(files(tmp_path)) == ["thesis.tex"]


@pytest.mark.parametrize(
    "left",
    [
        [],
        ["format.tmp"],
        ["format.json", "config.tmp"],
        ["format.json", "config.json"],
        ["format.json", "config.json", "spec.tmp"],
        [".format.json.0a1b2c3d.tmp"],
        ["format.json", ".config.json.0a1b2c3d.tmp"],
        ["format.json", "config.json", ".spec.json.0a1b2c3d.tmp"],
    ],
)
def test_a_claim_that_was_killed_can_be_made_again(tmp_path, tiny_config, tiny_spec, left):
    finished = tmp_path / "finished"
    claim_folder(finished, tiny_config(), tiny_spec)
    run = tmp_path / "run"
    run.mkdir()
    for name in left:
        whole = name.endswith(".json")
        (run / name).write_text((finished / name).read_text() if whole else '{"seed": ')
    claim_folder(run, tiny_config(), tiny_spec)
    for folder in (run, finished):
        (folder / "sessions.jsonl").unlink()  # with the time of each start
    assert files(run) == files(finished)


def test_a_file_of_the_user_in_a_run_folder_stays(tmp_path, tiny_config, tiny_spec):
    claim_folder(tmp_path, tiny_config(), tiny_spec)
    left = [".metrics.jsonl.0a1b2c3d.tmp", ".summary.json.0a1b2c3d.tmp"]
    for name in ("metrics.tmp", "spec.tmp", *left):
        (tmp_path / name).write_text("mine")
    claim_folder(tmp_path, tiny_config(), tiny_spec)
    assert {"metrics.tmp", "spec.tmp"} < files(tmp_path).keys()
    assert not set(left) & files(tmp_path).keys()


def test_half_a_line_about_a_session_is_mended(tmp_path, tiny_config, tiny_spec, monkeypatch):
    claim_folder(tmp_path, tiny_config(), tiny_spec)
    path = tmp_path / "sessions.jsonl"
    whole = path.read_text()
    path.write_text(whole + whole[:30])  # a kill in the middle of a line
    monkeypatch.setattr(sys, "orig_argv", ["python", "main.py", "--config.note=\u2028\udcff"])
    claim_folder(tmp_path, tiny_config(), tiny_spec)
    first, second = map(json.loads, path.read_text().splitlines())
    assert first == json.loads(whole)
    assert second["command"] == "python main.py '--config.note=\u2028\udcff'"


def test_a_file_is_no_folder(tmp_path, tiny_config, tiny_spec):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UsageError, match=r"file is a file, not a folder; choose another"):
        claim_folder(tmp_path / "file", tiny_config(), tiny_spec)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("path", ["/dev/null/run", "/proc/run"])
def test_a_path_that_cannot_be_written(path, tiny_config, tiny_spec, tmp_path):
    with pytest.raises(UsageError, match=rf"cannot write to {path}: .*; choose another --workdir"):
        claim_folder(type(tmp_path)(path), tiny_config(), tiny_spec)


def test_a_full_disk_leaves_nothing_half_made(tmp_path, tiny_config, tiny_spec, small_files):
    with small_files(10), pytest.raises(UsageError, match=r"cannot write to .*: File too large"):
        claim_folder(tmp_path, tiny_config(), tiny_spec)
    assert sorted(files(tmp_path)) == ["lock"]
    claim_folder(tmp_path, tiny_config(), tiny_spec)  # there is room again


def test_a_folder_in_use_is_refused(tmp_path, tiny_config, tiny_spec, monkeypatch, capfd):
    message = rf"in use by another .*\(process {os.getpid()} on "
    with (
        claim_folder(tmp_path, tiny_config(), tiny_spec),
        pytest.raises(UsageError, match=message),
    ):
        claim_folder(tmp_path, tiny_config(), tiny_spec)
    with claim_folder(tmp_path, tiny_config(), tiny_spec):
        pass

    def flock(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with claim_folder(tmp_path, tiny_config(), tiny_spec):
        assert capfd.readouterr().err.startswith(f"note: {tmp_path} cannot be locked (No locks ")


@pytest.mark.parametrize("text", ["{", "[]", ""])
def test_damaged_files_are_named(tmp_path, tiny_config, tiny_spec, text):
    claim_folder(tmp_path, tiny_config(), tiny_spec)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UsageError, match=r"config.json is damaged: "):
        claim_folder(tmp_path, tiny_config(), tiny_spec)
    (tmp_path / "summary.json").write_text('{"steps": ')
    with pytest.raises(RunError, match=r"summary.json is damaged: .*; remove it and run"):
        read_summary(tmp_path)


def test_a_folder_without_configuration_is_no_run(tmp_path):
    with pytest.raises(UsageError, match=r"is not a run folder: it has no config.json"):
        read_config(tmp_path)
    with pytest.raises(UsageError, match=r"is not a run folder: there is no such folder"):
        read_config(tmp_path / "nowhere")


def test_a_folder_without_a_format_is_of_version_1(tmp_path, tiny_config, tiny_spec):
    claim_folder(tmp_path, tiny_config(), tiny_spec)
    assert json.loads((tmp_path / "format.json").read_text()) == {"version": FORMAT_VERSION}
    (tmp_path / "format.json").unlink()
    claim_folder(tmp_path, tiny_config(), tiny_spec)
    assert read_config(tmp_path).to_dict() == tiny_config().to_dict()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('["a", "b"', r"not JSON \(Expecting ',' delimiter: column 10\)"),
        ('["a", 5]', r"\[1\]: got 5, expected a string"),
        ('["a"]', "got 1 name, expected the 2 of the data"),
    ],
)
def test_damaged_class_names_are_found_when_a_run_resumes(
    tmp_path, tiny_config, tiny_spec, text, message
):
    claim_folder(tmp_path, tiny_config(), tiny_spec, ["a", "b"]).close()
    path = tmp_path / "classes.json"
    before = path.read_text()
    path.write_text(text)
    with pytest.raises(UsageError, match=f"^{path} is damaged: {message}; remove it and run"):
        claim_folder(tmp_path, tiny_config(), tiny_spec, ["a", "b"])
    path.unlink()
    claim_folder(tmp_path, tiny_config(), tiny_spec, ["a", "b"]).close()
    assert path.read_text() == before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '{"version": 99}',
            r"was written by a newer version of mbv3_jax, in format 99; this one reads formats up ",
        ),
        ("{}", r"format.json is damaged: version: missing, expected a whole number"),
        ("[]", r"format.json is damaged: got \[\], expected an object"),
    ],
)
def test_a_folder_of_a_newer_version_is_refused(tmp_path, tiny_config, tiny_spec, text, message):
    claim_folder(tmp_path, tiny_config(), tiny_spec)
    (tmp_path / "format.json").write_text(text)
    for action in (
        lambda: read_config(tmp_path),
        lambda: load_model(tmp_path),
        lambda: claim_folder(tmp_path, tiny_config(), tiny_spec),
    ):
        with pytest.raises(UsageError, match=message) as caught:
            action()
        assert "\n" not in str(caught.value)
