"""Queue and journal by themselves: order, keys, what is forgotten and what survives."""

import json
import stat

import pytest
from platforms import file_size_limit, needs_posix

from selva_worker import job_queue
from selva_worker.job_queue import JobQueue
from selva_worker.jobs import CANCELLED, DONE, ENCODE, FAILED, GENERATE, INTERRUPTED, QUEUED, RUNNING, WRITING, Job
from selva_worker.protocol import Refused


@pytest.fixture
def path(tmp_path):
    return tmp_path / "jobs.jsonl"


@pytest.fixture
def queue(path):
    queue = JobQueue(path)
    yield queue
    queue.close()


def job(number: int = 0, *, kind: str = GENERATE, **more) -> Job:
    return Job(kind=kind, request={"seed": number}, **more)


def test_the_first_urgent_job_is_next_or_else_the_first(queue):
    first, *_ = [queue.submit(job(number)) for number in range(3)]
    assert queue.next() is first
    urgent, _ = [queue.submit(job(number, urgent=True)) for number in range(2)]
    assert queue.next() is urgent
    for each in queue:
        queue.change(each, state=RUNNING)
    assert queue.next() is None


def test_no_two_jobs_have_the_same_id_or_revision(queue):
    found = [queue.submit(job()) for _ in range(100)]
    assert len({each.id for each in found}) == len({each.revision for each in found}) == 100
    queue.change(found[0], progress=None)
    assert found[0].revision == queue.revision == 101


def test_a_key_belongs_to_one_kind_of_work(queue):
    first = queue.submit(job(key="a"))
    assert queue.submit(job(key="a")) is first
    for other in (job(1, key="a"), job(kind=ENCODE, key="a")):
        with pytest.raises(Refused, match="was used for another request"):
            queue.submit(other)
    assert list(queue) == [first]


def test_the_oldest_ended_jobs_are_forgotten_and_their_keys_with_them(queue, monkeypatch):
    monkeypatch.setattr(job_queue, "MAX_ENDED", 3)
    waiting = queue.submit(job(9))
    found = [queue.submit(job(number, key=str(number))) for number in range(5)]
    for each, state in zip(found, (INTERRUPTED, FAILED, CANCELLED, DONE, DONE), strict=True):
        queue.change(each, state=state)
    assert list(queue) == [waiting, *found[2:]]
    with pytest.raises(Refused, match="there is no job"):
        queue[found[0].id]
    assert queue.submit(job(0, key="0")) is not found[0]
    assert queue.submit(job(2, key="2")) is found[2]


def test_jobs_that_wait_are_counted(queue, monkeypatch):
    monkeypatch.setattr(job_queue, "MAX_QUEUED", 2)
    first, _ = queue.submit(job(key="a")), queue.submit(job())
    with pytest.raises(Refused, match="2 jobs are waiting"):
        queue.submit(job())
    assert queue.submit(job(key="a")) is first
    queue.change(first, state=RUNNING)
    queue.submit(job())


def test_what_had_not_ended_is_interrupted_and_runs_again_with_its_key(queue, path):
    made = [queue.submit(job(number, key=str(number), urgent=number == 2)) for number in range(4)]
    queue.change(made[1], state=RUNNING)
    queue.change(made[2], state=WRITING)
    queue.change(made[3], state=DONE, result={"stems": [1]})
    again = JobQueue(path)
    assert [each.id for each in again] == [each.id for each in made]
    assert [(each.submitted_s, each.urgent) for each in again] == [(each.submitted_s, each.urgent) for each in made]
    assert [each.state for each in again] == ["interrupted"] * 3 + ["done"]
    assert again[made[3].id].result == {"stems": [1]}
    assert again.next() is None
    resumed = again.submit(job(1, key="1", urgent=True))
    assert (resumed.id, resumed.state, resumed.urgent) == (made[1].id, QUEUED, True)
    assert again.next() is resumed
    assert again.submit(job(3, key="3")).state == DONE
    again.close()


def test_the_journal_is_short_again_after_a_start(queue, path, monkeypatch):
    for number in range(5):
        queue.change(queue.submit(job(number)), state=DONE)
    monkeypatch.setattr(job_queue, "MAX_ENDED", 3)
    again = JobQueue(path)
    assert [each.request["seed"] for each in again] == [2, 3, 4]
    again.close()
    assert [json.loads(line)["request"]["seed"] for line in path.read_text().splitlines()] == [2, 3, 4]


def test_lines_that_are_no_entries_are_left_out(queue, path):
    kept = queue.submit(job())
    strange = [b"[1]", b"5", b'{"id": "x", "state": "done"}', b'{"kind": "a", "b": 1}', b"\xff", b'{"id"', b"null", b""]
    path.write_bytes(path.read_bytes() + b"\n".join([*strange, b""]))
    again = JobQueue(path)
    assert [each.id for each in again] == [kept.id]
    again.close()


@needs_posix
def test_only_its_user_reads_the_journal(queue, path):
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@needs_posix
def test_a_full_disk_refuses_new_jobs_and_hurts_no_other(queue, path):
    known = queue.submit(job(1, key="a"))
    with file_size_limit(path.stat().st_size + 10):
        with pytest.raises(Refused, match="the journal cannot be written"):
            queue.submit(job(2, key="b"))
        queue.change(known, state=RUNNING)
    assert list(queue) == [known]
    queue.change(known, state=DONE)
    second = queue.submit(job(2, key="b"))
    again = JobQueue(path)
    assert [(each.id, each.state) for each in again] == [(known.id, DONE), (second.id, INTERRUPTED)]
    again.close()


def test_a_summary_is_short(queue):
    made = queue.submit(job())
    assert set(made.snapshot()) - set(made.summary()) == {"request", "messages", "result"}
