"""Runs PTX with NumPy, all threads of a launch side by side: enough of it for the kernels of this project.

Branches only go forward. A thread that has branched waits at its label until the others come there.
"""

from __future__ import annotations

import ctypes
import operator
import re
from collections.abc import Callable, Sequence

import numpy as np

_ENTRY = re.compile(r"\.visible \.entry (\w+)\((.*?)\)\s*\{(.*?)^\}", re.DOTALL | re.MULTILINE)
_TYPES = {"u32": np.uint32, "s32": np.uint32, "u64": np.uint64, "s64": np.uint64, "f32": np.float32}
_BINARY = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "div": operator.floordiv,
    "rem": operator.mod,
    "setp.ge": operator.ge,
    "setp.leu": lambda a, b: ~(a > b),  # also true if one is NaN
}
Touch = Callable[[np.ndarray, bool], None]
"""Called with the addresses of float32 numbers that are read or, if true, written."""


class Kernel:
    """A kernel: the sizes of its parameters in bytes, and its instructions."""

    def __init__(self, name: str, parameters: str, body: str) -> None:
        found = re.findall(r"\.param \.(\w+) (\w+)", parameters)
        self.name = name
        self.sizes = [np.dtype(_TYPES[kind]).itemsize for kind, _ in found]
        self._parameters = [(each, _TYPES[kind]) for kind, each in found]
        lines = (line.strip().rstrip(";") for line in body.splitlines())
        self._lines = [line for line in lines if line and not line.startswith((".reg", "//"))]

    def run(self, blocks: int, threads: int, arguments: Sequence[int], touch: Touch) -> None:
        """Run all threads. Memory is read and written at its addresses."""
        lanes = np.arange(blocks * threads, dtype=np.uint32)
        given = {name: kind(value) for (name, kind), value in zip(self._parameters, arguments, strict=True)}
        special = {"%tid.x": lanes % threads, "%ctaid.x": lanes // threads, "%ntid.x": np.full_like(lanes, threads)}
        _Run(lanes.size, given, special, touch).all(self._lines)


def kernels(code: str) -> dict[str, Kernel]:
    """The kernels in PTX, by name."""
    return {name: Kernel(name, parameters, body) for name, parameters, body in _ENTRY.findall(code)}


class _Run:
    """A launch: registers with a value for each thread, and which threads are here."""

    def __init__(self, count: int, given: dict, special: dict[str, np.ndarray], touch: Touch) -> None:
        self.count, self.given, self.touch = count, given, touch
        self.registers = dict(special)
        self.here = np.ones(count, bool)
        self.waiting: dict[str, np.ndarray] = {}

    def all(self, lines: list[str]) -> None:
        for line in lines:
            if line.endswith(":"):
                self.here = self.here | self.waiting.pop(line[:-1], False)
            elif line == "ret":
                assert not self.waiting, "a branch goes back"
                return
            elif branch := re.fullmatch(r"@(%p\d+) bra\s+(\S+)", line):
                predicate, label = branch.groups()
                away = self.here & self.registers[predicate]
                self.waiting[label] = self.waiting.get(label, False) | away
                self.here = self.here & ~away
            else:
                self.step(*re.match(r"(\S+)\s+(.*)", line).groups())

    def step(self, operation: str, operands: str) -> None:
        target, *sources = (each.strip("[] ") for each in operands.split(","))
        name, _, kind = operation.rpartition(".")
        dtype = _TYPES[kind]
        if name == "ld.param":
            self.set(target, np.full(self.here.sum(), self.given[sources[0]], dtype))
        elif name in ("mov", "cvta.to.global"):
            self.set(target, self.get(sources[0], dtype))
        elif name == "mad.lo":
            a, b, c = (self.get(source, dtype) for source in sources)
            self.set(target, a * b + c)
        elif name == "mul.wide":
            a, b = (self.get(source, dtype).astype(np.uint64) for source in sources)
            self.set(target, a * b)
        elif name == "ld.global":
            memory, index = self.memory(self.get(sources[0], np.uint64), writes=False)
            self.set(target, memory[index])
        elif name == "st.global":
            memory, index = self.memory(self.get(target, np.uint64), writes=True)
            memory[index] = self.get(sources[0], dtype)
        else:
            a, b = (self.get(source, dtype) for source in sources)
            self.set(target, _BINARY[name.removesuffix(".rn")](a, b))

    def get(self, source: str, dtype: type) -> np.ndarray:
        if source.startswith("%"):
            return self.registers[source][self.here].view(dtype)
        bits = np.uint32(int(source[2:], 16)).view(dtype) if source.startswith("0f") else dtype(int(source))
        return np.full(self.here.sum(), bits)

    def set(self, target: str, values: np.ndarray) -> None:
        before = self.registers.get(target)
        whole = np.zeros(self.count, values.dtype) if before is None else before.copy()
        whole[self.here] = values
        self.registers[target] = whole

    def memory(self, addresses: np.ndarray, *, writes: bool) -> tuple[np.ndarray, np.ndarray]:
        """Memory around the addresses as float32, and their places in it."""
        if not addresses.size:
            return np.empty(0, np.float32), addresses
        self.touch(addresses, writes)
        first = int(addresses.min())
        around = (ctypes.c_uint8 * (int(addresses.max()) - first + 4)).from_address(first)
        return np.frombuffer(around, np.float32), (addresses - np.uint64(first)) // np.uint64(4)
