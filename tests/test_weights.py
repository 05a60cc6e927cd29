"""Weights are found where they should be, and no bad file ever bears its final name.

A server on this machine plays the internet, with one path for each way of going wrong.
"""

from __future__ import annotations

import errno
import gc
import os
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from dataclasses import fields
from hashlib import sha256
from http.client import HTTPSConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from facestyle import weights
from facestyle.card import ModelCard
from facestyle.checkpoint import load_checkpoint
from facestyle.errors import CheckpointError, UsageError, WeightsError
from facestyle.weights import WeightsEntry, download, entry_for, locate, resolve, verify

BODY = bytes(range(256)) * 2000  # 512,000 bytes: several blocks
DIGEST = sha256(BODY).hexdigest()
PROXIES = ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")


class Internet(ThreadingHTTPServer):
    """Answers ``/<mode>/<file>`` and counts what it was asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: Counter[str] = Counter()
        self.over = threading.Event()  # lets a stalled answer go at the end of the test
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that hang up are part of these tests."""


class Handler(BaseHTTPRequestHandler):
    server: Internet

    def do_GET(self) -> None:
        mode = self.path.split("/")[1]
        self.server.asked[mode] += 1
        if mode == "404":
            self.send_error(404)
            return
        body = {
            "html": b"<!DOCTYPE html><title>Sign in</title>",
            "blank-html": b"\r\n\n <html><body>quota exceeded</body>",
            "lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 512000\n",
            "wrong": BODY[::-1],
            "empty": b"",
        }.get(mode, BODY)
        self.send_response(200)
        kind = "text/html; charset=utf-8" if mode == "html" else "application/octet-stream"
        self.send_header("Content-Type", kind)
        if mode != "unmeasured":
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if mode == "slow":  # long enough for eight processes to arrive
            time.sleep(0.5)
        if mode in ("cut", "stall", "unmeasured"):
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            if mode == "stall":
                self.server.over.wait(30)
            return
        self.wfile.write(body)

    def do_CONNECT(self) -> None:
        self.server.asked[f"CONNECT {self.path}"] += 1
        self.send_error(502)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


