"""Measures what a warm worker adds to a stem: a job over HTTP beside the same work by `Session` in this process.

    python -m selva_bench.warm_worker --out benchmarks/results/warm_worker.json

Both sides have their model loaded and no cache. They take turns, and every turn has a new prompt. A job also writes the
WAV file, and its client polls. `selva-generate` is timed with and without --worker.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from itertools import count
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import monotonic, perf_counter, sleep
from typing import Any

import click

from selva_bench import machine
from selva_bench.inputs import EXAMPLE
from selva_bench.statistics import summarise
from selva_bundle.atomic import atomic_write
from selva_runtime import Session
from selva_runtime.command.deliver import DEMO_BUNDLE
from selva_worker.client import Worker
from selva_worker.remembering_session import RememberingSession

_START_S = 60.0


@contextmanager
def serving(bundle: Path, folder: Path) -> Iterator[Worker]:
    """A worker on HTTP that nobody else finds."""
    os.environ["XDG_RUNTIME_DIR"] = str(folder)
    command = [sys.executable, "-m", "selva_worker", "--bundle", str(bundle), "--cache", "none"]
    command += ["--state", str(folder / "state"), "--allow", str(folder), "--allow", str(EXAMPLE.parent)]
    with subprocess.Popen(command) as process:
        try:
            until_s = monotonic() + _START_S
            while (worker := Worker.find()) is None:
                if process.poll() is not None or monotonic() > until_s:
                    raise click.ClickException("the worker did not start")
                sleep(0.05)
            yield worker
        finally:
            process.terminate()


def job(worker: Worker, prompt: str, out: Path, steps: int, start_s: float) -> None:
    """Submits a job and waits for its file."""
    request = {"video": str(EXAMPLE), "prompts": [prompt], "out": str(out), "steps": steps, "start_s": start_s}
    done = worker.wait(worker.submit(request)["id"])
    if done["state"] != "done":
        raise click.ClickException(f"the job is {done['state']}: {done['error']}")


def command(prompt: str, out: Path, steps: int, start_s: float, *options: str) -> None:
    """Runs `selva-generate` as a process."""
    words = [str(EXAMPLE), "-p", prompt, "-o", str(out), "--steps", str(steps), "--start", str(start_s), *options]
    subprocess.run([sys.executable, "-m", "selva_runtime", *words, "--quiet"], check=True, stdout=subprocess.DEVNULL)


def turns(
    session: Session, bundle: Path, worker: Worker, out: Path, steps: int, number: int
) -> dict[str, Callable[[], object]]:
    """Returns what is timed in a round. Rounds take different parts of the video, so that none is encoded before."""
    start_s, prompts = number * 0.04, (f"dog barking {10 * number + turn}" for turn in count())
    return {
        "worker_first_stem": lambda: job(worker, next(prompts), out, steps, start_s),
        "session_first_stem": lambda: session.generate(
            session.encode(EXAMPLE, start_s=start_s), [next(prompts)], steps=steps
        ),
        "worker_new_prompt": lambda: job(worker, next(prompts), out, steps, start_s),
        "session_new_prompt": lambda: session.generate(
            session.encode(EXAMPLE, start_s=start_s), [next(prompts)], steps=steps
        ),
        "command_with_worker": lambda: command(next(prompts), out, steps, start_s, "--worker"),
        "command": lambda: command(next(prompts), out, steps, start_s, "--bundle", str(bundle), "--cache", "none"),
    }


def measure(bundle: Path, steps: int, rounds: int) -> list[dict[str, float]]:
    """Returns the seconds of each turn, by what was timed, of every round after one to warm up."""
    session = RememberingSession(bundle, cache="none")
    found: list[dict[str, float]] = []
    with TemporaryDirectory(prefix="selva-bench-worker-") as place, serving(bundle, Path(place)) as worker:
        for number in range(rounds + 1):
            found.append({})
            for name, work in turns(session, bundle, worker, Path(place) / "stems", steps, number).items():
                start_s = perf_counter()
                work()
                found[-1][name] = perf_counter() - start_s
    return found[1:]


def document(found: list[dict[str, float]]) -> dict[str, Any]:
    """Returns medians, spreads, and the medians of the ratios within a round."""
    ratios = {
        name: median(row[f"worker_{name}"] / row[f"session_{name}"] for row in found)
        for name in ("first_stem", "new_prompt")
    }
    return {
        "ratios": {name: round(ratio, 3) for name, ratio in ratios.items()},
        "seconds": {name: asdict(summarise([row[name] for row in found])) for name in found[0]},
    }


@click.command()
@click.option("--bundle", type=click.Path(path_type=Path), default=DEMO_BUNDLE, help="[default: the demo]")
@click.option("--steps", type=click.IntRange(1), default=25, show_default=True, help="Integration steps.")
@click.option("--rounds", type=click.IntRange(1), default=9, show_default=True, help="Turns of every side.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Also kept as JSON.")
def main(bundle: Path, steps: int, rounds: int, out: Path | None) -> None:
    """A first stem, a new prompt and `selva-generate`, with and without a warm worker."""
    made = document(measure(bundle, steps, rounds))
    for name, ratio in made["ratios"].items():
        click.echo(f"{name:<20} {ratio:.3f} times as long as Session")
    for name, summary in made["seconds"].items():
        click.echo(f"{name:<20} {summary['median_s']:.3f} s")
    if out is not None:
        setting = {"command": "python -m selva_bench.warm_worker", "steps": steps, "rounds": rounds}
        with atomic_write(out) as temporary:
            temporary.write_text(
                json.dumps({**setting, "machine": machine.describe(), **made}, indent=1) + "\n", encoding="utf-8"
            )


if __name__ == "__main__":
    main()
