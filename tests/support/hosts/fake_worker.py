"""A fake of `selva-worker --stdio` that is stricter than the real one, and that lies, babbles, hangs or dies on demand.

    python -I -S fake_worker.py BEHAVIOUR

It ends with exit code 9 and a line in `fake.log` beside the stems as soon as the client breaks the protocol.
"""

import json
import os
import signal
import struct
import sys
import time

BEHAVIOUR = sys.argv[1]
JOB = "00ff00ff00ff00ff"
KNOWN = {
    "video",
    "out",
    "prompts",
    "negative",
    "start_s",
    "duration_s",
    "seed",
    "takes",
    "steps",
    "sample_rate_hz",
    "quality",
}
allowed, requests = [], {}


def require(condition, what):
    if not condition:
        with open(os.environ["FAKE_LOG"], "a") as log:
            log.write(what + "\n")
        os._exit(9)


def write(data):
    while data:
        data = data[os.write(1, data) :]


def send(message):
    data = json.dumps(message).encode() + b"\n"
    if BEHAVIOUR == "byte_by_byte":
        for k in range(len(data)):
            write(data[k : k + 1])
    else:
        write(data)


def reply(number, result):
    send({"jsonrpc": "2.0", "id": number, "result": result})
    if BEHAVIOUR == "answers_twice":
        send({"jsonrpc": "2.0", "id": number, "result": result})