@pytest.fixture
def internet() -> Iterator[Internet]:
    with Internet() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.over.set()
        server.shutdown()
        thread.join()
    gc.collect()  # a connection that was left open is told of here, not in some other test


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and nothing else from the environment."""
    for name in ("FACESTYLE_MIRROR", "FACESTYLE_OFFLINE", "XDG_CACHE_HOME", *PROXIES):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FACESTYLE_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "weights"


def entry(url: str | None, digest: str | None = DIGEST, size: int | None = None) -> WeightsEntry:
    return WeightsEntry(
        name="demo",
        file="demo.bin",
        kind="detector",
        licence="none",
        about="a file of these tests",
        url=url,
        sha256=digest,
        size=size,
    )


def files(folder: Path) -> list[str]:
    """What a download left, but for its empty lock."""
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


# --- The index -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typo", "meant"), [("mal", "male"), ("blond_hair", "Blond_Hair"), ("Eyeglases", "Eyeglasses")]
)
def test_a_mistyped_domain_has_a_suggestion(typo: str, meant: str) -> None:
    with pytest.raises(UsageError) as caught:
        weights.shipped_model([typo])
    assert f"did you mean '{meant}'?" in str(caught.value.hint)


def test_a_run_without_a_checkpoint_has_no_model_yet(tmp_path: Path) -> None:
    run = tmp_path / "run-1"
    run.mkdir()
    (run / "run.json").write_text("{}")
    with pytest.raises(WeightsError, match="run-1 has no model yet") as caught:
        weights.resolve(run)
    assert "--resume" in str(caught.value.hint)
    (run / "model.safetensors").write_bytes(b"x")
    assert weights.resolve(run) == run / "model.safetensors"


def test_a_model_that_ships_is_found_by_what_it_knows() -> None:
    assert weights.shipped_model([]) == "female-male"
    known = {name: e for name, e in weights.index().items() if e.knows}
    for name, entry in known.items():
        assert entry.shipped
        card = load_checkpoint(resolve(name)).card
        assert card is not None
        assert card.domains == entry.knows
        assert all(weights.shipped_model([domain]) == name for domain in entry.knows)
        assert weights.shipped_model(entry.knows) == name
    with pytest.raises(UsageError, match=r"no model that ships knows cat.*female, male.*--model"):
        weights.shipped_model(["cat"])


def test_index_is_sound() -> None:
    index = weights.index()
    assert {"female-male", "builtin", "yunet", "stargan-v2-celeba-hq"} <= set(index)
    assert len({e.file for e in index.values()}) == len(index)
    for e in index.values():
        assert e.kind in ("model", "detector", "landmarks")
        assert e.licence
        assert e.about
        assert e.file == Path(e.file).name
        assert (e.kind == "model") == (e.family is not None)
        assert e.sha256 is None or re.fullmatch("[0-9a-f]{64}", e.sha256)
        assert set(e.needs) <= set(index)
        assert set(e.card or {}) <= {field.name for field in fields(ModelCard)}
        if e.shipped:
            assert e.url is None
        else:
            assert e.url is not None
            assert e.url.startswith("https://")


def test_published_sums_are_the_known_ones() -> None:
    known = {name: (e.sha256, e.size) for name, e in weights.index().items() if not e.shipped}
    assert known == {
        "yunet": ("8f2383e4dd3cfbb4553ea8718107fc0423210dc964f9f4280604804ed2552fa4", 232589),
        "yunet-2026may": (
            "ebafce4e3c118d6554634be5c27ab333b4c047a9a8c3faf1d7cf93101c22f0f0",
            229738,
        ),
        "retinaface-mobile0.25": (
            "5f88f7957d9eaef82b49b9e0202bc56e97292e2aede2999209accd34442cc4df",
            1786259,
        ),
        "retinaface-resnet50": (
            "6d1de9c2944f2ccddca5f5e010ea5ae64a39845a86311af6fdf30841b0a5a16d",
            109497761,
        ),
        # Nobody published or computed a sum of these.
        "stargan-v2-celeba-hq": (None, None),
        "stargan-v2-afhq": (None, None),
        "stargan-v2-wing": (None, None),
    }


def test_shipped_files_are_the_ones_of_the_index() -> None:
    for e in weights.index().values():
        path = weights.shipped_dir() / e.file
        if e.shipped and path.exists():
            assert e.sha256 in (None, weights.sha256_of(path)), path
            assert e.size in (None, path.stat().st_size), path


def test_an_unknown_key_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "index.toml").write_text('[a]\nfile="a"\nkind="model"\nlicense="typo"\n')
    monkeypatch.setattr(weights, "shipped_dir", lambda: tmp_path)
    with pytest.raises(TypeError, match="license"):
        weights.index()


# --- Where files lie -----------------------------------------------------------------------------


def test_cache_dir_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    xdg = tmp_path / "xdg"
    monkeypatch.setenv("XDG_CACHE_HOME", str(xdg))
    assert weights.cache_dir() == tmp_path / "home" / "weights"
    monkeypatch.delenv("FACESTYLE_HOME")
    assert weights.cache_dir() == xdg / "facestyle" / "weights"
    monkeypatch.setenv("HOME", str(tmp_path))
    for useless in ("", "relative/cache"):
        monkeypatch.setenv("XDG_CACHE_HOME", useless)
        assert weights.cache_dir() == tmp_path / ".cache" / "facestyle" / "weights"
    assert list(tmp_path.iterdir()) == [], "asking must create nothing"


def test_locate(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert locate("yunet") is None
    assert locate("no-such-name") is None
    cache.mkdir(parents=True)
    cached = cache / weights.index()["yunet"].file
    cached.write_bytes(b"x")
    assert locate("yunet") == cached
    monkeypatch.chdir(tmp_path)
    Path("yunet").mkdir()
    assert locate("yunet") == cached, "a folder called like an entry is not meant"
    Path("run").mkdir()
    assert locate("run") == resolve("run") == Path("run"), "what reads it says what is wrong"
    Path("run/model.safetensors").write_bytes(b"mine")
    assert locate("run") == resolve("run") == Path("run/model.safetensors")
    Path("yunet").rmdir()
    Path("yunet").write_bytes(b"mine")
    assert locate("yunet") == Path("yunet") == resolve("yunet")


@pytest.mark.parametrize(
    ("asked", "nearest"),
    [
        ("femalemale", "female-male"),
        ("yunett", "yunet"),
        ("models/wing.ckpt", "stargan-v2-wing"),
        ("detection_Resnet50_Final.pth", "retinaface-resnet50"),
    ],
)
def test_unknown_suggests_the_nearest(asked: str, nearest: str) -> None:
    with pytest.raises(WeightsError, match=f"did you mean '{nearest}'") as caught:
        resolve(asked)
    assert str(Path(asked).absolute()) in caught.value.message
    assert caught.value.exit_code == 4


def test_a_shipped_file_is_never_fetched(
    tmp_path: Path, internet: Internet, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "index.toml").write_text(
        f'[ours]\nfile="o.bin"\nkind="model"\nlicence="x"\nabout="x"\nshipped=true\n'
        f'sha256="{DIGEST}"\n'
    )
    monkeypatch.setattr(weights, "shipped_dir", lambda: tmp_path)
    monkeypatch.setenv("FACESTYLE_MIRROR", f"{internet.url}/ok")
    with pytest.raises(WeightsError, match=r"o\.bin; .*reinstall"):
        resolve("ours")
    (tmp_path / "o.bin").write_bytes(BODY)
    assert resolve("ours") == download(weights.index()["ours"]) == tmp_path / "o.bin"
    (tmp_path / "o.bin").write_bytes(BODY[:-1])
    with pytest.raises(CheckpointError, match=f"expected {DIGEST}; reinstall"):
        resolve("ours")
    with pytest.raises(WeightsError, match=r"damaged.*reinstall"):
        download(weights.index()["ours"])
    assert (tmp_path / "o.bin").read_bytes() == BODY[:-1]
    assert not internet.asked


# --- Download ------------------------------------------------------------------------------------


def test_download(cache: Path, internet: Internet) -> None:
    seen: list[tuple[int, int | None]] = []
    demo = entry(f"{internet.url}/ok/demo.bin", size=len(BODY))
    path = download(demo, progress=lambda done, total: seen.append((done, total)))
    assert path == cache / "demo.bin"
    assert path.read_bytes() == BODY
    assert seen[-1] == (len(BODY), len(BODY))
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    assert verify(demo).status == "verified"
    assert download(demo) == path
    assert internet.asked == {"ok": 1}
    assert files(cache) == ["demo.bin"]


@pytest.mark.parametrize(
    ("mode", "known", "size", "says"),
    [
        ("404", True, None, "the server answered 404 Not Found"),
        ("html", False, None, "got a web page"),
        ("blank-html", False, None, "got a web page"),
        ("lfs", False, None, "got a Git LFS pointer"),
        ("empty", False, None, "got nothing"),
        ("cut", False, None, "got 256,000 bytes, expected 512,000"),
        ("unmeasured", False, 512_000, "got 256,000 bytes, expected 512,000"),
        ("unmeasured", False, 100_000, "bytes, expected 100,000"),
        ("unmeasured", True, None, r"got a file of sha256 \w+, expected \w+"),
        ("ok", False, 512_001, "got a file of 512,000 bytes, expected 512,001"),
        ("wrong", True, 512_000, r"got a file of sha256 \w+, expected \w+"),
        ("stall", True, None, "not a byte for 0.3 s"),
    ],
)
def test_nothing_bad_gets_the_name(
    mode: str, known: bool, size: int | None, says: str, cache: Path, internet: Internet
) -> None:
    url = f"{internet.url}/{mode}/demo.bin"
    with pytest.raises(WeightsError, match=says) as caught:
        download(entry(url, DIGEST if known else None, size), timeout_s=0.3)
    assert url in caught.value.message
    assert caught.value.hint is not None
    assert str(cache / "demo.bin") in caught.value.hint
    assert "\n" not in str(caught.value)
    assert files(cache) == []


def test_no_server(cache: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/demo.bin"
        with pytest.raises(WeightsError, match="refused"):
            download(entry(url))
    assert files(cache) == []


@pytest.mark.parametrize("url", ["ftp://127.0.0.1/demo.bin", "data:,x", "demo.bin"])
def test_other_schemes_are_refused(url: str) -> None:
    with pytest.raises(WeightsError, match="only https, http and file"):
        download(entry(url))


def test_redirect_away_from_https_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Answer(SimpleNamespace):
        def __enter__(self) -> Answer:
            return self

        def __exit__(self, *_: object) -> None:
            pass

    answer = Answer(url="http://elsewhere.example/demo.bin")
    opener = SimpleNamespace(open=lambda request, timeout: answer)
    monkeypatch.setattr(urllib.request, "build_opener", lambda: opener)
    with pytest.raises(WeightsError, match=r"redirected to http://elsewhere\.example.*not https"):
        download(entry("https://here.example/demo.bin"))


def test_the_first_download_is_held_to(cache: Path, internet: Internet) -> None:
    demo = entry(f"{internet.url}/ok/demo.bin", digest=None)
    path = download(demo)
    assert (cache / "demo.bin.sha256").read_text() == f"{DIGEST}  demo.bin\n"
    assert verify(demo).status == verify(path).status == "first-use"
    path.write_bytes(BODY[:-1])
    assert verify(demo).status == "mismatch"
    with pytest.raises(WeightsError, match=r"expected .* as recorded in .*demo\.bin\.sha256"):
        download(entry(f"{internet.url}/wrong/demo.bin", digest=None))
    assert download(demo).read_bytes() == BODY, "a damaged file is fetched anew"
    (cache / "demo.bin.sha256").unlink()
    assert verify(path).status == "unknown"
    path.unlink()
    assert verify(path).status == "missing"


def test_a_damaged_cached_file_is_reported_not_used(
    cache: Path, internet: Internet, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "index.toml").write_text(
        f'[demo]\nfile="demo.bin"\nkind="detector"\nlicence="x"\nabout="x"\n'
        f'url="{internet.url}/ok/demo.bin"\nsha256="{DIGEST}"\n'
    )
    monkeypatch.setattr(weights, "shipped_dir", lambda: tmp_path)
    path = resolve("demo")
    path.write_bytes(BODY.replace(b"\x07", b"\x06", 1))
    with pytest.raises(CheckpointError, match=r"damaged.*models pull demo") as caught:
        resolve("demo")
    assert caught.value.exit_code == 6
    assert resolve(path) == path, "a path is handed on as it is"
    assert download(weights.index()["demo"]).read_bytes() == BODY


@pytest.mark.parametrize("variable", [None, "1"])
def test_offline_opens_no_socket(
    variable: str | None, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", forbidden)
    monkeypatch.setattr(socket, "create_connection", forbidden)
    monkeypatch.setattr(socket, "getaddrinfo", forbidden)
    if variable:
        monkeypatch.setenv("FACESTYLE_OFFLINE", variable)
    start = time.monotonic()
    with pytest.raises(WeightsError, match="offline") as caught:
        resolve("yunet", offline=variable is None)
    assert time.monotonic() - start < 1
    yunet = weights.index()["yunet"]
    assert f"fetch {yunet.url} " in str(caught.value)
    assert str(cache / yunet.file) in str(caught.value)
    assert not cache.exists()
    monkeypatch.delenv("FACESTYLE_OFFLINE", raising=False)
    with pytest.raises(AssertionError, match="a socket was opened"):
        resolve("yunet")  # the trap does catch an online run


def test_mirror_url_and_folder(
    tmp_path: Path, internet: Internet, monkeypatch: pytest.MonkeyPatch
) -> None:
    demo = entry("https://unreachable.invalid/some/where.bin?dl=1")
    monkeypatch.setenv("FACESTYLE_MIRROR", f"{internet.url}/ok/")
    path = download(demo)
    assert path.read_bytes() == BODY
    path.unlink()
    monkeypatch.setenv("FACESTYLE_MIRROR", str(tmp_path / "my mirror"))
    with pytest.raises(WeightsError, match=r"my%20mirror/demo\.bin.*No such file"):
        download(demo)
    (tmp_path / "my mirror").mkdir()
    (tmp_path / "my mirror" / "demo.bin").write_bytes(BODY)
    assert download(demo, offline=True).read_bytes() == BODY, "a folder needs no network"
    assert internet.asked == {"ok": 1}


def test_https_proxy_is_honoured(internet: Internet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", internet.url)
    monkeypatch.setenv("NO_PROXY", "")
    with pytest.raises(WeightsError, match="502"):
        download(entry("https://weights.invalid/demo.bin"))
    assert internet.asked == {"CONNECT weights.invalid:443": 1}


def test_a_refused_connection_is_let_go_at_once(
    internet: Internet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not when the garbage is collected: until Python 3.11.4 its socket is open for as long."""
    monkeypatch.setenv("HTTPS_PROXY", internet.url)
    monkeypatch.setenv("NO_PROXY", "")
    gc.collect()
    gc.disable()
    try:
        with pytest.raises(WeightsError, match="502"):
            download(entry("https://weights.invalid/demo.bin"))
        held = [one for one in gc.get_objects() if type(one) is HTTPSConnection]
    finally:
        gc.enable()
    assert not held


