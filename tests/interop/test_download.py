"""Names of weights find repositories, URLs and hashes; local servers stand in for the real ones."""

import dataclasses
import hashlib
import http.server
import json
import threading

import numpy as np
import pytest
from peer_compare import import_peer

from mbv3_jax import __main__
from mbv3_jax.core.errors import RunError, UsageError
from mbv3_jax.interop import download, mapping, networks, pretrained

COMMIT = "0123456789abcdef0123456789abcdef01234567"
NAME = "mobilenetv3_small_050.lamb_in1k"


@pytest.fixture
def server():
    """(address, pages, asked): a server of {path: (headers, bytes)} that lists its requests."""
    pages, asked = {}, []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            path = self.path.partition("?")[0]
            asked.append(f"{self.command} {path}")
            headers, data = pages.get(path, ({}, None))
            self.send_response(404 if data is None else 200)
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(data or b"")))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data or b"")

        do_HEAD = do_GET

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_address[1]}", pages, asked
        running.shutdown()


@pytest.fixture(autouse=True)
def caches(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "mbv3_jax"


def test_names():
    find = pretrained.find_pretrained
    assert find("timm", "mobilenetv3_large_100").hub == "timm/mobilenetv3_large_100.ra_in1k"
    entry = find("timm", "mobilenetv3_large_100.miil_in21k")
    assert (entry.num_classes, entry.preprocessing.std) == (11221, (1.0, 1.0, 1.0))
    entry = find("timm", "mobilenetv3_large_100.ra4_e3600_r224_in1k")
    assert (entry.preprocessing.crop_fraction, entry.preprocessing.mean) == (0.95, (0.5,) * 3)
    entry = find("torchvision", "mobilenet_v3_large")
    base = "https://download.pytorch.org/models/"
    assert (entry.url, entry.sha256) == (f"{base}mobilenet_v3_large-5c1a4163.pth", "5c1a4163")
    assert find("torchvision", "mnasnet0_5").sha256 == "3ffadce67e"
    entry = find("keras", "MobileNetV3Small.0.75")
    assert entry.url.endswith("/mobilenet_v3/weights_mobilenet_v3_small_224_0.75_float.h5")
    assert (entry.md5, entry.width) == ("cb65d4e5be93758266aa0a7f2c6708b7", 0.75)
    entry = find("keras", "MobileNetV2.0.35_96")
    assert entry.url.endswith("mobilenet_v2_weights_tf_dim_ordering_tf_kernels_0.35_96.h5")
    assert entry.resolution == 96
    assert find("keras", "MobileNetV2").name == "MobileNetV2.1.0_224"


@pytest.mark.parametrize(
    ("library", "name", "reason"),
    [
        ("timm", "mobilenetv3_small_100.lamb", "it publishes mobilenetv3_small_100.lamb_in1k"),
        ("timm", "mobilenetv3_smal_100", "publishes .*[ ]mobilenetv3_small_100.lamb_in1k"),
        ("timm", "mobilenetv3_large_075", "timm publishes no weights of mobilenetv3_large_075"),
        ("timm", "mobilenetv3_large_150d", "two 1x1 convolutions"),
        ("torchvision", "resnet50", "weights of mobilenet_v3_large, mobilenet_v3_small"),
        ("keras", "MobileNetV3Large.0.5", "it publishes MobileNetV3Large.1.0"),
    ],
)
def test_unknown_names_are_refused(library, name, reason):
    with pytest.raises(UsageError, match=reason):
        pretrained.find_pretrained(library, name)


def test_hashes_tell_files():
    digits = "266a294c" + "0" * 56
    assert (
        pretrained.pretrained_of_file("timm", digits, "").name == "mobilenetv3_small_100.lamb_in1k"
    )
    assert pretrained.pretrained_of_file("torchvision", digits, "") is None
    md5 = "cb65d4e5be93758266aa0a7f2c6708b7"
    assert pretrained.pretrained_of_file("keras", "0" * 64, md5).name == "MobileNetV3Small.0.75"
    assert pretrained.pretrained_of_file("keras", "0" * 64, "0" * 32) is None


def test_by_address(server, caches):
    address, pages, asked = server
    data = b"some weights"
    entry = pretrained.Pretrained(
        name="net.tag",
        network="net",
        preprocessing=pretrained.Preprocessing(),
        url=f"{address}/models/net-1.pth",
        sha256=hashlib.sha256(data).hexdigest()[:8],
    )
    with pytest.raises(RunError, match=r"cannot download net.tag from .*404.*--weights=FILE"):
        download.fetch(entry)
    pages["/models/net-1.pth"] = {}, b"other bytes"
    with pytest.raises(RunError, match=r"is not what was published: sha256 .*, expected "):
        download.fetch(entry)
    assert not caches.exists()
    pages["/models/net-1.pth"] = {}, data
    path, origin = download.fetch(entry)
    assert (path, path.read_bytes(), origin) == (caches / "net-1.pth", data, {"url": entry.url})
    count = len(asked)
    assert download.fetch(entry)[0] == path
    assert len(asked) == count, "what is in the cache is not fetched again"
    path.write_bytes(b"damaged")
    assert download.fetch(entry)[0].read_bytes() == data
    assert [p.name for p in caches.iterdir()] == ["net-1.pth"]
    with pytest.raises(UsageError, match=r"net\.tag is not on the Hub"):
        download.fetch(entry, revision="abc")


def test_no_network(monkeypatch, tmp_path, capsys):
    # A port that nothing listens on.
    entry = pretrained.find_pretrained("torchvision", "mobilenet_v2")
    nowhere = dataclasses.replace(entry, url="http://127.0.0.1:9/x.pth")
    monkeypatch.setitem(pretrained.PRETRAINED, "torchvision", [nowhere])
    out = tmp_path / "out"
    arguments = ["import", "--from=torchvision", "--weights=mobilenet_v2", f"--out={out}"]
    assert __main__.main(arguments) == 1
    said = capsys.readouterr().err
    assert "cannot download mobilenet_v2.IMAGENET1K_V2 from http://127.0.0.1:9/x.pth" in said
    assert "--weights=FILE --network=mobilenet_v2.IMAGENET1K_V2" in said
    assert not out.exists()


@pytest.fixture
def hub(server, tmp_path, monkeypatch):
    """The Hub's client, pointed at the server, which has one repository."""
    constants = import_peer("huggingface_hub.constants", "downloads from the Hub")
    safetensors = import_peer("safetensors.numpy", "downloads from the Hub")
    address, pages, asked = server
    monkeypatch.setattr(constants, "ENDPOINT", address)  # HF_ENDPOINT, read too early for that
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    spec = networks.get("timm", "mobilenetv3_small_050").spec
    rng = np.random.default_rng(0)
    tensors = {
        p.theirs: rng.uniform(0.5, 1, p.their_shape).astype(np.float32)
        for p in mapping.pairs("timm", spec)
    }
    data = safetensors.save(tensors)
    sha256 = hashlib.sha256(data).hexdigest()

    def publish(listed=sha256):
        lfs = {"sha256": listed, "size": len(data), "pointerSize": 134}
        file = {"rfilename": "model.safetensors", "size": len(data), "blobId": "0", "lfs": lfs}
        info = {"id": f"timm/{NAME}", "sha": COMMIT, "siblings": [file]}
        as_json = {"Content-Type": "application/json"}, json.dumps(info).encode()
        pages[f"/api/models/timm/{NAME}"] = as_json
        pages[f"/api/models/timm/{NAME}/revision/{COMMIT}"] = as_json
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{sha256}"', "X-Linked-Size": len(data)}
        pages[f"/timm/{NAME}/resolve/{COMMIT}/model.safetensors"] = headers, data

    return publish, asked, sha256


@pytest.mark.parametrize("revision", [None, COMMIT])
def test_by_the_hub(hub, tmp_path, capsys, revision):
    publish, asked, sha256 = hub
    publish()
    out = tmp_path / "out"
    arguments = ["import", "--from=timm", "--weights=mobilenetv3_small_050", f"--out={out}"]
    assert __main__.main([*arguments, *([f"--revision={revision}"] if revision else [])]) == 0
    origin = json.loads((out / "origin.json").read_text())
    assert origin["hub"] == f"timm/{NAME}"
    assert (origin["revision"], origin["sha256"]) == (COMMIT, sha256)
    assert origin["preprocessing"] == f"of {NAME}"
    said = capsys.readouterr().out
    assert f"(to import the same again: --revision={COMMIT})" in said
    # The file is asked for by commit, never by the branch.
    assert f"GET /timm/{NAME}/resolve/{COMMIT}/model.safetensors" in asked
    assert not [a for a in asked if "/resolve/main/" in a]


def test_the_hub_gives_other_bytes(hub, tmp_path, capsys):
    publish, _, _ = hub
    publish(listed="0" * 64)
    out = tmp_path / "out"
    arguments = ["import", "--from=timm", f"--weights={NAME}", f"--out={out}"]
    assert __main__.main(arguments) == 1
    assert f"is not what https://huggingface.co/timm/{NAME} publishes" in capsys.readouterr().err
    assert not out.exists()


def test_the_hub_does_not_know_it(hub, tmp_path, capsys):
    arguments = ["import", "--from=timm", f"--weights={NAME}", f"--out={tmp_path / 'out'}"]
    assert __main__.main(arguments) == 1
    said = capsys.readouterr().err
    assert f"cannot download {NAME} from https://huggingface.co/timm/{NAME}" in said
    assert f"fetch model.safetensors elsewhere and give --weights=FILE --network={NAME}" in said
