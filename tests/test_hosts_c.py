"""selva.h with a strict fake of the worker that hangs, babbles, dies and lies, and with the real one; sanitizers on."""

import json
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import soundfile
from compilers import HEADER, HERE, WARNINGS, build, compiler
from platforms import needs_linux, needs_posix
from workers import COMMAND, STREET, is_alive, settings, until

pytestmark = needs_posix
DONE, FAILED, CANCELLED, INTERRUPTED = "4", "5", "6", "7"
READY, GONE = "1", "2"
FAKE = [sys.executable, "-I", "-S", str(HERE / "fake_worker.py")]
SENSELESS = ["outside", "above", "beside", "relative", "no_path", "no_stems", "stems_are_text", "no_rate"]
SENSELESS += ["more_samples", "endless_samples", "negative_samples", "half_samples"]
PROMPTS = ["dog", 'a "♫"\x01\\ 1,5']


@dataclass
class Outcome:
    state: str = ""
    message: str = ""
    life: str = ""
    error: str = ""
    refused: str = ""
    notices: str = ""
    stems: list[list[str]] = field(default_factory=list)
    phases: dict[str, float] = field(default_factory=dict)
    worst_poll_s: float = 0.0
    close_s: float = 0.0


def numeral(text: str) -> float:
    return float(text.replace(",", "."))  # some locales


def parsed(output: str) -> Outcome:
    found = Outcome()
    for line in output.split("\n")[:-1]:
        name, *values = line.split("\t")
        if name == "stem":
            found.stems.append(values)
        elif name == "phase":
            found.phases[values[0]] = numeral(values[1])
        elif name == "job":
            found.state, found.message = values
        elif name == "life":
            found.life, found.error = values
        elif name == "polls":
            found.worst_poll_s = numeral(values[1])
        elif name == "close":
            found.close_s = numeral(values[0])
        elif name in ("refused", "notices"):
            setattr(found, name, values[0])
        else:
            assert name == "start", line
    return found