# --- Interrupted, full, crowded ------------------------------------------------------------------


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_disk_full(
    code: int, cache: Path, internet: Internet, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(WeightsError, match=r"disk full.*FACESTYLE_HOME"):
        download(entry(f"{internet.url}/ok/demo.bin"))
    assert files(cache) == []


def test_cache_that_cannot_be_written(tmp_path: Path, internet: Internet) -> None:
    (tmp_path / "home").write_text("a file where the folder should be")
    with pytest.raises(WeightsError, match=r"cannot write .*FACESTYLE_HOME"):
        download(entry(f"{internet.url}/ok/demo.bin"))


def test_interrupt_leaves_nothing(cache: Path, internet: Internet) -> None:
    def interrupt(done: int, total: int | None) -> None:
        if done > len(BODY) // 2:
            raise KeyboardInterrupt

    demo = entry(f"{internet.url}/ok/demo.bin")
    with pytest.raises(KeyboardInterrupt):
        download(demo, progress=interrupt)
    assert files(cache) == []
    assert download(demo).read_bytes() == BODY


def fetching(url: str) -> subprocess.Popen[str]:
    """Another process that downloads the demo file and prints its sha256."""
    code = (
        "import sys; from facestyle.weights import WeightsEntry, download, sha256_of; "
        "entry = WeightsEntry(name='demo', file='demo.bin', kind='detector', licence='', "
        "about='', url=sys.argv[1]); "
        "print(sha256_of(download(entry)))"
    )
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", code, url],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(weights.__file__).parents[1],
    )


