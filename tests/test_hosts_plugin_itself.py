"""The plug-in as LV2, VST3 and CLAP in hosts: Ardour, DawDreamer, Pedalboard, jalv and a small CLAP host of our own."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from compilers import HERE, PLUGIN, ROOT, compiler
from platforms import needs_linux
from workers import COMMAND, STREET, settings

pytestmark = [pytest.mark.hosts, needs_linux]
DPF = Path(os.environ.get("DPF", "/usr/share/dpf"))
PYTHON = Path(os.environ.get("SELVA_HOSTS_PYTHON", ROOT / ".venv-hosts" / "bin" / "python"))
READY = 2
FRAMES = 1000
STEM = np.array([((k * 37 + 11) % 201 - 100) / 128 for k in range(FRAMES)], "float32")


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    """The three plug-ins as the Makefile builds them."""
    if not (DPF / "distrho").is_dir():
        pytest.skip("needs DPF: apt-get install dpf-source, or DPF=FOLDER")
    out = tmp_path_factory.mktemp("built")
    compiler("g++")
    options = [f"OUT={out}", f"DPF={DPF}", "CXXFLAGS=-O1", "CFLAGS=-O1"]
    done = subprocess.run(["make", "-C", PLUGIN, "-j2", *options], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr
    (out / "lv2").mkdir()
    shutil.move(out / "selva-stem.lv2", out / "lv2")
    return out


@pytest.fixture
def environment(tmp_path):
    """Where the plug-in finds its video, its prompt and the fake worker."""
    (tmp_path / "video.mp4").write_bytes(b"")
    worker = tmp_path / "worker"
    worker.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S {HERE / "fake_worker.py"} honest "$@"\n')
    worker.chmod(0o755)
    given = {"SELVA_WORKER": worker, "SELVA_VIDEO": tmp_path / "video.mp4", "SELVA_PROMPT": "dog"}
    given |= {"FAKE_LOG": tmp_path / "log", "HOME": tmp_path, "XDG_CONFIG_HOME": tmp_path}
    return {**os.environ, **{name: str(value) for name, value in given.items()}}


@pytest.fixture
def lv2(built, environment):
    return {**environment, "LV2_PATH": f"{built / 'lv2'}:/usr/lib/lv2"}


def program(*names: str, package: str) -> str:
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        pytest.skip(f"not run: needs {names[0]} (apt-get install {package})")
    return found


def host_python(module: str) -> Path:
    """The Python of .venv-hosts, if it has this module."""
    check = [PYTHON, "-c", f"import {module}"]
    if not PYTHON.is_file() or subprocess.run(check, capture_output=True, check=False).returncode:
        pytest.skip(f"not run: {PYTHON} has no {module}")
    return PYTHON


def run(command: list, environment: dict, **options) -> subprocess.CompletedProcess:
    options = {"timeout": 120, "capture_output": True, "text": True, **options}
    return subprocess.run([str(word) for word in command], env=environment, check=False, **options)


# ---- LV2 ----


@pytest.mark.parametrize(("rate_hz", "block"), [(44100, 256), (48000, 64), (96000, 1024)])
def test_ardour_exports_the_stem_at_its_place(lv2, tmp_path, rate_hz, block):
    lua, export = (program(name, package="ardour") for name in ("ardour7-lua", "ardour7-export"))
    session = {"A_FOLDER": str(tmp_path / "session"), "A_NAME": "session", "A_FROM": "0", "A_TO": "4000"}
    made = run([lua, HERE / "ardour_session.lua"], {**lv2, **session, "A_RATE": str(rate_hz), "A_BLOCK": str(block)})
    assert f"status {READY}.0" in made.stdout, made.stdout + made.stderr
    words = [export, "-b", "float", "-o", tmp_path / "out.wav", tmp_path / "session", "session"]
    run(words, {**lv2, "SELVA_WORKER": "/no/worker"})  # the session alone has to be enough
    sound, found_hz = soundfile.read(tmp_path / "out.wav", dtype="float32")
    assert found_hz == rate_hz
    for channel in sound.T:
        assert np.array_equal(channel[:FRAMES], STEM)
        assert not channel[FRAMES:].any()


def test_jalv_runs_it(lv2, tmp_path):
    jalv, jackd = program("jalv", package="jalv"), program("jackd", package="jackd2")
    name = f"selva{os.getpid()}"
    given = {**lv2, "JACK_DEFAULT_SERVER": name, "JACK_NO_START_SERVER": "1"}
    server = [jackd, "-n", name, "--no-realtime", "-d", "dummy", "-r", "48000", "-p", "256"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(server, env=given, **quiet) as jack:
        try:
            run(["jack_wait", "-s", name, "-w", "-t", "30"], given)
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
            with subprocess.Popen([jalv, "urn:selva-deploy:stem"], env=given, **pipes) as host:
                for _ in range(20):  # it does not say when it runs: switch off and on until it hears
                    host.stdin.write("set 5 42\nset 4 0\n")
                    host.stdin.flush()
                    time.sleep(1)
                    host.stdin.write("set 4 1\n")
                    host.stdin.flush()
                    time.sleep(2)
                    if (tmp_path / "stems" / "0-1.wav").exists():
                        break
                time.sleep(1)
                output, _ = host.communicate("monitors\n", timeout=20)
        finally:
            jack.terminate()
    assert "status = 2.000000" in output
    assert '"seed": 42' in (tmp_path / "log").read_text()


def test_lilv_describes_it(lv2):
    found = run([program("lv2info", package="lilv-utils"), "urn:selva-deploy:stem"], lv2).stdout
    for text in ("Generator Plugin", "hardRTCapable", "Symbol:      generate", '2 = "ready"'):
        assert text in found


def test_lv2bench_refuses_what_needs_a_worker_thread(lv2):
    """lv2bench runs only plug-ins without required features, and DPF requires a worker for texts."""
    found = run([program("lv2bench", package="lilv-utils"), "urn:selva-deploy:stem"], lv2)
    assert "requires feature <http://lv2plug.in/ns/ext/worker#schedule>, skipping" in found.stdout + found.stderr


# ---- VST3 ----


def is_stem(path: Path) -> bool:
    sound = np.fromfile(path, "float32").reshape(2, -1)
    return all(np.array_equal(one[:FRAMES], STEM) and not one[FRAMES:].any() for one in sound)


@pytest.mark.parametrize(("rate_hz", "block"), [(44100, 512), (48000, 64), (96000, 1000)])
def test_dawdreamer_plays_the_stem_itself(built, environment, tmp_path, rate_hz, block):
    host = [host_python("dawdreamer"), HERE / "dawdreamer_host.py", built / "selva-stem.vst3", rate_hz, block, 4096]
    done = run([*host, tmp_path / "out"], environment)
    assert done.returncode == 0, done.stderr
    assert is_stem(tmp_path / "out")


def test_dawdreamer_plays_what_the_real_worker_makes(built, environment, demo_bundle, tmp_path):
    worker = tmp_path / "worker"
    worker.write_text("#!/bin/sh\nexec " + " ".join([*COMMAND, *settings(tmp_path, demo_bundle)]) + ' "$@"\n')
    shutil.copy(STREET, tmp_path / "video.mp4")
    given = {**environment, "SELVA_PROMPT": "ball bouncing", "SELVA_DURATION_S": "1", "SELVA_STEPS": "2"}
    host = [host_python("dawdreamer"), HERE / "dawdreamer_host.py", built / "selva-stem.vst3", 44100, 512, 50_000]
    done = run([*host, tmp_path / "out"], given)
    assert done.returncode == 0, done.stderr
    stem, rate_hz = soundfile.read(tmp_path / "stems" / "ball-bouncing.wav", dtype="float32")
    assert (rate_hz, len(stem), stem.any()) == (44100, 44100, True)
    sound = np.fromfile(tmp_path / "out", "float32").reshape(2, -1)
    assert np.array_equal(sound[0, : len(stem)], stem)
    assert not sound[:, len(stem) :].any()


def test_a_standing_transport_is_silent_and_a_preset_has_the_stem(built, environment, tmp_path):
    """Pedalboard's transport stands. What it saves, DawDreamer loads and plays, without a worker."""
    stem, preset = tmp_path / "stems" / "0-1.wav", tmp_path / "x.vstpreset"
    host = [host_python("pedalboard"), HERE / "pedalboard_host.py", built / "selva-stem.vst3", 48000, stem, preset]
    found = run(host, environment)
    assert "['generate', 'progress', 'seed', 'status'] 20 0.0\n" in found.stdout, found.stdout + found.stderr
    other = [host_python("dawdreamer"), HERE / "dawdreamer_host.py", built / "selva-stem.vst3", 48000, 256, 4096]
    done = run([*other, tmp_path / "out", preset], {**environment, "SELVA_WORKER": "/no/worker"})
    assert done.returncode == 0, done.stderr
    assert is_stem(tmp_path / "out")


