"""hf:OWNER/NAME in and out; a local server stands in for the Hugging Face Hub."""

import base64
import dataclasses
import hashlib
import http.server
import json
import re
import threading
import urllib.parse

import jax
import numpy as np
import pytest
from peer_compare import import_peer, torch_peers

from mbv3_jax import __main__
from mbv3_jax.core.errors import RunError, UsageError
from mbv3_jax.interop import hub_folder, networks, timm_config
from mbv3_jax.nn import functional
from mbv3_jax.run.model import Model, Preprocessing, load_model, save_model

SECRET = "hf_a_secret_that_nobody_sees"
REPOSITORY = "some-one/my.net"


class Hub:
    """A Hub with repositories in memory, and what was asked of it.

    repositories: OWNER/NAME -> revision -> file -> contents; a commit is a hash of the contents.
    private: repositories that only `SECRET` opens.
    asked: (method, path, Authorization) of each request.
    moved: the server on which files of weights lie, below /copy, if that is another address.
    cut, damaged: whether the next file of weights ends early; whether all have a wrong byte.
    page: what is answered instead of a list of files, if anything.
    """

    def __init__(self):
        self.repositories, self.private, self.asked, self.moved = {}, set(), [], None
        self.cut, self.damaged, self.page = False, False, None

    def put(self, repository, files, revision="main"):
        self.repositories.setdefault(repository, {})[revision] = dict(files)
        commit = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
        self.repositories[repository][commit] = dict(files)
        return commit

    def find(self, repository, revision, token):
        """(code, X-Error-Code, files)."""
        there = self.repositories.get(repository)
        if there is None or (repository in self.private and token != f"Bearer {SECRET}"):
            return 401, "RepoNotFound", None
        if revision not in there:
            return 404, "RevisionNotFound", None
        return 200, "", there[revision]


