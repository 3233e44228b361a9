"""Downloads end, whatever the server does; servers on this machine stand in for bad ones."""

import contextlib
import hashlib
import socket
import threading
import time

import pytest

from mbv3_jax.core import download
from mbv3_jax.core.download import DEADLINE, DownloadError
from mbv3_jax.core.errors import RunError
from mbv3_jax.interop import download as weights
from mbv3_jax.interop import pretrained
from mbv3_jax.search import accel_nasbench

FILE = bytes(range(256)) * 1000
HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n"


def ok(data, length=None):
    return HEAD % (len(data) if length is None else length) + data


def rest(data, begin):
    """The answer to a request for what follows `begin`."""
    head = b"HTTP/1.1 206 Partial Content\r\nContent-Length: %d\r\n" % (len(data) - begin)
    return (
        head
        + b"Content-Range: bytes %d-%d/%d\r\n\r\n"
        % (
            begin,
            len(data) - 1,
            len(data),
        )
        + data[begin:]
    )


def drip(head, each=b"x", seconds=0.05):
    """Sends `head`, and then without end a little at a time."""

    def send(connection):
        connection.sendall(head)
        while True:
            connection.sendall(each)
            time.sleep(seconds)

    return send


@pytest.fixture
def serve():
    """serve(*answers) -> (address, requests): each connection gets the next answer, raw."""
    listening = []

    def start(*answers):
        server = socket.create_server(("127.0.0.1", 0))
        listening.append(server)
        asked = []

        def run():
            for answer in answers:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    asked.append(connection.recv(65536).decode())
                    with contextlib.suppress(OSError):
                        answer(connection) if callable(answer) else connection.sendall(answer)
            server.close()

        threading.Thread(target=run, daemon=True).start()
        return f"http://127.0.0.1:{server.getsockname()[1]}/f", asked

    yield start
    for server in listening:
        server.close()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "mbv3_jax"


def is_right(data):
    return data == FILE


def get(url, **options):
    return download.download(url, "f", **{"max_bytes": 10**6, "is_right": is_right, **options})


def test_a_file(serve, cache):
    url, _ = serve(ok(FILE))
    assert get(url) == FILE
    assert not cache.exists()


