"""What is too much for a worker is refused early, in bounded memory, and the next good request works."""

import json
import re
import socket
from pathlib import Path

import pytest
from platforms import needs_linux
from workers import endless, request, until

from selva_worker.client import WorkerError, rendezvous_path
from selva_worker.job_queue import MAX_QUEUED

GIGABYTE = 1_000_000_000
PIECE = bytes(1_000_000)
SUPERVISOR_BYTES = 60e6


def peak_bytes(pid: int) -> int:
    return 1024 * int(re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1])


def test_ten_thousand_jobs_get_an_answer_each(piped, tmp_path):
    first = piped.submit(endless(tmp_path))["id"]
    until(lambda: piped.get(first)["state"] == "running")
    taken, refused = [], []
    for number in range(10_000):
        try:
            taken.append((piped.submit(request(tmp_path)) if number % 100 == 0 else piped.call("model.load"))["id"])
        except WorkerError as error:
            refused.append((error.code, str(error)))
    assert len(set(taken)) == MAX_QUEUED
    assert refused == [(-32002, f"{MAX_QUEUED} jobs are waiting; submit this one later")] * (10_000 - MAX_QUEUED)
    piped.cancel(first)
    assert {piped.wait(job)["state"] for job in taken} == {"done"}
    assert len(list((tmp_path / "stems").glob("*.wav"))) == MAX_QUEUED // 100
    assert piped.wait(piped.submit(request(tmp_path))["id"])["state"] == "done"


def post(head: str, piece: bytes) -> tuple[int, int]:
    """Sends a body of a gigabyte, or what of it is taken. Returns the status and the number of bytes."""
    place, sent = json.loads(Path(rendezvous_path()).read_text()), 0
    with socket.create_connection(("127.0.0.1", place["port"]), timeout=10) as client:
        lines = [
            "POST /v1/rpc HTTP/1.1",
            f"Host: 127.0.0.1:{place['port']}",
            f"Authorization: Bearer {place['token']}",
            "Content-Type: application/json",
            head,
        ]
        client.sendall("\r\n".join([*lines, "", ""]).encode())
        try:
            while sent < GIGABYTE:
                client.sendall(piece)
                sent += len(piece)
        except ConnectionError:
            pass
        return int(client.recv(1000).split()[1]), sent


@needs_linux
@pytest.mark.parametrize(
    ("head", "piece", "status"),
    [
        (f"Content-Length: {GIGABYTE}", PIECE, 413),
        ("Transfer-Encoding: chunked", f"{len(PIECE):x}\r\n".encode() + PIECE + b"\r\n", 411),
        ("Content-Length: 2\r\nTransfer-Encoding: chunked", f"{len(PIECE):x}\r\n".encode() + PIECE + b"\r\n", 411),
        ("Content-Length: 2", b"{}" + PIECE, 200),  # and a second request that is none
    ],
)
def test_a_gigabyte_over_http_is_refused_early(site, head, piece, status):
    assert post(head, piece)[0] == status
    assert post(head, piece)[1] < GIGABYTE / 20
    assert site.jobs() == []
    assert peak_bytes(site.call("doctor")["supervisor"]["pid"]) < SUPERVISOR_BYTES


@needs_linux
def test_a_gigabyte_over_pipes_is_refused(piped, tmp_path):
    process = piped._transport.process
    for _ in range(GIGABYTE // len(PIECE)):
        process.stdin.write(PIECE)
    process.stdin.write(b"\n")
    assert piped.jobs() == []
    assert peak_bytes(process.pid) < SUPERVISOR_BYTES


@pytest.mark.parametrize("kind", ["site", "piped"])
def test_the_client_says_that_a_request_is_too_long(request, demo_bundle, kind):
    worker = request.getfixturevalue(kind)
    with pytest.raises(WorkerError, match="the request is longer than 1048576 bytes"):
        worker.call("job.get", job="x" * (1 << 20))
    with pytest.raises(WorkerError, match="there is no job 'xxx"):
        worker.call("job.get", job="x" * ((1 << 20) - 200))
    assert worker.jobs() == []