@pytest.fixture(scope="session")
def program(tmp_path_factory):
    """The program that uses the header, with AddressSanitizer, which also finds leaks, and UBSan."""
    target = tmp_path_factory.mktemp("c") / "selva_try"
    return build(target, HERE / "selva_try.c", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")


@pytest.fixture
def run(program, tmp_path):
    (tmp_path / "stems").mkdir()
    (tmp_path / "video.mp4").write_bytes(b"")

    def run(command: list[str], *, out=None, video=None, prompts=PROMPTS, options=None, **environment: str) -> Outcome:
        places = [str(out or tmp_path / "stems"), str(video or tmp_path / "video.mp4")]
        done = subprocess.run(
            [program, "run", *places, *prompts, "--", *command],
            env={**os.environ, "FAKE_LOG": str(tmp_path / "log"), **environment},
            capture_output=True,
            text=True,
            timeout=60,
            **(options or {}),
            check=False,
            encoding="utf-8",
        )
        assert done.stderr == ""
        assert done.returncode == 0
        return parsed(done.stdout)

    return run


@pytest.mark.parametrize("name", ["gcc", "clang"])
def test_c99_without_a_warning(name, tmp_path):
    source = tmp_path / "x.c"
    source.write_text('#define SELVA_IMPLEMENTATION\n#include "selva.h"\n#include "selva.h"\n')
    subprocess.run([compiler(name), "-std=c99", *WARNINGS, "-fsyntax-only", f"-I{HEADER.parent}", source], check=True)


@pytest.mark.parametrize("name", ["g++", "clang++"])
def test_cpp_without_a_warning_and_linked_with_c(name, tmp_path):
    (tmp_path / "implementation.c").write_text('#define SELVA_IMPLEMENTATION\n#include "selva.h"\n')
    (tmp_path / "host.cpp").write_text('#include "selva.h"\nint main() { selva_close(nullptr); }\n')
    (tmp_path / "both.cpp").write_text('#define SELVA_IMPLEMENTATION\n#include "selva.h"\n')
    options = [*WARNINGS, f"-I{HEADER.parent}"]
    subprocess.run([compiler(name), "-std=c++14", *options, "-fsyntax-only", "both.cpp"], check=True, cwd=tmp_path)
    subprocess.run([compiler("gcc", "clang"), "-std=c99", "-c", *options, "implementation.c"], check=True, cwd=tmp_path)
    linked = [compiler(name), "-std=c++14", *options, "host.cpp", "implementation.o", "-o", "host"]
    subprocess.run(linked, check=True, cwd=tmp_path)
    subprocess.run(["./host"], check=True, cwd=tmp_path)


def weighed(samples) -> float:
    """What the program prints of samples: a sum that tells their order."""
    return float(np.sum(np.arange(1, len(samples) + 1) * np.asarray(samples, dtype=np.float64)))


def expected(take: int) -> float:
    return weighed([((k * 37 + take * 11) % 201 - 100) / 128 for k in range(1000)])


@pytest.mark.parametrize("behaviour", ["honest", "byte_by_byte", "old_news", "revives"])
def test_stems_arrive_exactly(run, behaviour, tmp_path):
    found = run([*FAKE, behaviour], TRY_RATE="44100", TRY_KEY="k♫y", TRY_QUALITY="draft")
    assert (found.state, found.message, found.life) == (DONE, "", READY)
    assert [stem[0] for stem in found.stems] == [PROMPTS[0]] * 2 + [PROMPTS[1]] * 2
    assert "old" not in found.phases
    asked = json.loads((tmp_path / "log").read_text(encoding="utf-8"))
    assert asked["key"] == "k♫y"
    assert asked["request"] == {
        "video": str(tmp_path / "video.mp4"),
        "out": str(tmp_path / "stems"),
        "prompts": PROMPTS,
        "quality": "draft",
        "duration_s": 1.25,
        "takes": 2,
        "steps": 2,
        "seed": 7,
        "sample_rate_hz": 44100,
    }


def test_what_a_host_sees(run, tmp_path):
    found = run([*FAKE, "honest"], prompts=["dog"])
    assert found.phases == {"load": -1, "step": 0.5, "tiny": 0, "write": 1, "": -1}
    assert found.notices == "for ♫ research"
    for take, (prompt, file, number, seed, rate, frames, total) in enumerate(found.stems, 1):
        assert (prompt, file) == ("dog", str(tmp_path / "stems" / f"0-{take}.wav"))
        assert (number, seed, rate, frames) == (str(take), "7", "16000", "1000")
        assert float(total) == pytest.approx(expected(take), rel=1e-8)
    assert len(found.stems) == 2


def test_a_worker_leaves_when_its_input_ends(run):
    assert min(run([*FAKE, "honest"]).close_s for _ in range(3)) < 0.9  # not killed, unless the machine is busy


@pytest.mark.parametrize(
    ("behaviour", "message"),
    {
        "deaf": "the worker does not answer",
        "mute": "the worker does not answer",
        "closes_output": "the worker closed its output",
        "ends_at_once": "the worker ended with exit code 4",
        "dies": "the worker ended with exit code 3",
        "dies_half_way": "the worker ended with exit code 3",
        "killed": "the worker was ended by signal 9",
        "huge_line": "the worker sent a line that is too long",
        "garbage": "the worker sent what is not JSON",
        "nan": "the worker sent what is not JSON",
        "not_utf8": "the worker sent what is not JSON",
        "nul": "the worker sent what is not JSON",
        "deep": "the worker sent what is not JSON",
        "a_list": "the worker sent what is not JSON",
        "no_version": "the worker sent what is not JSON-RPC",
        "text_id": "the worker answered what nobody asked",
        "no_id": "the worker answered what nobody asked",
        "answers_twice": "the worker answered what nobody asked",
        "wrong_id": "the worker gave a job no name",
        "nameless": "the worker gave a job no name",
        "newer": "the worker speaks another protocol",
        "unknown_state": "the worker told no state of a job",
        "another_job": "the worker answered about another job",
        "refuses_mutely": "the worker gave no reason",
    }.items(),
)
def test_a_broken_worker_is_ended_and_its_job_interrupted(run, behaviour, message):
    patience = {"TRY_TIMEOUT": "0.5"} if behaviour in ("deaf", "mute") else {}
    found = run([*FAKE, behaviour], **patience)
    assert (found.life, found.error) == (GONE, message)
    assert (found.state, found.message) == (INTERRUPTED, message)
    assert found.worst_poll_s < 0.25


@pytest.mark.parametrize(
    ("behaviour", "message"),
    {
        "refuses": "no 🐕 today",
        "fails": "no such über video",
        "fails_early": "too early",
        "missing_file": "No such file",
        "folder": "it is not a file",
        "pipe": "it is not a file",
        "cut_file": "it is cut off",
        "stereo": "it is not mono",
        "nan_sample": "a sample is not a finite number",
        "other_rate": "it is not as the worker reported",
        "fewer_samples": "it is not as the worker reported",
        **dict.fromkeys(SENSELESS, "the worker's report of the stems makes no sense"),
    }.items(),
)
def test_a_lie_fails_its_job_only(run, behaviour, message):
    found = run([*FAKE, behaviour])
    assert (found.state, found.life, found.stems) == (FAILED, READY, [])
    assert message in found.message


def test_a_stubborn_worker_is_killed_after_a_second(run):
    found = run([*FAKE, "stubborn"])
    assert found.state == DONE
    assert found.close_s > 0.9


def test_cancel(run, tmp_path):
    for when in ("", "step"):
        assert run([*FAKE, "endless"], TRY_CANCEL=when).state == CANCELLED
    assert (tmp_path / "log").read_text().count("cancelled") == 2


def test_a_forgotten_job_is_cancelled(run, tmp_path):
    run([*FAKE, "leaves_when_cancelled"], TRY_FORGET="1")
    assert "cancelled" in (tmp_path / "log").read_text()


def test_a_worker_that_cannot_be_started(run):
    found = run(["/no/such/worker"])
    assert (found.life, found.error) == (GONE, "/no/such/worker cannot be started: No such file or directory")
    assert found.refused == found.error


def test_writing_to_a_dead_worker_does_not_end_the_host(run):
    assert run(["false"], TRY_PAUSE="0.3").error == "the worker ended with exit code 1"


def test_requests_that_are_refused_at_once(run, tmp_path):
    assert "No such file" in run([*FAKE, "honest"], video=tmp_path / "none.mp4", TRY_SECONDS="0").refused
    assert "No such file" in run([*FAKE, "honest"], out=tmp_path / "none", TRY_SECONDS="0").refused
    assert run([*FAKE, "honest"], video="video.mp4", TRY_SECONDS="0").refused == "the paths must be absolute"
    assert "needs a video" in run([*FAKE, "honest"], prompts=[], TRY_SECONDS="0").refused
    prompts = [os.fsdecode(b"\xff")]
    assert run([*FAKE, "honest"], prompts=prompts, TRY_SECONDS="0").refused == "a prompt is not UTF-8"
    assert "too long" in run([*FAKE, "honest"], prompts=["x" * 100_000] * 11, TRY_SECONDS="0").refused


def test_a_long_request_arrives_whole(run, tmp_path):
    prompts = [f"{number} " + "x" * 99_000 for number in range(6)]  # more than a socket takes at once
    assert run([*FAKE, "refuses"], prompts=prompts).state == FAILED
    assert json.loads((tmp_path / "log").read_text())["request"]["prompts"] == prompts


def test_the_worker_hears_signals_that_its_host_ignores(run, tmp_path):
    code = "import os, signal; open(os.environ['FAKE_LOG'], 'w').write(signal.getsignal(signal.SIGTERM).name)"
    deaf = {"preexec_fn": lambda: signal.signal(signal.SIGTERM, signal.SIG_IGN)}
    run([sys.executable, "-I", "-S", "-c", code], options=deaf)
    assert (tmp_path / "log").read_text() == "SIG_DFL"


def test_links_are_followed_before_folders_are_allowed(run, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "film.mp4").write_bytes(b"")
    (tmp_path / "link.mp4").symlink_to(tmp_path / "elsewhere" / "film.mp4")
    assert run([*FAKE, "honest"], video=tmp_path / "link.mp4").state == DONE


def test_locales_with_a_decimal_comma(run, tmp_path):
    if not shutil.which("localedef"):
        pytest.skip("needs localedef to make a locale")
    make = ["localedef", "-i", "de_DE", "-f", "UTF-8", str(tmp_path / "de_DE.UTF-8")]
    if subprocess.run(make, capture_output=True, check=False).returncode:
        pytest.skip("this system has no sources of German locales")
    found = run([*FAKE, "honest"], LOCPATH=str(tmp_path), LC_ALL="de_DE.UTF-8", TRY_SECONDS="20")
    assert found.state == DONE
    assert json.loads((tmp_path / "log").read_text(encoding="utf-8"))["request"]["duration_s"] == 1.25


@needs_linux
def test_no_descriptor_of_the_host_reaches_the_worker(run, tmp_path):
    inherited = os.open(os.devnull, os.O_RDONLY)
    os.set_inheritable(inherited, True)
    code = "import os; open(os.environ['FAKE_LOG'], 'w').write(' '.join(sorted(os.listdir('/dev/fd'))))"
    run([sys.executable, "-I", "-S", "-c", code], options={"pass_fds": [inherited]})
    os.close(inherited)
    assert (tmp_path / "log").read_text() == "0 1 2 3 4"  # the last are the log's and the listing's own


# ---- JSON against Python's reader ----


def changed(text: str, source: random.Random) -> str:
    """The text with some characters changed, doubled or taken out."""
    characters = list(text)
    for _ in range(source.randint(0, 3)):
        place = source.randrange(len(characters)) if characters else 0
        new = source.choice('{}[]",:\\/ue+-.019 tfn\x1f\x7f\u00fc\U0001f415')
        characters[place : place + source.randint(0, 1)] = source.choice([[new], [], [new, new]])
    return "".join(characters)


def python_reads(line: str):
    def refuse(name):
        raise ValueError(name)

    try:
        return True, json.loads(line, parse_constant=refuse, object_pairs_hook=lambda pairs: dict(reversed(pairs)))
    except ValueError:
        return False, None


def test_json_is_read_as_python_reads_it(program):
    source = random.Random(1)
    texts = ["", "a", '\u00fc\n\t\b\f\r"\\/', "\U0001f415x", "\x7f", "\u20ac"]
    values = [{"k": text} for text in texts] + [{"a": [1, -0.5e-7, [], {}], "k": "v", "b": None}, [True, False, 1e30]]
    values.append({"a": {"k": "inner"}, "k": "outer"})
    seeds = [json.dumps(value, ensure_ascii=bool(number % 2)) for number, value in enumerate(values * 2)]
    seeds += [
        '{"k":"\\ud83d\\udc15"}',
        '{"k":"\\ud83d"}',
        '{"k":"\\udc15\\ud83d"}',
        '{"k":"\\u0000"}',
        "-",
        "01",
        "1.",
        ".1",
    ]
    seeds += ["1e", "1e+", "-0", "[1,]", '{"k":1,}', '{"k"}', "tru", "nulll", "", " ", "[" * 40 + "]" * 40]
    lines = [
        line for seed in seeds for line in [seed, *(changed(seed, source) for _ in range(150))] if "\n" not in line
    ]
    data = "".join(line + "\n" for line in lines).encode()
    done = subprocess.run([program, "json"], input=data, capture_output=True, check=True)
    answers = done.stdout.decode().splitlines()
    assert len(answers) == len(lines)
    for line, answer in zip(lines, answers, strict=True):
        valid, value = python_reads(line)
        if line.count("[") + line.count("{") > 32:
            continue  # deeper than is needed: refused
        assert answer.startswith("yes") == valid, line
        if valid and isinstance(value, dict) and isinstance(value.get("k"), str):
            text = "".join("\ufffd" if c == "\0" or "\ud800" <= c < "\ue000" else c for c in value["k"])
            assert bytes.fromhex(answer[4:]).decode() == text, line


UTF8 = [b"\xc3\xbc", b"\xed\x9f\xbf", b"\xf4\x8f\xbf\xbf", b"\xed\xa0\x80", b"\xc0\x80", b"\xc1\xbf", b"\xe0\x9f\xbf"]
UTF8 += [b"\xf0\x8f\xbf\xbf", b"\xf4\x90\x80\x80", b"\xf5\x80\x80\x80", b"\xff", b"\x80", b"\xe2\x82", b"\xc3"]


def test_only_valid_utf8_is_read(program):
    data = b"".join(b'{"k":"' + text + b'"}\n' for text in UTF8)
    done = subprocess.run([program, "json"], input=data, capture_output=True, check=True)
    for text, answer in zip(UTF8, done.stdout.decode().splitlines(), strict=True):
        valid = text.decode(errors="ignore").encode() == text
        assert answer == (f"yes {text.hex()}" if valid else "no")


# ---- WAV ----


@pytest.mark.parametrize("kind", ["PCM_16", "PCM_24", "PCM_32", "FLOAT"])
@pytest.mark.parametrize("form", ["WAV", "WAVEX"])
def test_wav_files_are_read_as_soundfile_reads_them(program, tmp_path, kind, form):
    samples = np.random.default_rng(0).uniform(-1, 1, 40_001).astype("float32")
    samples[:4] = [-1, 0, 0.5, 1 - 2**-24]
    soundfile.write(tmp_path / "x.wav", samples, 44100, subtype=kind, format=form)
    done = subprocess.run([program, "wav", tmp_path / "x.wav"], capture_output=True, check=True)
    assert np.array_equal(np.frombuffer(done.stdout, "float32"), soundfile.read(tmp_path / "x.wav", dtype="float32")[0])
    assert done.stderr == b"44100\n"


def test_damaged_wav_files_are_one_line(program, tmp_path):
    soundfile.write(tmp_path / "x.wav", np.zeros(9), 8000, subtype="PCM_24")
    good, source = (tmp_path / "x.wav").read_bytes(), random.Random(2)
    cases = [good[:length] for length in range(len(good))]
    for place in range(12, 44):
        cases.append(good[:place] + bytes([source.randrange(256)]) + good[place + 1 :])
        cases.append(good[:place] + struct.pack("<I", 0xFFFFFFFF) + good[place + 4 :])
    for number, case in enumerate(cases[::2]):
        (tmp_path / "x.wav").write_bytes(case)
        done = subprocess.run([program, "wav", tmp_path / "x.wav"], capture_output=True, check=False)
        if done.returncode:
            assert (done.returncode, done.stderr.count(b"\n")) == (2, 1), (number, done.stderr)
            assert b"x.wav cannot be read: " in done.stderr


# ---- The slot ----


def test_sound_is_swapped_without_a_race_or_a_leak(tmp_path):
    program = build(tmp_path / "slot", HERE / "selva_try.c", "-fsanitize=thread")
    done = subprocess.run([program, "slot"], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.stdout.startswith("seen 1 wrong 0 kept ")
    assert done.stdout.endswith(" left 0\n")


def test_sound_is_never_freed_under_the_audio_thread(program):
    done = subprocess.run([program, "slot"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "wrong 0" in done.stdout


# ---- The real worker ----


def test_the_real_worker(run, demo_bundle, tmp_path):
    command = [*COMMAND, "--stdio", *settings(tmp_path, demo_bundle)]
    found = run(command, video=STREET, prompts=["ball bouncing"], TRY_RATE="44100", TRY_SECONDS="60")
    assert (found.state, found.message, found.life) == (DONE, "", READY)
    assert {"load", "encode", "step", "write"} & set(found.phases)
    assert found.notices
    assert len(found.stems) == 2
    for prompt, file, _, seed, rate, frames, total in found.stems:
        samples, rate_hz = soundfile.read(file, dtype="float64")
        assert (prompt, seed, rate, rate_hz) == ("ball bouncing", "7", "44100", 44100)
        assert int(frames) == len(samples) == round(1.25 * 44100)
        assert float(total) == pytest.approx(weighed(samples), rel=1e-6, abs=1e-6)
    bad = run(command, video=STREET, prompts=["x"], TRY_RATE="7", TRY_SECONDS="60")
    assert bad.state == FAILED
    assert "sample" in bad.message


@needs_linux
def test_the_real_worker_leaves_when_its_host_is_killed(program, demo_bundle, tmp_path):
    worker = [*COMMAND, "--stdio", *settings(tmp_path, demo_bundle)]
    places = [str(tmp_path), str(STREET), "rain", "--"]
    with subprocess.Popen([program, "run", *places, *worker], stdout=subprocess.DEVNULL) as host:
        children = until(lambda: Path(f"/proc/{host.pid}/task/{host.pid}/children").read_text().split())
        until((tmp_path / "state" / "engine.log").exists)
        host.kill()
    time.sleep(0.01)
    until(lambda: not is_alive(int(children[0])), within_s=2)