def wav(path, samples, *, rate, kind="pcm24", channels=1, cut=0, kinds=None):
    form, bits = {"pcm16": (1, 16), "pcm24": (1, 24), "pcm32": (1, 32), "float": (3, 32)}[kind]
    if form == 3:
        data = struct.pack(f"<{len(samples)}f", *samples)
    else:
        data = b"".join(int(s * (1 << bits - 1)).to_bytes(bits // 8, "little", signed=True) for s in samples)
    head = struct.pack("<HHIIHH", form, channels, rate, rate * channels * bits // 8, channels * bits // 8, bits)
    chunks = b"bext" + struct.pack("<I", 3) + b"abc\0" + b"fmt " + struct.pack("<I", 16) + head
    body = b"WAVE" + chunks + b"data" + struct.pack("<I", len(data)) + data
    whole = b"RIFF" + struct.pack("<I", len(body)) + body
    with open(path, "wb") as file:
        file.write(whole[: len(whole) - cut])


def sound(take):
    return [((k * 37 + take * 11) % 201 - 100) / 128 for k in range(1000)]


def stems(request):
    """Writes the files and returns the report, with the lie."""
    found = []
    rate = request.get("sample_rate_hz", 16000)
    for number, prompt in enumerate(request["prompts"]):
        for take in range(1, request.get("takes", 1) + 1):
            path = f"{request['out']}/{number}-{take}.wav"
            samples = sound(take)
            if BEHAVIOUR == "nan_sample":
                samples[500] = float("nan")
            kind = "float" if BEHAVIOUR == "nan_sample" or take == 2 else "pcm24"
            stereo = 2 if BEHAVIOUR == "stereo" else 1
            cut = 1 if BEHAVIOUR == "cut_file" else 0
            wav(path, samples, rate=rate + (BEHAVIOUR == "other_rate"), kind=kind, channels=stereo, cut=cut)
            stem = {"prompt": prompt, "take": take, "seed": request["seed"], "file": path, "video": None}
            found.append({**stem, "samples": len(samples), "sample_rate_hz": rate, "duration_s": 0.1})
    last = found[-1]
    if BEHAVIOUR in ("missing_file", "pipe", "folder"):
        os.remove(last["file"])
    if BEHAVIOUR == "pipe":
        os.mkfifo(last["file"])
    if BEHAVIOUR == "folder":
        os.mkdir(last["file"])
    lies = {
        "outside": {"file": "/etc/passwd"},
        "above": {"file": request["out"] + "/../x.wav"},
        "beside": {"file": request["out"] + "x.wav"},
        "relative": {"file": "x.wav"},
        "no_path": {"file": 7},
        "fewer_samples": {"samples": 999},
        "more_samples": {"samples": 10**17},
        "endless_samples": {"samples": 10**30},
        "negative_samples": {"samples": -1},
        "half_samples": {"samples": 0.5},
        "no_rate": {"sample_rate_hz": 0},
    }
    last.update(lies.get(BEHAVIOUR, {}))
    return {"no_stems": [], "stems_are_text": "all"}.get(BEHAVIOUR, found)


class Job:
    def __init__(self):
        self.seen = {"id": JOB, "kind": "generate", "revision": 0, "state": "queued", "progress": None}
        self.seen.update(messages=[], result=None, error=None)

    def change(self, *, tell=True, **changes):
        self.seen.update(changes, revision=self.seen["revision"] + 1)
        if tell:
            send({"jsonrpc": "2.0", "method": "job.changed", "params": self.seen})

    def tell_old_news(self):
        old = {**self.seen, "revision": 1, "progress": {"phase": "old", "fraction": 0, "done": 0, "total": 1}}
        send({"jsonrpc": "2.0", "method": "job.changed", "params": old})
        time.sleep(0.1)

    def run(self):
        if BEHAVIOUR in ("endless", "leaves_when_cancelled"):
            self.change(state="running", progress={"phase": "step", "fraction": None, "done": None, "total": None})
            return
        for phase, fraction in (("load", None), ("step", 0.5), ("tiny", 1e-05), ("write", 1)):
            changes = {"state": "writing" if phase == "write" else "running"}
            self.change(**changes, progress={"phase": phase, "fraction": fraction, "done": 1, "total": 2})
            time.sleep(0.01)
        if BEHAVIOUR == "dies_half_way":
            write(b'{"jsonrpc": "2.0", "me')
            os._exit(3)
        if BEHAVIOUR == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if BEHAVIOUR == "huge_line":
            while True:
                write(b" " * 65536)
        raw = {
            "garbage": b"Traceback (most recent call last):\n",
            "nan": b'{"jsonrpc": "2.0", "method": "job.changed", "params": {"id": NaN}}\n',
            "not_utf8": b'{"jsonrpc": "2.0", "method": "\xff"}\n',
            "nul": b'{"jsonrpc": "2.0", "method": "x"}\0{}\n',
            "deep": b'{"jsonrpc": "2.0", "method": ' + b"[" * 1_000_000 + b"]" * 1_000_000 + b"}\n",
            "a_list": b'[{"jsonrpc": "2.0"}]\n',
            "no_version": b'{"method": "job.changed", "params": {}}\n',
            "text_id": b'{"jsonrpc": "2.0", "id": "1", "result": {}}\n',
            "no_id": b'{"jsonrpc": "2.0", "id": null, "error": {"code": 1, "message": "x"}}\n',
        }
        write(raw.get(BEHAVIOUR, b""))
        if BEHAVIOUR == "old_news":
            self.tell_old_news()
        if BEHAVIOUR == "unknown_state":
            self.change(state="thinking")
        messages = [{"kind": "notice", "text": "for \u266b research"}, {"kind": "warning", "text": "x" * 5000}]
        if BEHAVIOUR == "fails":
            self.change(state="failed", progress=None, error={"message": "no such \u00fcber video", "exit_code": None})
        else:
            self.change(state="done", progress=None, messages=messages, result={"stems": stems(requests[JOB])})
        if BEHAVIOUR == "revives":
            self.change(state="running")


def check_submit(params):
    require(set(params) <= {"key", "request"}, "unknown parameters")
    request = params["request"]
    require(set(request) <= KNOWN and {"video", "out", "prompts", "seed"} <= set(request), "names")
    require(type(request["seed"]) is int, "seed")
    require(os.path.isabs(request["video"]) and os.path.realpath(request["video"]) == request["video"], "video")
    require(os.path.dirname(request["video"]) in allowed and request["out"] in allowed, "folders")
    require(all(type(request.get(name, 1)) in (int, float) for name in ("start_s", "duration_s")), "times")
    require(all(type(request.get(name, 1)) is int for name in ("takes", "steps", "sample_rate_hz")), "numbers")
    require(all(isinstance(prompt, str) for prompt in request["prompts"]), "prompts")
    with open(os.environ["FAKE_LOG"], "a", encoding="utf-8") as log:
        log.write(json.dumps(params) + "\n")
    return request


def answer(message, job):
    number, method, params = message["id"], message["method"], message["params"]
    if method == "initialize":
        require(params["protocol"] == 1 and set(params) <= {"protocol", "folders"}, "initialize")
        for folder in params.get("folders", []):
            require(os.path.isdir(folder) and os.path.realpath(folder) == folder, "not a folder")
            allowed.append(folder)
        reply(number + (BEHAVIOUR == "wrong_id"), {"protocol": 2 if BEHAVIOUR == "newer" else 1})
    elif method == "job.submit":
        requests[JOB] = check_submit(params)
        if BEHAVIOUR == "dies":
            os._exit(3)
        if BEHAVIOUR == "refuses":
            send({"jsonrpc": "2.0", "id": number, "error": {"code": -32602, "message": "no \U0001f415 today"}})
            return
        if BEHAVIOUR == "refuses_mutely":
            send({"jsonrpc": "2.0", "id": number, "error": {"code": -32602}})
        seen = dict(job.seen)
        if BEHAVIOUR == "fails_early":  # the change is told before the job has a name
            job.change(state="failed", error={"message": "too early", "exit_code": None})
        reply(number, {**seen, "id": {"nameless": 7, "long_name": "7" * 10_000}.get(BEHAVIOUR, JOB)})
        if BEHAVIOUR not in ("fails_early", "another_job"):
            job.run()
    elif method in ("job.get", "job.cancel"):
        require(params == {"job": JOB} or BEHAVIOUR == "long_name", "the name of the job")
        if method == "job.cancel" and job.seen["state"] in ("queued", "running"):
            job.change(tell=False, state="cancelled", progress=None)
            with open(os.environ["FAKE_LOG"], "a") as log:
                log.write("cancelled\n")
            if BEHAVIOUR == "leaves_when_cancelled":
                os._exit(0)
        reply(number, {**job.seen, "id": "another" if BEHAVIOUR == "another_job" else JOB})
    else:
        require(False, "unknown method")


def main():
    last_id = 0
    if BEHAVIOUR == "ends_at_once":
        os._exit(4)
    if BEHAVIOUR in ("stubborn", "deaf"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if BEHAVIOUR == "deaf":
        time.sleep(60)
    job = Job()
    for line in sys.stdin.buffer:
        if BEHAVIOUR == "mute":
            continue
        message = json.loads(line.decode("utf-8"))
        require(set(message) == {"jsonrpc", "id", "method", "params"} and message["jsonrpc"] == "2.0", "envelope")
        require(type(message["id"]) is int and message["id"] == last_id + 1, "numbers")
        require(last_id or message["method"] == "initialize", "initialize comes first")
        last_id = message["id"]
        if BEHAVIOUR == "closes_output":
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.close(0)
            time.sleep(60)
        answer(message, job)


try:
    main()
finally:
    if BEHAVIOUR == "stubborn":  # also when its last answer finds no reader
        time.sleep(60)
