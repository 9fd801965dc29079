"""What a worker refuses, on both transports: one clear answer, and the next good request works."""

import ast
import http.client
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path

import pytest
from platforms import needs_linux
from workers import COMMAND, PROMPTS, STREET, expected_stems, request, samples, until

import selva_worker.client
from selva_runtime.command.records import GenerateRequest
from selva_worker import protocol
from selva_worker.client import Worker, WorkerError, rendezvous_path
from selva_worker.requests import GENERATE_OPTIONS


@pytest.fixture(params=["piped", "site"])
def worker(request, demo_bundle):  # named here, so that it is exported
    return request.getfixturevalue(request.param)


def test_stems_over_http_are_those_of_a_session(site, demo_bundle, tmp_path):
    done = site.wait(site.submit(request(tmp_path, prompts=PROMPTS, seed=7))["id"])
    assert samples(done) == expected_stems(demo_bundle, tmp_path, seed=7)


def test_eight_clients_get_forty_jobs_once_each(site, tmp_path):
    def run(number):
        client, found = Worker.find(), []
        for each in range(5):
            seed = number * 5 + each
            asked = request(tmp_path, out=str(tmp_path / f"out{seed}"), seed=seed, steps=1)
            jobs = {client.submit(asked, key=f"key{seed}")["id"] for _ in range(2)}
            assert len(jobs) == 1
            found.append((seed, jobs.pop()))
        return [(seed, client.wait(job)) for seed, job in found]

    with ThreadPoolExecutor(8) as pool:
        done = [pair for pairs in pool.map(run, range(8)) for pair in pairs]
    assert [seed for seed, _ in done] == list(range(40))
    assert all(job["result"]["seed"] == seed and job["key"] == f"key{seed}" for seed, job in done)
    assert {path.parent.name for path in tmp_path.glob("out*/*.wav")} == {f"out{seed}" for seed in range(40)}
    assert len(list(tmp_path.glob("out*/*.wav"))) == 40
    assert len(site.jobs()) == 40


def place() -> dict:
    return json.loads(Path(rendezvous_path()).read_text())


def ask(method: str, path: str, body: bytes | None = None, **changes: str | None) -> tuple[int, dict]:
    """Sends a good request with changed headers; None leaves one out."""
    found = place()
    headers = {"Host": f"127.0.0.1:{found['port']}", "Authorization": f"Bearer {found['token']}"}
    headers |= {"Content-Type": "application/json"} if method == "POST" else {}
    headers |= {name.replace("_", "-"): value for name, value in changes.items()}
    connection = http.client.HTTPConnection("127.0.0.1", found["port"], timeout=10)
    connection.putrequest(method, path, skip_host=True)
    for name, value in {"Content-Length": str(len(body or b"")), **headers}.items():
        if value is not None:
            connection.putheader(name, value)
    connection.endheaders(body)
    reply = connection.getresponse()
    data = reply.read()
    assert not [name for name, _ in reply.getheaders() if name.lower().startswith("access-control")]
    connection.close()
    return reply.status, json.loads(data)