def test_eight_processes_make_one_request(cache: Path, internet: Internet) -> None:
    crowd = [fetching(f"{internet.url}/slow/demo.bin") for _ in range(8)]
    answers = [process.communicate(timeout=20) for process in crowd]
    assert answers == [(f"{DIGEST}\n", "")] * 8
    assert internet.asked == {"slow": 1}
    assert files(cache) == ["demo.bin", "demo.bin.sha256"]


def test_a_dead_process_blocks_nobody(cache: Path, internet: Internet) -> None:
    victim = fetching(f"{internet.url}/stall/demo.bin")
    deadline = time.monotonic() + 10
    while not (cache / ".demo.bin.part").exists() or not internet.asked:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    victim.kill()
    victim.communicate(timeout=10)
    assert files(cache) == [".demo.bin.part"], "killed while it held the lock"
    assert download(entry(f"{internet.url}/ok/demo.bin")).read_bytes() == BODY
    assert files(cache) == ["demo.bin"]


# --- Recognition ---------------------------------------------------------------------------------


def test_published_files_are_recognised_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path, name in {
        "down/celeba_hq/100000_nets_ema.ckpt": "stargan-v2-celeba-hq",
        "down/afhq/100000_nets_ema.ckpt": "stargan-v2-afhq",
        "down/stargan_v2_afhq.ckpt": "stargan-v2-afhq",
        "down/mine/100000_nets_ema.ckpt": None,  # anybody's own training run
        "down/face_detection_yunet_2023mar.onnx": None,  # the name, but not the sha256
    }.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(b"content")
        found = entry_for(tmp_path / path)
        assert (found.name if found else None) == name, path
    assert entry_for(tmp_path / "missing.ckpt") is None

    (tmp_path / "index.toml").write_text(
        f'[demo]\nfile="demo.bin"\nkind="detector"\nlicence="x"\nabout="x"\n'
        f'sha256="{DIGEST}"\nsize={len(BODY)}\n'
    )
    monkeypatch.setattr(weights, "shipped_dir", lambda: tmp_path)
    (tmp_path / "renamed").write_bytes(BODY)
    found = entry_for(tmp_path / "renamed")
    assert found is not None
    assert found.name == "demo"


def test_published_cards() -> None:
    index = weights.index()
    card = index["stargan-v2-celeba-hq"].card
    assert card == {"domains": ["female", "male"], "alignment": "stargan-v2", "image_size": 256}
    assert index["stargan-v2-celeba-hq"].needs == ("stargan-v2-wing",)
    afhq = index["stargan-v2-afhq"].card
    assert afhq == {"domains": ["cat", "dog", "wild"], "alignment": "none", "image_size": 256}


def test_importing_weights_is_light() -> None:
    code = (
        "import sys, facestyle.weights; "
        "print({'torch', 'numpy', 'cv2', 'urllib.request'} & set(sys.modules))"
    )
    root = Path(weights.__file__).parents[1]
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root)
    assert run.stdout == "set()\n", run.stderr
