"""Which file of a repository is read, and the names, addresses and tokens that people have."""

import pytest

from mbv3_jax.core.errors import UsageError
from mbv3_jax.interop import hub, weight_files

ADDRESS = hub.Address("a/b")


@pytest.mark.parametrize(
    ("library", "files", "chosen"),
    [
        ("timm", ["pytorch_model.bin", "model.safetensors"], "model.safetensors"),
        ("timm", ["config.json", "best.pt"], "best.pt"),
        (
            "timm",
            ["last.ckpt", "optimizer.pt", "training_args.bin", "rng_state_0.pth"],
            "last.ckpt",
        ),
        ("timm", ["model_best.pth", "last.ckpt"], "model_best.pth"),
        ("torchvision", ["checkpoints/last.pth.tar", "README.md"], "checkpoints/last.pth.tar"),
        ("keras", ["model.safetensors", "flowers.keras"], "flowers.keras"),
        ("keras", ["pytorch_model.bin", "model.weights.h5", "config.json"], "model.weights.h5"),
    ],
)
def test_the_file_of_weights(library, files, chosen):
    assert hub._weights(ADDRESS, files, weight_files.endings(library)) == chosen


@pytest.mark.parametrize(
    ("library", "files", "reason"),
    [
        ("timm", ["a.pt", "b.pt"], "it has a.pt, b.pt, of which to download one"),
        ("timm", ["training_args.bin"], "it has no file that ends in .safetensors or .pth or .pt"),
        ("keras", ["model.safetensors"], "expected one file of weights, it has no file that ends"),
        (
            "timm",
            [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)],
            "its weights are in several files (shards), which are not read",
        ),
        ("timm", ["a\0b.safetensors"], "its file a\\x00b.safetensors has a name that cannot be"),
        ("timm", ["\x1b[31m.pth"], "its file \\x1b[31m.pth has a name that cannot be kept"),
        ("timm", ["x" * 300 + ".pth"], "has a name that cannot be kept"),
    ],
)
def test_no_file_of_weights(library, files, reason):
    with pytest.raises(UsageError) as raised:
        hub._weights(ADDRESS, files, weight_files.endings(library))
    assert reason in str(raised.value) and str(raised.value).isprintable()


@pytest.mark.parametrize("revision", ["v1.0+cpu", "refs/pr/1", "x@y", "релиз", "feature#2"])
def test_revisions_as_git_has_them(revision):
    assert hub.parse(f"hf:a/b@{revision}", "--weights") == hub.Address("a/b", revision)


@pytest.mark.parametrize("revision", ["a b", "a\tb", "HEAD~1", "a..b", "a:b", "\x1b[31m", "x\n"])
def test_what_git_forbids(revision):
    with pytest.raises(UsageError, match="expected hf:OWNER/NAME"):
        hub.parse(f"hf:a/b@{revision}", "--weights")


def test_endpoints(monkeypatch):
    for endpoint in (" https://hub.example/ ", "http://[::1]:80/mirror"):
        monkeypatch.setenv("HF_ENDPOINT", endpoint)
        assert hub._endpoint() == endpoint.strip().rstrip("/")
    for endpoint in ("hub.example", "file:///etc", "ftp://x", "https://me:secret@x", "http://[::1"):
        monkeypatch.setenv("HF_ENDPOINT", endpoint)
        with pytest.raises(UsageError, match="HF_ENDPOINT: expected https://HOST") as raised:
            hub._endpoint()
        assert "secret" not in str(raised.value)


def test_the_token_of_a_login(monkeypatch, tmp_path):
    for name in ("HF_TOKEN", "HF_HOME", "HF_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert hub._token() is None
    kept = tmp_path / "huggingface" / "token"
    kept.parent.mkdir()
    kept.write_text("hf_kept\n")
    assert hub._token() == "hf_kept"
    monkeypatch.setenv("HF_TOKEN", "hf_set")
    assert hub._token() == "hf_set"
    monkeypatch.setenv("HF_TOKEN", " ")
    kept.write_text("hf_two\nlines\n")
    with pytest.raises(UsageError, match="token: has characters that no token has") as raised:
        hub._token()
    assert "hf_two" not in str(raised.value)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "none"))
    assert hub._token() is None