GOOD = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "job.list"}).encode()


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"Authorization": None}, 401),
        ({"Authorization": "Bearer wrong"}, 401),
        ({"Host": "evil.example"}, 421),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Content_Type": "text/plain"}, 415),
        ({"Content_Type": None}, 415),
        ({"Content_Length": "1000000000"}, 413),
        ({"Content_Length": None, "Transfer_Encoding": "chunked"}, 411),
    ],
)
def test_http_refuses(site, changes, status):
    body = None if "Content_Length" in changes else GOOD
    assert ask("POST", "/v1/rpc", body, **changes)[0] == status
    if status in (401, 403, 421):
        assert [ask("GET", path, **changes)[0] for path in ("/v1/events", "/v1/jobs/x")] == [status, status]
    assert ask("POST", "/v1/rpc", GOOD) == (200, {"jsonrpc": "2.0", "id": 1, "result": []})


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (b"{", -32700),
        (b"[" * 100_000, -32700),
        (b'{"jsonrpc":"2.0","id":1,"method":"job.get","params":{"job":NaN}}', -32700),
        (b"\xff", -32700),
        (b"[]", -32600),
        (b'{"id":1,"method":"job.list"}', -32600),
        (b'{"jsonrpc":"2.0","id":1,"method":"job.list","params":[]}', -32602),
        (b'{"jsonrpc":"2.0","id":1,"method":"job.list","params":{"all":1}}', -32602),
        (b'{"jsonrpc":"2.0","id":1,"method":"rm"}', -32601),
        (b'{"jsonrpc":"2.0","id":1,"method":"job.get","params":{"job":"x"}}', -32003),
        (b'{"jsonrpc":"2.0","id":1,"method":"job.get","params":{"job":1}}', -32602),
        (b'"' + b"x" * 3_000_000 + b'"', -32600),
    ],
    ids=range(12),
)
def test_pipes_refuse(demo_bundle, tmp_path, text, code):
    options = ["--stdio", "--state", str(tmp_path / "state"), "--bundle", str(demo_bundle)]
    done = subprocess.run([*COMMAND, *options], input=text + b"\n" + GOOD, capture_output=True, check=True)
    refused, good = map(json.loads, done.stdout.splitlines())
    assert refused["error"]["code"] == code
    assert good["result"] == []


@needs_linux
def test_the_supervisor_stays_light(worker, tmp_path):
    worker.wait(worker.submit(request(tmp_path))["id"])
    supervisor = worker.call("doctor")["supervisor"]
    assert supervisor["memory_bytes"] < 40e6
    libraries = Path(f"/proc/{supervisor['pid']}/maps").read_text()
    assert not [name for name in ("numpy", "onnxruntime", "/av/", "tokenizers") if name in libraries]


def test_paths_outside_are_refused(worker, tmp_path_factory, tmp_path):
    outside = tmp_path_factory.mktemp("outside")
    (tmp_path / "link").symlink_to(outside)
    (tmp_path / "film.mp4").symlink_to("/etc/passwd")
    wrong = [
        {"out": str(outside)},
        {"out": str(tmp_path / "link" / "stems")},
        {"out": str(tmp_path) + "-beside"},
        {"out": f"{tmp_path}/../{outside.name}"},
        {"video": str(tmp_path / "film.mp4")},
        {"cuts": "/etc/passwd"},
        {"mask": str(outside)},
        {"mask": str(tmp_path / "film.mp4")},
        {"timelines": [str(tmp_path / "film.rpp"), str(outside / "film.rpp")]},
    ]
    for change in wrong:
        with pytest.raises(WorkerError, match="is outside the allowed folders") as caught:
            worker.submit(request(tmp_path, **change))
        assert caught.value.code == -32001
    for clip in ({"video": "/etc/passwd"}, *({"video": str(STREET), name: "/etc/passwd"} for name in ("cuts", "mask"))):
        with pytest.raises(WorkerError, match="is outside the allowed folders"):
            worker.call("clip.open", clip=clip)
    for change in ({"out": "stems"}, {"video": "a\0b"}, {"video": 1}, {"prompts": "rain"}, {"bundle": "/etc"}):
        with pytest.raises(WorkerError) as caught:
            worker.submit(request(tmp_path, **change))
        assert caught.value.code == -32602
    worker.call("initialize", folders=[str(outside)])
    assert worker.wait(worker.submit(request(tmp_path, out=str(outside)))["id"])["state"] == "done"