# ---- CLAP ----


class ClapHost:
    """`clap_host`, whose `process` may neither allocate nor lock."""

    def __init__(self, command: list, environment: dict) -> None:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        self.process = subprocess.Popen([str(word) for word in command], env=environment, text=True, **pipes)

    def ask(self, *words: object) -> str:
        self.do(*words)
        return self.process.stdout.readline().strip()

    def do(self, *words: object) -> None:
        self.process.stdin.write(" ".join(map(str, words)) + "\n")
        self.process.stdin.flush()

    def close(self) -> None:
        _, errors = self.process.communicate(timeout=20)
        assert (self.process.returncode, errors) == (0, "")


@pytest.mark.parametrize(("rate_hz", "block"), [(44100, 2), (44100, 4096), (48000, 37), (96000, 512)])
def test_clap_plays_the_stem_where_the_transport_is(built, environment, tmp_path, rate_hz, block):
    host_path = tmp_path / "clap_host"
    headers = f"-I{DPF / 'distrho' / 'src'}"
    source = HERE / "clap_host.c"
    command = [compiler("gcc", "clang"), "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-O1", headers, source]
    subprocess.run([*command, "-rdynamic", "-ldl", "-lpthread", "-o", host_path], check=True)
    words = [host_path, built / "selva-stem.clap", rate_hz, block]
    out = tmp_path / "out"
    first = ClapHost(words, environment)
    first.do("param 1 77")
    first.do("param 0 1")
    assert first.ask("wait", READY) == str(READY)
    assert f'"sample_rate_hz": {rate_hz}, "seed": 77' in (tmp_path / "log").read_text()
    again = ClapHost(words, {**environment, "SELVA_WORKER": "/no/worker"})
    assert first.ask("save", tmp_path / "state") == "1"
    assert again.ask("load", tmp_path / "state") == "1"
    for host in (first, again):
        for position in (0, 123, 7, 999, FRAMES, 10_000_019):
            host.ask("run", out, position, 1500)
            sound, part = np.fromfile(out, "float32"), STEM[position:]
            assert np.array_equal(sound[: len(part)], part)
            assert not sound[len(part) :].any()
        host.ask("stop", out, 1500)
        assert not np.fromfile(out, "float32").any()
        host.close()
