"""Forks one session, or calls it from two threads at once, a few times."""

from random import Random

import pytest
from attacks.campaign import DiedError, Fault, Worker, campaign
from platforms import needs_posix


@pytest.fixture(scope="module")
def worker():
    child = Worker("attacks.session_worker", memory_bytes=3 << 30, time_s=40)
    yield child
    child.close()


@needs_posix
@pytest.mark.parametrize(("kind", "bounded"), [("fork", 2), ("threads", 2)])
def test_a_session_works_or_refuses(worker, kind, bounded):
    def attack(random: Random) -> Fault | None:
        case = {"kind": kind, "seed": random.randrange(2**32)}
        try:
            answered = worker.ask(case)
        except DiedError as died:
            return Fault(kind=str(died), attack=str(case))
        return answered["fault"] and Fault(kind=answered["fault"], attack=answered["attack"])

    campaign(attack, bounded)
