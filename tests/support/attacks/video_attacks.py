"""Videos with random damage or false statements about themselves. Each is read, and some are copied with a stem.

Every attack must give a result or one of the project's errors, in time, without a crash or partial files. The attacks
run in separate processes, many in each, which report after each one.
"""

import json
import random
import struct
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import av
from clips import click, numbered, write_video
from movies import Box, build, parse

from attacks.campaign import environment

PER_PROCESS = 50
LIMIT_S = 60
"""Time limit of one attack, seconds, on a busy machine."""
LIMIT_MIB = 900
"""512 MiB and the file's size are allowed for tables; the rest is for FFmpeg's decoders and Python."""
MAX_TABLE_BYTES = 24 << 20
TABLES = dict.fromkeys(b"elst stts ctts stss stsc stco sbgp trun".split(), 4) | {b"stsz": 8, b"sidx": 20}
"""Offset of the row count in each table."""
EXAMPLE = Path(__file__).parents[3] / "examples" / "street.mp4"
SETTINGS = {
    "a.mp4": {"options": {"g": "10"}},
    "b.mov": {"sound_codec": "pcm_s16le"},
    "c.mkv": {"codec": "ffv1", "sound_codec": "flac"},
    "d.webm": {"codec": "libvpx", "sound_codec": "libopus"},
    "e.ts": {"start_s": 90},
    "f.avi": {"codec": "mpeg4", "sound_codec": "mp2"},
    "g.nut": {"codec": "mjpeg", "pixels": "yuvj420p", "sound_codec": "pcm_s16le"},
    "h.mp4": {"codec": "mpeg4"},
}


def sources(folder: Path) -> list[Path]:
    pictures = [numbered(number, width=32, height=32) for number in range(40)]
    made = [write_video(folder / name, pictures, sound=click(1.6, 1, 48000), **more) for name, more in SETTINGS.items()]
    return [*made, fragmented(made[0], folder / "i.mp4"), EXAMPLE]


def fragmented(path: Path, out: Path) -> Path:
    with av.open(str(path)) as source, av.open(str(out), "w", options={"movflags": "frag_keyframe+dash"}) as target:
        copies = {stream.index: target.add_stream_from_template(stream) for stream in source.streams}
        for packet in source.demux():
            if packet.size:
                packet.stream = copies[packet.stream_index]
                target.mux(packet)
    return out


def flip(data: bytes, chance: random.Random) -> bytes:
    changed, first = bytearray(data), chance.choice([0, 0, len(data) // 2])
    for _ in range(chance.choice([1, 3, 30, 300])):
        changed[chance.randrange(first, len(data))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def cut(data: bytes, chance: random.Random) -> bytes:
    begin = chance.randrange(len(data))
    return data[:begin] + data[begin + chance.choice([1, 100, len(data)]) :]


def repeat(data: bytes, chance: random.Random) -> bytes:
    begin = chance.randrange(len(data))
    end = begin + chance.choice([1, 16, 1000])
    return data[:end] + data[begin:end] * chance.choice([1, 10, 1000]) + data[end:]


def numbers(data: bytes, chance: random.Random) -> bytes:
    """Replaces four bytes by a number that is likely to cause trouble."""
    changed = bytearray(data)
    for _ in range(chance.choice([1, 5])):
        place = chance.randrange(max(1, len(data) - 8))
        changed[place : place + 4] = struct.pack(">I", chance.choice([0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 10**7]))
    return bytes(changed)


def all_boxes(boxes: list[Box]) -> list[tuple[list[Box], int]]:
    found = []
    for index, (_, content) in enumerate(boxes):
        found.append((boxes, index))
        if isinstance(content, list):
            found += all_boxes(content)
    return found


def splice(data: bytes, chance: random.Random) -> bytes:
    """Replaces a box by another, repeats it, or leaves it out."""
    boxes = parse(data)
    places = all_boxes(boxes)
    (take, index), (put, place) = chance.choice(places), chance.choice(places)
    if place < len(put):
        put[place : place + chance.randrange(2)] = [take[index]] * chance.choice([0, 1, 1, 50])
    try:
        return build(boxes)
    except RecursionError:  # a box was put into itself
        return data


def counts(data: bytes, chance: random.Random) -> bytes:
    """Changes a table of a movie: a wrong row count, or the same rows many times."""
    boxes = parse(data)
    tables = [(holder, index) for holder, index in all_boxes(boxes) if holder[index][0] in TABLES]
    if not tables:
        return data
    holder, index = chance.choice(tables)
    kind, content = holder[index]
    place = TABLES[kind]
    number = struct.pack(">I", chance.choice([0, 1, 2, 1000, 10**6, 8 * 10**7, 2**31, 2**32 - 1]))
    rows = content[place + 4 :]
    if kind == b"trun":  # no fields per sample
        content = content[:1] + b"\0\0" + content[3:]
    elif kind == b"stsz" and chance.random() < 0.5:  # all samples have the same size
        content = content[:7] + b"\1" + content[8:]
    elif rows and chance.random() < 0.5:
        rows *= chance.choice([10, 1000, MAX_TABLE_BYTES // len(rows) + 1])
    holder[index] = (kind, content[:place] + number + rows[:MAX_TABLE_BYTES])
    return build(boxes)


def mutant(data: bytes, chance: random.Random) -> bytes:
    ways = [flip, cut, repeat, numbers]
    if data[4:8] == b"ftyp":
        ways += [splice, counts, counts]
    for _ in range(chance.choice([1, 1, 2])):
        data = chance.choice(ways)(data, chance) or b"\0"
    return data


def attack(count: int, seed: int) -> None:
    """Runs `count` attacks, each with its own seed, starting at `seed`. Call `attack(1, SEED)` to repeat one.

    Raises:
        AssertionError: an attack found a fault; names the seed of the first one.
    """
    results: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "sources").mkdir()
        originals = sources(folder / "sources")
        for first in range(seed, seed + count, PER_PROCESS):
            seeds = range(first, min(first + PER_PROCESS, seed + count))
            results += attack_some(folder, originals, seeds)
    print(f"{count} attacks on videos from seed {seed}: {dict(results)}")


def attack_some(folder: Path, originals: list[Path], seeds: range) -> Counter[str]:
    paths = []
    for seed in seeds:
        chance = random.Random(seed)
        original = chance.choice(originals)
        paths.append(folder / f"{seed}{original.suffix}")
        paths[-1].write_bytes(mutant(original.read_bytes(), chance))
    job = [sys.executable, "-X", "faulthandler", "-m", "attacks.attacked", *map(str, paths)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(job, **pipes, text=True, env=environment()) as process:
        try:
            output, errors = process.communicate(timeout=LIMIT_S * len(seeds))
        except subprocess.TimeoutExpired:
            process.kill()
            output, errors = process.communicate()
    lines = [json.loads(line) for line in output.splitlines()]
    if process.returncode or len(lines) < len(seeds):
        raise AssertionError(f"seed {seeds[len(lines) :][:1]}: ended with {process.returncode}: {errors[-2000:]}")
    for seed, line in zip(seeds, lines, strict=True):
        assert line["seconds"] < LIMIT_S, f"seed {seed}: took {line['seconds']:.0f} s"
        assert line["mib"] < LIMIT_MIB, f"seed {seed}: took {line['mib']:.0f} MiB"
        assert not line["left"], f"seed {seed}: left {line['left']}"
    for path in paths:
        path.unlink()
    return Counter(line["outcome"] for line in lines)