@pytest.mark.parametrize(
    "answer",
    [
        drip(b""),
        drip(b"HTTP/1.1 200 OK\r\n", b"A: b\r\n"),
        drip(HEAD % 10**5),
        drip(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
        lambda connection: time.sleep(20),
    ],
    ids=["status", "headers", "body", "chunks", "silence"],
)
def test_a_server_that_drips(serve, monkeypatch, answer):
    monkeypatch.setenv(DEADLINE, "1")
    url, _ = serve(answer)
    began = time.perf_counter()
    with pytest.raises(DownloadError, match=f"^not finished after 1 s, .*; .* {DEADLINE} raises"):
        get(url)
    assert time.perf_counter() - began < 5


def test_a_cut_body_is_resumed_at_once(serve, cache):
    url, asked = serve(ok(FILE[:1000], len(FILE)), rest(FILE, 1000))
    assert get(url) == FILE
    assert "Range: bytes=1000-" in asked[1] and "Range" not in asked[0]
    assert not cache.exists() or not list(cache.iterdir())


def test_and_by_the_next_call(serve, cache):
    url, _ = serve(ok(FILE[:1000], len(FILE)), ok(b"", 1), ok(b"", 1))
    with pytest.raises(DownloadError, match="the connection was cut off"):
        get(url)
    url, asked = serve(*[ok(FILE[:1000], len(FILE))] * 3)
    with pytest.raises(
        DownloadError, match="cut off, 1,000 of 256,000 bytes have arrived; the same command asks"
    ):
        get(url)
    assert (cache / "f.part").read_bytes() == FILE[:1000]
    url, asked = serve(rest(FILE, 1000))
    assert get(url) == FILE
    assert "Range: bytes=1000-" in asked[0]
    assert not list(cache.iterdir())


def test_what_a_server_says_is_one_line(serve, cache):
    url, _ = serve(b"HTTP/1.1 500 \x1b[31mNo\r\n\r\n")
    with pytest.raises(DownloadError, match=r"^the server answers 500 \\x1b\[31mNo$"):
        get(url)
    loop = b"HTTP/1.1 302 Found\r\nLocation: /x\r\nContent-Length: 0\r\n\r\n"
    url, _ = serve(*[loop] * 12)
    with pytest.raises(DownloadError, match=r"^the server answers 302 .*") as raised:
        get(url)
    assert str(raised.value).isprintable()
    with pytest.raises(DownloadError, match=r"^Connection refused$"):
        get("http://127.0.0.1:9/x")


def test_a_part_of_another_file_is_not_used(serve, cache):
    cache.mkdir(parents=True)
    for answers in ([rest(FILE, 4), ok(FILE)], [b"HTTP/1.1 416 No\r\n\r\n", ok(FILE)], [ok(FILE)]):
        (cache / "f.part").write_bytes(b"part")
        url, _ = serve(*answers)
        assert get(url) == FILE
        assert not list(cache.iterdir())


def test_without_a_hash_nothing_is_put_together(serve, cache):
    url, asked = serve(ok(FILE[:1000], len(FILE)), ok(FILE))
    assert get(url, is_right=None) == FILE
    assert not any("Range" in request for request in asked)
    url, _ = serve(*[ok(FILE[:1000], len(FILE))] * 3)
    with pytest.raises(DownloadError, match=r"cut off, 1,000 of 256,000 bytes have arrived$"):
        get(url, is_right=None)
    assert not cache.exists()


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"\x1b[31mSSH-2.0\r\n\r\n", r"does not answer in HTTP \(BadStatusLine\)"),
        (b"HTTP/1.1 abc OK\r\n\r\n", r"does not answer in HTTP \(BadStatusLine\)"),
        (b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 200 + b"\r\n", "does not answer in HTTP"),
        (b"HTTP/1.1 200 " + b"a" * 10**5, r"does not answer in HTTP \(LineTooLong\)"),
        (b"", "Remote end closed connection without response|does not answer in HTTP"),
        (b"HTTP/1.1 404 Gone fishing\r\n\r\n", "the server answers 404 Gone fishing"),
        (b"HTTP/1.1 302 Found\r\nLocation: file:///etc/passwd\r\n\r\n", "the server answers 302"),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nx\r\n",
            "does not answer in HTTP",
        ),
        (ok(bytes(10**6 + 1)), "it has more than 1,000,000 bytes"),
        (ok(b"", 10**30), "it has more than 1,000,000 bytes"),
        (b"HTTP/1.1 200 OK\r\n\r\n" + bytes(10**6 + 1), "it has more than 1,000,000 bytes"),
    ],
)
def test_bad_answers_are_one_line(serve, cache, answer, reason):
    url, _ = serve(*[answer] * 3)
    with pytest.raises(DownloadError, match=reason) as caught:
        get(url)
    assert str(caught.value).isprintable()
    assert not cache.exists()


def test_progress(serve, monkeypatch, capsys):
    monkeypatch.setattr(download, "_LINE_S", 0.0)
    url, _ = serve(ok(FILE))
    get(url)
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1] == "downloading f: 256,000 of 256,000 bytes"


def test_the_table_and_the_weights_are_downloaded_so(serve, monkeypatch, cache):
    digest = hashlib.sha256(FILE).hexdigest()
    monkeypatch.setattr(accel_nasbench, "SHA256", digest)
    monkeypatch.setattr(accel_nasbench, "SIZE", len(FILE))
    monkeypatch.setenv(DEADLINE, "1")
    entry = pretrained.Pretrained(
        name="n.t",
        network="n",
        preprocessing=pretrained.Preprocessing(),
        url="http://127.0.0.1:9/f",
        sha256=digest[:8],
    )
    for answers, kind in (
        ([drip(HEAD % 10**5)], "not finished after 1 s"),
        ([ok(FILE[:9], len(FILE))] * 3, "cut off, 9 of 256,000 bytes"),
        ([b"nonsense\r\n"] * 3, "does not answer in HTTP"),
    ):
        url, _ = serve(*answers)
        monkeypatch.setattr(accel_nasbench, "URL", url)
        with pytest.raises(RunError, match=f"cannot read {url}: .*{kind}"):
            accel_nasbench.fetch()
        url, _ = serve(*answers)
        object.__setattr__(entry, "url", url)
        for part in cache.glob("*.part"):
            part.unlink()
        with pytest.raises(RunError, match=f"cannot download n.t from {url}: .*{kind}"):
            weights.fetch(entry)
        for part in cache.glob("*.part"):
            part.unlink()