def test_changes_come_as_events(site, tmp_path):
    found = place()
    headers = {"Authorization": f"Bearer {found['token']}"}
    connection = http.client.HTTPConnection("127.0.0.1", found["port"], timeout=60)
    connection.request("GET", "/v1/events", headers=headers)
    stream = connection.getresponse()
    assert stream.readline() == b": connected\n"
    job = site.submit(request(tmp_path))["id"]
    seen = []
    while not seen or seen[-1]["state"] != "done":
        line = stream.readline()
        if line.startswith(b"data: "):
            seen.append(json.loads(line[6:]))
    assert {change["id"] for change in seen} == {job}
    connection.close()
    last = seen[-1]["revision"]
    assert ask("GET", f"/v1/jobs/{job}?since={last}") == (200, {"id": job, "revision": last})
    assert ask("GET", f"/v1/jobs/{job}?since={last - 1}")[1]["state"] == "done"
    assert ask("GET", f"/v1/jobs/{job}?since=x")[0] == 400
    assert ask("GET", "/v1/jobs/x")[0] == 404


def test_the_rendezvous_file_is_private_and_a_stale_one_is_noticed(site, tmp_path):
    path = Path(rendezvous_path())
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    text = path.read_text()
    os.kill(place()["pid"], signal.SIGTERM)
    until(lambda: not path.exists())
    path.write_text(text)
    assert Worker.find() is None
    with socket.socket() as other:  # another program has the port now
        other.bind(("127.0.0.1", 0))
        other.listen()
        path.write_text(json.dumps({"port": other.getsockname()[1], "token": "x"}))
        threading.Thread(target=lambda: other.accept()[0].sendall(b"HTTP/1.0 404 no\r\n\r\nno"), daemon=True).start()
        assert Worker.find() is None
    path.unlink()


def test_the_client_is_one_file_for_older_pythons():
    source = Path(selva_worker.client.__file__).read_text(encoding="utf-8")
    tree = ast.parse(source, feature_version=(3, 9))
    imports = {
        name.partition(".")[0]
        for node in ast.walk(tree)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert imports <= sys.stdlib_module_names
    assert "annotations" in {alias.name for alias in tree.body[1].names}  # X | None is then no expression


def test_a_job_takes_every_option_that_the_start_did_not_fix():
    fixed = {"bundle", "backend", "threads", "compute_precision", "cache", "keep_partial"}
    fixed |= {"bed", "bed_prompt", "bed_gain_db"}  # a worker has one model
    assert set(GENERATE_OPTIONS) == {field.name for field in fields(GenerateRequest)} - fixed


def test_every_method_option_and_code_is_documented(piped):
    text = (Path(__file__).parents[1] / "docs" / "worker.md").read_text(encoding="utf-8")
    known = piped.call("initialize")
    names = [*known["methods"], *known["generate_options"], *known["clip_options"], *piped.call("doctor")["settings"]]
    assert [name for name in names if f"`{name}`" not in text and f"`--{name}`" not in text] == []
    codes = (protocol.OUTSIDE, protocol.QUEUE_FULL, protocol.UNKNOWN_JOB, protocol.KEY_TAKEN, protocol.BUSY)
    assert [code for code in codes if str(code) not in text] == []


@pytest.mark.parametrize(
    ("method", "params", "message"),
    [
        ("initialize", {"protocol": 99}, "this worker speaks protocol 1, not 99"),
        ("initialize", {"folders": [1]}, "folders must be a list of paths"),
        ("job.get", {"job": "x", "since": True}, "does not take this 'since'"),
        ("model.load", {"urgent": 1}, "does not take this 'urgent'"),
    ],
)
def test_parameters_are_checked(piped, method, params, message):
    with pytest.raises(WorkerError, match=message):
        piped.call(method, **params)


def test_keys_and_jobs_have_a_length(piped, tmp_path):
    for key in ("", "x" * 201):
        with pytest.raises(WorkerError, match="the key is empty or longer than 200 characters"):
            piped.submit(request(tmp_path), key=key)
    with pytest.raises(WorkerError, match="the request is longer than 32768 bytes"):
        piped.submit(request(tmp_path, prompts=["x" * 33_000]))
    assert piped.jobs() == []