@pytest.fixture
def server(monkeypatch, tmp_path):
    state = Hub()

    class Handler(http.server.BaseHTTPRequestHandler):
        def answer(self, code, data=b"", **headers):
            self.send_response(code)
            for key, value in headers.items():
                self.send_header(key.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        def body(self):
            if "chunked" in self.headers.get("Transfer-Encoding", ""):
                data = b""
                while size := int(self.rfile.readline(), 16):
                    data += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
                return data
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))

        def do_GET(self):
            path = urllib.parse.unquote(self.path.partition("?")[0])
            token = self.headers.get("Authorization")
            state.asked.append((self.command, path, token))
            is_copy = path.startswith("/copy/")
            path = path.removeprefix("/copy")
            if info := re.fullmatch(r"/api/models/([^/]+/[^/]+)/revision/(.+)", path):
                code, error, files = state.find(*info.groups(), token)
                if state.page is not None:
                    return self.answer(200, state.page)
                if code != 200:
                    return self.answer(code, X_Error_Code=error)
                siblings = [
                    {
                        "rfilename": name,
                        "size": len(data),
                        "lfs": {"sha256": hashlib.sha256(data).hexdigest()},
                    }
                    if name.endswith((".safetensors", ".bin"))
                    else {"rfilename": name, "size": len(data)}
                    for name, data in files.items()
                ]
                commit = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
                found = json.dumps({"id": info[1], "sha": commit, "siblings": siblings})
                return self.answer(200, found.encode(), Content_Type="application/json")
            if file := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
                code, error, files = state.find(file[1], file[2], token)
                if code == 200 and file[3] not in files:
                    code, error = 404, "EntryNotFound"
                if code != 200:
                    return self.answer(code, X_Error_Code=error)
                data = files[file[3]]
                if state.moved and not is_copy and file[3].endswith(".safetensors"):
                    return self.answer(302, Location=f"{state.moved}/copy{path}")
                if state.damaged and file[3].endswith(".safetensors"):
                    data = data[:-1] + bytes([data[-1] ^ 1])
                if state.cut and file[3].endswith(".safetensors"):
                    state.cut = False
                    self.send_response(200)
                    self.send_header("Content-Length", str(len(data)))
                    self.end_headers()
                    self.wfile.write(data[: len(data) // 2])
                    self.close_connection = True
                    return None
                if start := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
                    first = int(start[1])
                    place = f"bytes {first}-{len(data) - 1}/{len(data)}"
                    return self.answer(206, data[first:], Content_Range=place)
                headers = {"X_Repo_Commit": file[2], "ETag": hashlib.sha1(data).hexdigest()}
                return self.answer(200, data, **headers)
            return self.answer(404)

        do_HEAD = do_GET

        def do_POST(self):
            path, token, body = self.path.partition("?")[0], None, self.body()
            token = self.headers.get("Authorization")
            state.asked.append((self.command, path, token))
            if token != f"Bearer {SECRET}":
                return self.answer(401, b'{"error": "Invalid username or password."}')
            if path == "/api/repos/create":
                asked = json.loads(body)
                name = f"{asked['organization']}/{asked['name']}"
                if asked.get("private") or asked.get("visibility") == "private":
                    state.private.add(name)
                state.put(name, {})
                return self.answer(200, json.dumps({"url": f"{state.address}/{name}"}).encode())
            if path == "/api/validate-yaml":  # the front matter of the card
                return self.answer(200, b'{"errors": [], "warnings": []}')
            if ask := re.fullmatch(r"/api/models/(.+)/preupload/main", path):
                files = [
                    {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                    for f in json.loads(body)["files"]
                ]
                return self.answer(200, json.dumps({"files": files}).encode())
            if ask := re.fullmatch(r"/api/models/(.+)/commit/main", path):
                files = {}
                for line in body.splitlines():
                    entry = json.loads(line)
                    if entry["key"] == "file":
                        content = entry["value"]["content"]
                        files[entry["value"]["path"]] = base64.b64decode(content)
                commit = state.put(ask[1], files)
                url = f"{state.address}/{ask[1]}/commit/{commit}"
                done = {"commitUrl": url, "commitOid": commit, "success": True}
                return self.answer(200, json.dumps(done).encode())
            return self.answer(404)

        def log_message(self, *args):
            pass

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("HF_TOKEN", "HF_HOME", "HF_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        state.address = f"http://127.0.0.1:{running.server_address[1]}"
        state.other_address = f"http://localhost:{running.server_address[1]}"
        monkeypatch.setenv("HF_ENDPOINT", state.address)
        yield state
        running.shutdown()


def weights_of(spec, seed=0):
    rng = np.random.default_rng(seed)
    draw = lambda x: rng.uniform(0.3, 1, x.shape).astype(np.float32) - 0.5 * (x.ndim > 1)  # noqa: E731
    return jax.tree.map(draw, functional.shapes(spec))


@pytest.fixture(scope="module")
def timm_model():
    """A network of timm, with BatchNorm's constants and padding of Keras."""
    spec = networks.get("timm", "mobilenetv3_small_050").spec
    spec = spec.replace(name="mine", num_classes=3, bn_eps=1e-3, padding="same", resolution=96)
    view = Preprocessing(
        mean=(0.4, 0.5, 0.6),
        std=(0.2, 0.25, 0.3),
        crop_fraction=0.9,
        interpolation="bicubic",
        central="stretch",
    )
    return Model(
        spec=spec, variables=weights_of(spec), preprocessing=view, class_names=("à", "b c", "d")
    )


@pytest.fixture(scope="module")
def other_model(tiny_spec):
    """A network that no library has."""
    names = tuple(map(str, range(tiny_spec.num_classes)))
    return Model(
        spec=tiny_spec,
        variables=weights_of(tiny_spec),
        preprocessing=Preprocessing(),
        class_names=names,
    )


@pytest.fixture
def do(capsys):
    """do(*arguments) -> (exit code, standard output, standard error)."""

    def run(*arguments):
        code = __main__.main([*map(str, arguments)])
        said = capsys.readouterr()
        assert SECRET not in said.out + said.err
        return code, *said

    return run


def assert_same(model, other):
    assert other.spec == model.spec
    assert other.preprocessing == model.preprocessing
    assert other.class_names == model.class_names
    assert jax.tree.all(jax.tree.map(np.array_equal, model.variables, other.variables))


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("which", ["timm_model", "other_model"])
def test_up_and_down_again_is_the_same(do, server, tmp_path, monkeypatch, request, which):
    import_peer("huggingface_hub", "uploads to the Hub")
    model = request.getfixturevalue(which)
    save_model(tmp_path / "one", model, origin={})
    monkeypatch.setenv("HF_TOKEN", SECRET)
    code, said, errors = do("export-weights", f"--import={tmp_path}/one", f"--to=hf:{REPOSITORY}")
    assert code == 0, (errors, server.asked)
    assert f"uploaded: {server.address}/{REPOSITORY}/commit/" in said
    assert REPOSITORY in server.private
    files = server.repositories[REPOSITORY]["main"]
    assert ("config.json" in files) == (which == "timm_model")
    assert ("timm has no such network" in said) == (which == "other_model")
    code, said, _ = do("import", f"--weights=hf:{REPOSITORY}", f"--out={tmp_path}/two")
    assert code == 0
    assert f"imported mbv3_jax's {model.spec.name}: " in said
    assert_same(model, load_model(tmp_path / "two"))
    (commit,) = set(server.repositories[REPOSITORY]) - {"main"} - {hashlib.sha1(b"[]").hexdigest()}
    assert f"(to import the same again: --weights=hf:{REPOSITORY}@{commit})" in said
    origin = json.loads((tmp_path / "two" / "origin.json").read_text())
    assert (origin["hub"], origin["revision"]) == (REPOSITORY, commit)
    # Files are asked for by commit, so that all are of one revision.
    assert not [path for _, path, _ in server.asked if "/resolve/main/" in path]
    assert not list(tmp_path.glob("cache/**/*.part"))


def test_timm_loads_the_folder(do, server, timm_model, tmp_path):
    peers = torch_peers()
    timm, torch = peers.timm, peers.torch
    save_model(tmp_path / "one", timm_model, origin={})
    out = tmp_path / "folder"
    code, said, _ = do("export-weights", f"--import={tmp_path}/one", "--to=hf", f"--out={out}")
    assert code == 0
    assert f"timm.create_model('local-dir:{out}', pretrained=True)" in said
    assert sorted(files_of(out)) == [
        "README.md",
        "classes.json",
        "config.json",
        "model.safetensors",
        "preprocessing.json",
        "spec.json",
    ]
    model = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
    x = np.random.default_rng(1).uniform(-1, 1, (2, 97, 64, 3)).astype(np.float32)
    with torch.no_grad():
        found = model(torch.from_numpy(x.transpose(0, 3, 1, 2))).numpy()
    wanted = np.asarray(functional.apply(timm_model.spec, timm_model.variables, x)[0])
    assert np.max(np.abs(found - wanted)) < 1e-4 * np.max(np.abs(wanted))
    view = timm.data.resolve_model_data_config(model)
    assert list(view["input_size"]) == [3, 96, 96]
    assert (list(view["mean"]), list(view["std"])) == ([0.4, 0.5, 0.6], [0.2, 0.25, 0.3])
    assert (view["crop_pct"], view["crop_mode"]) == (0.9, "squash")
    assert view["interpolation"] == "bicubic"
    assert model.pretrained_cfg["label_names"] == ["à", "b c", "d"]

    card = import_peer("huggingface_hub", "cards").ModelCard.load(out / "README.md")
    assert card.data.library_name == "timm"
    assert card.data.pipeline_tag == "image-classification"
    assert "timm.create_model" in card.text and "mbv3 import --weights=hf:" in card.text

    # The same, with what describes it for this package left out: timm's files say it all but the
    # fields that change nothing.
    server.put("timm/one", {n: d for n, d in files_of(out).items() if n != "spec.json"})
    code, said, _ = do("import", "--weights=hf:timm/one", f"--out={tmp_path}/two")
    assert code == 0
    assert "imported timm's mobilenetv3_small_050: " in said
    assert "class names: the file's config.json" in said
    again = load_model(tmp_path / "two")
    assert_same(dataclasses.replace(timm_model, spec=again.spec), again)
    assert again.spec == timm_model.spec.replace(name=again.spec.name)


def test_what_timm_saves_is_read_with_its_arguments(do, server, tmp_path):
    peers = torch_peers()
    timm, torch = peers.timm, peers.torch
    torch.manual_seed(0)
    made = timm.create_model(
        "mobilenetv3_small_050", num_classes=5, bn_eps=1e-2, pad_type="same", drop_rate=0.1
    ).eval()
    timm.models.save_for_hf(
        made,
        tmp_path / "saved",
        model_config={"label_names": list("abcde")},
        safe_serialization=True,
    )
    server.put("some/one", files_of(tmp_path / "saved"))
    assert do("import", "--weights=hf:some/one", f"--out={tmp_path}/two")[0] == 0
    model = load_model(tmp_path / "two")
    assert model.class_names == tuple("abcde")
    assert (model.spec.bn_eps, model.spec.padding) == (0.01, "same")
    x = np.random.default_rng(1).uniform(-1, 1, (1, 64, 97, 3)).astype(np.float32)
    with torch.no_grad():
        wanted = made(torch.from_numpy(x.transpose(0, 3, 1, 2))).numpy()
    found = np.asarray(functional.apply(model.spec, model.variables, x)[0])
    assert np.max(np.abs(found - wanted)) < 1e-4 * np.max(np.abs(wanted))

    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    config["model_args"]["act_layer"] = "relu"
    changed = files_of(tmp_path / "saved") | {"config.json": json.dumps(config).encode()}
    server.put("some/one", changed)
    code, _, said = do("import", "--weights=hf:some/one", f"--out={tmp_path}/three")
    assert code == 2
    assert "hf:some/one/config.json: model_args.act_layer: 'relu' is not read" in one_line(said)


@pytest.mark.parametrize("named", ["mobilenetv3_large_100", "resnet50"])
@pytest.mark.parametrize("described", [True, False])
def test_a_config_that_names_another_network_is_refused(
    do, server, timm_model, tmp_path, named, described
):
    hub_folder.write(tmp_path / "folder", timm_model, None)
    files = files_of(tmp_path / "folder")
    if not described:
        del files["spec.json"]
    config = json.loads(files["config.json"]) | {"architecture": named}
    server.put("some/one", files | {"config.json": json.dumps(config).encode()})
    command = "import", "--weights=hf:some/one", f"--out={tmp_path}/two"
    code, _, said = do(*command)
    assert code == 2
    assert (
        f"hf:some/one/config.json: architecture: got {named!r}, but model.safetensors holds the "
        "tensors of timm's mobilenetv3_small_050; give --from=timm --network=NAME to say which"
    ) in one_line(said)
    assert not (tmp_path / "two").exists()
    assert do(*command, "--from=timm", "--network=mobilenetv3_small_050")[0] == 0
    assert load_model(tmp_path / "two").spec.num_classes == 3


def test_a_config_beside_published_weights_names_their_network(timm_model, tmp_path):
    hub_folder.write(tmp_path / "folder", timm_model, None)
    weights, published = tmp_path / "folder" / "model.safetensors", "mobilenetv3_small_050"
    timm_config.check_architecture(weights, {}, published)
    with pytest.raises(UsageError, match=r"got 'mobilenetv3_small_050', but .* timm's tf_mobil"):
        timm_config.check_architecture(weights, {}, "tf_mobilenetv3_small_100")


@pytest.fixture
def published(server, other_model, tmp_path):
    """The files of a repository that is there."""
    hub_folder.write(tmp_path / "folder", other_model, None)
    files = files_of(tmp_path / "folder")
    server.put(REPOSITORY, files)
    server.put(REPOSITORY, files, "v1.0")
    return files


def one_line(said):
    assert said.count("\n") == 1 and "Traceback" not in said, said
    return said


@pytest.mark.parametrize(
    ("address", "code", "reason"),
    [
        (
            "hf:some-one/none",
            2,
            "no such repository, or it is private or gated and HF_TOKEN is not",
        ),
        (
            "hf:some-one/my.net@v2",
            2,
            "--weights=hf:some-one/my.net@v2: some-one/my.net has no revi",
        ),
        ("hf:my.net", 2, "--weights=hf:my.net: expected hf:OWNER/NAME or hf:OWNER/NAME@REVISION"),
        ("hf:a/b/c", 2, "expected hf:OWNER/NAME"),
        ("hf:some-one/my.net@", 2, "expected hf:OWNER/NAME"),
        ("hf:../x", 2, "expected hf:OWNER/NAME"),
        ("hf:", 2, "expected hf:OWNER/NAME"),
    ],
)
def test_addresses_of_nothing(do, server, published, tmp_path, address, code, reason):
    got, _, said = do("import", f"--weights={address}", f"--out={tmp_path}/two")
    assert got == code
    assert reason in one_line(said)
    assert not (tmp_path / "two").exists()


def test_a_revision_by_name(do, server, published, tmp_path):
    assert do("import", f"--weights=hf:{REPOSITORY}@v1.0", f"--out={tmp_path}/two")[0] == 0


def test_missing_files(do, server, published, tmp_path):
    arguments = ("import", f"--weights=hf:{REPOSITORY}", f"--out={tmp_path}/two")
    server.put(REPOSITORY, {"README.md": b"", "spec.json": b""})
    code, _, said = do(*arguments)
    assert code == 2
    assert "it has no file that ends in .safetensors or .pth" in one_line(said)
    server.put(REPOSITORY, {"a.pth": b"", "b.pth": b""})
    code, _, said = do(*arguments)
    assert code == 2
    assert "it has a.pth, b.pth, of which to download one" in one_line(said)
    # spec.json is damaged, and said to be of the address, not of a folder that is gone.
    server.put(REPOSITORY, published | {"spec.json": b"{"})
    code, _, said = do(*arguments)
    assert code == 1
    assert f"hf:{REPOSITORY}/spec.json" in one_line(said)
    server.put(REPOSITORY, published | {"spec.json": published["spec.json"].replace(b"3", b"5")})
    code, _, said = do(*arguments)
    assert code in (1, 2) and f"hf:{REPOSITORY}" in said and "Traceback" not in said


def test_flags_that_the_repository_answers(do, server, published, tmp_path):
    arguments = ("import", f"--weights=hf:{REPOSITORY}", f"--out={tmp_path}/two")
    code, _, said = do(*arguments, "--resolution=64")
    assert (code, f"--resolution: hf:{REPOSITORY} says it itself" in one_line(said)) == (2, True)
    code, _, said = do(*arguments, "--revision=main")
    assert (code, "--revision: write it behind the address" in one_line(said)) == (2, True)
    code, _, said = do(*arguments, "--sha256=00")
    assert (code, "expected 00" in one_line(said)) == (2, True)


def test_without_a_network(do, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nothing listens
    monkeypatch.setenv("HF_TOKEN", SECRET)
    code, _, said = do("import", f"--weights=hf:{REPOSITORY}", f"--out={tmp_path}/two")
    assert code == 1
    said = one_line(said)
    assert f"cannot download its list of files of hf:{REPOSITORY} from http://127.0.0.1:9" in said
    assert "fetch the files elsewhere and give --weights=FILE" in said


def test_something_else_answers(do, server, published, tmp_path):
    for server.page in (b"<html>", b'{"sha": "main", "siblings": []}'):
        code, _, said = do("import", f"--weights=hf:{REPOSITORY}", f"--out={tmp_path}/two")
        assert code == 1
        assert "is no Hugging Face Hub: " in one_line(said)


def test_a_token_that_cannot_be_sent_is_not_printed(do, server, published, tmp_path, monkeypatch):
    for token in (f"{SECRET}\nX: y", f"{SECRET} x", f"{SECRET}é"):
        monkeypatch.setenv("HF_TOKEN", token)
        code, _, said = do("import", f"--weights=hf:{REPOSITORY}", f"--out={tmp_path}/two")
        assert (code, "HF_TOKEN: has characters that" in one_line(said)) == (2, True)
    assert server.asked == []
    monkeypatch.setenv("HF_TOKEN", f" {SECRET}\n")  # as from a file
    assert do("import", f"--weights=hf:{REPOSITORY}", f"--out={tmp_path}/two")[0] == 0


def test_private_repositories_and_where_the_token_goes(
    do, server, published, tmp_path, monkeypatch
):
    server.private.add(REPOSITORY)
    arguments = ("import", f"--weights=hf:{REPOSITORY}", f"--out={tmp_path}/two")
    code, _, said = do(*arguments)
    assert (code, "HF_TOKEN is not set (401)" in one_line(said)) == (2, True)
    monkeypatch.setenv("HF_TOKEN", SECRET + "_no")
    code, _, said = do(*arguments)
    assert (code, "the token does not open it (401)" in one_line(said)) == (2, True)
    monkeypatch.setenv("HF_TOKEN", SECRET)
    server.asked.clear()
    assert do(*arguments)[0] == 0
    assert {token for *_, token in server.asked} == {f"Bearer {SECRET}"}


@pytest.mark.parametrize("same_host", [True, False])
def test_a_redirection_to_another_host_takes_no_token(
    do, server, published, tmp_path, monkeypatch, same_host
):
    monkeypatch.setenv("HF_TOKEN", SECRET)
    server.moved = server.address if same_host else server.other_address
    assert do("import", f"--weights=hf:{REPOSITORY}", f"--out={tmp_path}/two")[0] == 0
    followed = [token for _, path, token in server.asked if path.startswith("/copy/")]
    assert followed == [f"Bearer {SECRET}" if same_host else None]


def test_a_file_that_is_cut_off_or_damaged(do, server, published, tmp_path):
    server.cut = True
    assert do("import", f"--weights=hf:{REPOSITORY}", f"--out={tmp_path}/two")[0] == 0
    server.damaged = True
    code, _, said = do("import", f"--weights=hf:{REPOSITORY}", f"--out={tmp_path}/three")
    assert code == 1
    assert "model.safetensors is not what the Hub lists" in one_line(said)
    assert not (tmp_path / "three").exists()


def test_what_export_refuses(do, server, other_model, tmp_path, monkeypatch):
    save_model(tmp_path / "one", other_model, origin={})
    arguments = ("export-weights", f"--import={tmp_path}/one")
    for options, reason in (
        (["--to=hub"], "--to=hub: expected one of timm, torchvision, keras, hf, hf:OWNER/NAME"),
        (["--to=timm"], "--out is missing: FILE.pth"),
        (["--to=hf"], "--out is missing: a new folder"),
        (["--to=hf:x"], "--to=hf:x: expected hf:OWNER/NAME"),
        (["--to=hf:a/b@v1"], "--to=hf:a/b@v1: an upload makes a revision"),
        (["--to=hf", f"--out={tmp_path}/one"], "already exists"),
        (["--to=hf", f"--out={tmp_path}/x", "--width=2"], "--width: has an effect only with"),
    ):
        code, _, said = do(*arguments, *options)
        assert (code, reason in one_line(said)) == (2, True), said
    import_peer("huggingface_hub", "uploads to the Hub")
    monkeypatch.setenv("HF_TOKEN", SECRET + "_no")
    code, _, said = do(*arguments, f"--to=hf:{REPOSITORY}")
    assert (code, "refuses: " in one_line(said)) == (1, True)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    code, _, said = do(*arguments, f"--to=hf:{REPOSITORY}", f"--out={tmp_path}/kept")
    assert code == 1
    one_line(said)
    assert (tmp_path / "kept" / "README.md").is_file()


def test_surplus_and_missing_tensors(tmp_path, other_model):
    hub_folder.write(tmp_path / "folder", other_model, None)
    safetensors = import_peer("safetensors.numpy", "weights of the Hub")
    path = tmp_path / "folder" / "model.safetensors"
    tensors = safetensors.load_file(path)
    for changed, reason in (
        ({**tensors, "params.stem.x": np.zeros(1, np.float32)}, "params/stem/x"),
        ({n: t for n, t in tensors.items() if n != "params.logits.bias"}, "params/logits/bias"),
        ({**tensors, "params.logits.bias.x": tensors["params.logits.bias"]}, "lies in a tensor"),
    ):
        safetensors.save_file(changed, path)
        with pytest.raises(RunError, match=f"(?s)does not fit together: .*{reason}"):
            hub_folder.read(tmp_path / "folder")


@pytest.mark.parametrize("names", [("params.a", "params.a.x"), ("params.a.x", "params.a")])
def test_a_tensor_inside_a_tensor_is_found_in_either_order(names):
    with pytest.raises(ValueError, match=r"params\.a\.x lies in a tensor"):
        hub_folder._nested(dict.fromkeys(names, np.zeros(1)))
