"""The page's routes without a browser: who may ask, which files are given, and what a dropped video may be."""

import http.client
import io
import json
import os
import stat
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from urllib.parse import quote

import pytest
from workers import COMMAND, STREET, request, until

from selva_worker.bundle_facts import bundle_facts
from selva_worker.client import Worker, rendezvous_path
from selva_worker.gate import MAX_VIDEO_BYTES
from selva_worker.page.store import KEEP_S, PageStore


@pytest.fixture
def site(demo_bundle, tmp_path, monkeypatch):
    """A worker on HTTP that may read and write `tmp_path`/work."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "street.mp4").write_bytes(STREET.read_bytes())
    options = ["--state", str(tmp_path / "state"), "--bundle", str(demo_bundle), "--backend", "cpu", "--threads", "1"]
    with subprocess.Popen([*COMMAND, *options, "--allow", str(tmp_path / "work")]) as process:
        try:
            yield until(Worker.find)
        finally:
            process.terminate()


def connect(method: str, path: str, length: int | None, **changes: str | None) -> http.client.HTTPConnection:
    """Sends the head of a good request with changed headers; None leaves one out."""
    found = json.loads(Path(rendezvous_path()).read_text())
    headers = {"Host": f"127.0.0.1:{found['port']}", "Authorization": f"Bearer {found['token']}"}
    headers |= {"Content-Length": str(length)} if length is not None else {}
    connection = http.client.HTTPConnection("127.0.0.1", found["port"], timeout=20)
    connection.putrequest(method, path, skip_host=True)
    for name, value in (headers | {name.replace("_", "-"): value for name, value in changes.items()}).items():
        if value is not None:
            connection.putheader(name, value)
    connection.endheaders()
    return connection


def ask(method: str, path: str, body: bytes | None = None, **changes: str | None):
    connection = connect(method, path, None if body is None else len(body), **changes)
    if body:
        connection.send(body)
    reply = connection.getresponse()
    data = reply.read()
    connection.close()
    assert not [name for name, _ in reply.getheaders() if name.lower().startswith("access-control")]
    return reply.status, data, {name.lower(): value for name, value in reply.getheaders()}


def put(name: str, body: bytes, **changes: str | None):
    status, data, _ = ask("PUT", f"/v1/page/videos/{quote(name)}", body, **changes)
    return status, json.loads(data)


def stored(tmp_path: Path) -> list[str]:
    return [str(path) for path in (tmp_path / "state" / "page" / "videos").rglob("*")]


def video(path: object):
    return ask("GET", f"/v1/page/video?path={quote(str(path))}")


def test_only_the_page_itself_needs_no_token(site):
    status, text, headers = ask("GET", "/", Authorization=None)
    assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
    nonce = text.partition(b'nonce="')[2].partition(b'"')[0].decode()
    policy = headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; ")
    assert f"'nonce-{nonce}'" in policy
    assert "unsafe" not in policy
    assert ask("GET", "/", Authorization=None)[2]["content-security-policy"] != policy
    assert (headers["x-content-type-options"], headers["referrer-policy"]) == ("nosniff", "no-referrer")
    for name in ("main.js", "page.css", "icon.svg", "wavesurfer/wavesurfer.esm.js", "wavesurfer/LICENSE"):
        assert ask("GET", f"/page/{name}", Authorization=None)[0] == 200
    for name in ("../store.py", "%2e%2e/store.py", "..%2fstore.py", "/etc/passwd", "none.js", ""):
        assert ask("GET", f"/page/{name}", Authorization=None)[0] == 404
    for path in (
        "/v1/page",
        "/v1/page/video?path=/x.mp4",
        "/v1/page/zip?stem=a.0",
        "/v1/jobs/a/stems/0",
        "//",
        "/pages",
    ):
        assert ask("GET", path, Authorization=None)[0] == 401
    assert ask("POST", "/", b"{}", Authorization=None, Content_Type="application/json")[0] == 401
    assert put("a.mp4", b"x", Authorization=None)[0] == 401


@pytest.mark.parametrize(
    ("changes", "status"),
    [({"Host": "evil.example"}, 421), ({"Origin": "http://evil.example"}, 403), ({"Origin": "null"}, 403)],
)
def test_a_foreign_site_gets_nothing(site, changes, status, tmp_path):
    for path in ("/", "/page/main.js", "/v1/page", f"/v1/page/video?path={STREET}"):
        assert ask("GET", path, **changes)[0] == status
    assert put("a.mp4", b"x", **changes)[0] == status
    assert stored(tmp_path) == []


def test_a_dropped_video_is_kept_whole_and_can_be_used(site, tmp_path):
    status, reply = put("My film: 1/2 ü.mp4", STREET.read_bytes())
    assert status == 200
    path = Path(reply["path"])
    assert path.read_bytes() == STREET.read_bytes()
    assert path.name == "2 ü.mp4"
    assert path.is_relative_to(tmp_path / "state" / "page" / "videos")
    assert video(path)[:2] == (200, STREET.read_bytes())
    out = json.loads(ask("GET", "/v1/page")[1])["stems_folder"] + "/one"
    done = site.wait(site.submit(request(tmp_path, video=str(path), out=out))["id"])
    assert done["state"] == "done"


@pytest.mark.parametrize("name", ["../a.mp4", "a.sh", ".mp4", "a.mp4/../../b", "%00.mp4", "mp4", "a" * 300 + ".mp4"])
def test_names_of_videos_do_no_harm(site, tmp_path, name):
    status, reply = put(name, b"x")
    if status == 200:
        assert Path(reply["path"]).parent.parent == tmp_path / "state" / "page" / "videos"
        assert Path(reply["path"]).suffix == ".mp4"
    else:
        assert status in (400, 404)
        assert stored(tmp_path) == []


def test_what_does_not_come_whole_leaves_nothing(site, tmp_path):
    connection = connect("PUT", "/v1/page/videos/a.mp4", 10_000_000)
    connection.send(b"x" * 5_000_000)
    until(lambda: stored(tmp_path))
    connection.sock.close()
    connection.close()
    until(lambda: stored(tmp_path) == [])
    assert put("a.mp4", b"x")[0] == 200


def test_what_is_too_large_is_refused_before_it_comes(site, tmp_path):
    for length, changes, status in (
        (MAX_VIDEO_BYTES + 1, {}, 413),
        (None, {"Transfer_Encoding": "chunked"}, 411),
    ):
        connection = connect("PUT", "/v1/page/videos/a.mp4", length, **changes)
        assert connection.getresponse().status == status
        connection.close()
    connection = connect("PUT", "/v1/rpc", 2 << 20)
    assert connection.getresponse().status == 413
    connection.close()
    assert ask("POST", "/v1/page/marks", b"{}", Content_Type="text/plain")[0] == 415
    assert stored(tmp_path) == []


def test_a_full_disk_is_told(tmp_path, monkeypatch):
    import asyncio

    from selva_bundle.errors import OutputError

    async def chunks():
        yield b"x"

    store = PageStore(tmp_path)
    free = type("Usage", (), {"free": (1 << 30) + 5})()
    monkeypatch.setattr("shutil.disk_usage", lambda path: free)
    asyncio.run(store.add_video("a.mp4", 1, chunks()))
    with pytest.raises(OutputError, match="type its path instead"):
        asyncio.run(store.add_video("a.mp4", 6, chunks()))


def test_only_videos_in_allowed_folders_are_given(site, tmp_path):
    work = tmp_path / "work"
    (tmp_path / "secret.mp4").write_text("secret")
    (work / "out.mp4").symlink_to(tmp_path / "secret.mp4")
    (work / "in.mp4").symlink_to(work / "street.mp4")
    (work / "up.mp4").symlink_to(work)
    (work / "notes.txt").write_text("notes")
    assert video(work / "street.mp4")[:2] == (200, STREET.read_bytes())
    assert video(work / "in.mp4")[0] == 200
    for path, status in (
        (tmp_path / "secret.mp4", 403),
        (work / "out.mp4", 403),
        (f"{work}/../secret.mp4", 403),
        (work / "none.mp4", 404),
        (work / "up.mp4", 404),
        (work / "notes.txt", 400),
        ("street.mp4", 400),
        ("", 400),
        (f"{work}/a\0.mp4", 400),
    ):
        assert video(path)[0] == status, path
    status, data, _ = ask("GET", f"/v1/page/video?path={work}/street.mp4", Range="bytes=4-7")
    assert (status, data) == (206, b"ftyp")


def test_stems_and_their_zip_are_the_files(site, tmp_path):
    work = tmp_path / "work"
    asked = request(work, video=f"{work}/street.mp4", prompts=["rain", "dog"], takes=2)
    asked["timelines"] = [f"{work}/t.otioz"]
    first, second = (site.wait(site.submit({**asked, "out": f"{work}/{seed}"})["id"]) for seed in (0, 9))
    files = [Path(stem["file"]) for stem in first["result"]["stems"]]
    for number, file in enumerate(files):
        status, data, headers = ask("GET", f"/v1/jobs/{first['id']}/stems/{number}")
        assert (status, data, headers["content-type"]) == (200, file.read_bytes(), "audio/wav")
    assert ask("GET", f"/v1/jobs/{first['id']}/timelines/0")[1] == (work / "t.otioz").read_bytes()
    status, data, _ = ask("GET", f"/v1/page/zip?stem={first['id']}.0&stem={first['id']}.3&stem={second['id']}.0")
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == ["rain-take1.wav", "dog-take2.wav", "rain-take1-2.wav"]
        assert archive.read("dog-take2.wav") == files[3].read_bytes()
    for path, wrong in (
        (f"/v1/jobs/{first['id']}/stems/4", 404),
        (f"/v1/jobs/{first['id']}/timelines/1", 404),
        ("/v1/jobs/x/stems/0", 404),
        ("/v1/page/zip", 400),
        (f"/v1/page/zip?stem={first['id']}", 400),
        (f"/v1/page/zip?stem={first['id']}.-1", 400),
        (f"/v1/page/zip?stem={first['id']}.9", 404),
    ):
        assert ask("GET", path)[0] == wrong, path
    files[0].unlink()
    files[0].symlink_to("/etc/hostname")
    assert ask("GET", f"/v1/jobs/{first['id']}/stems/0")[0] == 403
    files[0].unlink()
    assert ask("GET", f"/v1/page/zip?stem={first['id']}.0")[0] == 404


def mark(stem: object, given: object):
    body = json.dumps({"stem": stem, "mark": given}).encode()
    return ask("POST", "/v1/page/marks", body, Content_Type="application/json")[0]


def test_marks_outlive_the_page(site):
    stem = "0123456789abcdef.0"
    assert mark(stem, "kept") == 200
    assert json.loads(ask("GET", "/v1/page")[1])["marks"] == {stem: "kept"}
    assert mark(stem, None) == 200
    assert json.loads(ask("GET", "/v1/page")[1])["marks"] == {}
    assert [mark("x", "kept"), mark(stem, "x"), mark(1, "kept"), mark(stem, [])] == [400] * 4
    assert ask("POST", "/v1/page/marks", b"[", Content_Type="application/json")[0] == 400


def test_what_is_a_month_old_is_removed_at_the_start(tmp_path):
    store = PageStore(tmp_path)
    for folder in (store.videos, store.stems):
        for name, age_s in (("old", KEEP_S + 60), ("new", KEEP_S - 60)):
            (folder / name).mkdir()
            (folder / name / "file").touch()
            os.utime(folder / name, times=(time.time() - age_s,) * 2)
    PageStore(tmp_path)
    assert [path.name for folder in (store.videos, store.stems) for path in folder.iterdir()] == ["new", "new"]


def test_a_client_hears_that_the_model_is_a_toy(site, tmp_path):
    bundle = site.call("initialize")["bundle"]
    assert (bundle["toy"], bundle["preset"], bundle["error"]) == (True, "demo", None)
    assert bundle["defaults"]["steps"] == 25
    assert "cannot be read" in bundle_facts(str(tmp_path))["error"]
    (tmp_path / "manifest.json").write_text('{"preset": "large_44k"}')
    assert bundle_facts(str(tmp_path))["error"]


def test_the_supervisor_stays_light(site):
    code = (
        "import sys, selva_worker.web; print([name for name in ('numpy', 'onnxruntime', 'av') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    ask("GET", "/")
    put("a.mp4", STREET.read_bytes())
    assert site.call("doctor")["supervisor"]["memory_bytes"] < 40 * 2**20


BROWSER = '#!/bin/sh\necho "$@" >> {said}\n'


def test_open_starts_a_worker_or_finds_it_and_tells_no_token_in_arguments(demo_bundle, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    said = tmp_path / "said"
    script = tmp_path / "browser"
    script.write_text(BROWSER.format(said=said))
    script.chmod(0o755)
    monkeypatch.setenv("BROWSER", f"{script} %s")
    command = [*COMMAND, "--open", "--bundle", str(demo_bundle), "--state", str(tmp_path / "state")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        until(Worker.find)
        until(said.exists)
        more = [*COMMAND, "--open", "--allow", str(tmp_path)]
        again = subprocess.run(more, capture_output=True, text=True, check=True)
        until(lambda: len(said.read_text().splitlines()) == 2)
        found = json.loads(Path(rendezvous_path()).read_text())
        lead = tmp_path / "run" / "selva" / "open.html"
        led, mode = lead.read_text(), stat.S_IMODE(lead.stat().st_mode)
        folders = Worker.find().call("doctor")["folders"]
        wrong = [*COMMAND, "--open", "--allow", str(tmp_path / "none")]
        refused = subprocess.run(wrong, capture_output=True, text=True, check=False)
        process.terminate()
        printed = process.stderr.read()
    url = f"http://127.0.0.1:{found['port']}/#token={found['token']}"
    assert said.read_text().splitlines() == [lead.as_uri()] * 2
    assert mode == 0o600
    assert all(url in text for text in (led, printed, again.stderr))
    assert "A worker runs already" in again.stderr
    assert str(tmp_path) in folders
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert not lead.exists()
    wrong = subprocess.run([*COMMAND, "--open", "--stdio"], capture_output=True, text=True, check=False)
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)
