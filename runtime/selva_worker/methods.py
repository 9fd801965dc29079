"""The methods of a worker, in one table for both transports."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from typing import Any

from selva_runtime.command.versions import versions
from selva_worker.bundle_facts import bundle_facts
from selva_worker.client import PROTOCOL
from selva_worker.engine_process import memory_bytes
from selva_worker.jobs import ACTIVE, ENCODE, GENERATE, LOAD, QUEUED, Job
from selva_worker.protocol import INVALID_PARAMS, UNKNOWN_METHOD, Refused
from selva_worker.requests import ENCODE_OPTIONS, GENERATE_OPTIONS, checked_encode, checked_generate
from selva_worker.supervisor import Supervisor

_MAX_KEY = 200


class Methods:
    """What a client may call. `stop` is called once a client asks the worker to leave; it must return at once."""

    def __init__(self, supervisor: Supervisor, stop: Callable[[], None]) -> None:
        self._supervisor, self._stop = supervisor, stop
        self._table: dict[str, tuple[Callable[..., Any], dict[str, type]]] = {
            "initialize": (self._initialize, {"protocol": int, "folders": list}),
            "clip.open": (self._open, {"clip": dict, "key": str, "urgent": bool}),
            "job.submit": (self._submit, {"request": dict, "key": str, "urgent": bool}),
            "job.get": (self._get, {"job": str, "since": int}),
            "job.list": (self._list, {}),
            "job.cancel": (self._cancel, {"job": str}),
            "model.load": (self._load, {"urgent": bool}),
            "model.unload": (self._unload, {}),
            "doctor": (self._doctor, {}),
            "shutdown": (self._shutdown, {}),
        }

    def call(self, method: str, params: dict[str, Any]) -> Any:
        """Call a method.

        Raises:
            Refused: there is no such method, a parameter is wrong, or the method refuses.
        """
        if method not in self._table:
            raise Refused(UNKNOWN_METHOD, f"there is no method {method!r}; take {', '.join(self._table)}")
        function, known = self._table[method]
        for name, value in params.items():
            if name not in known or type(value) is not known[name]:
                takes = ", ".join(f"{other} ({kind.__name__})" for other, kind in known.items()) or "no parameter"
                raise Refused(INVALID_PARAMS, f"{method} does not take this {name!r}; it takes {takes}")
        return function(**params)

    def _initialize(self, protocol: int = PROTOCOL, folders: list[Any] | None = None) -> dict[str, Any]:
        if protocol != PROTOCOL:
            raise Refused(
                INVALID_PARAMS, f"this worker speaks protocol {PROTOCOL}, not {protocol}; update the older one"
            )
        for folder in folders or []:
            if not isinstance(folder, str):
                raise Refused(INVALID_PARAMS, "folders must be a list of paths")
            self._supervisor.folders.add(folder)
        return {
            "protocol": PROTOCOL,
            "version": versions().get("selva-deploy"),
            "bundle": bundle_facts(self._supervisor.settings["bundle"]),
            "methods": list(self._table),
            "generate_options": list(GENERATE_OPTIONS),
            "clip_options": list(ENCODE_OPTIONS),
            "folders": self._supervisor.folders.folders,
        }

    def _open(self, clip: Any = None, key: str | None = None, urgent: bool = False) -> dict[str, Any]:
        return self._queue(ENCODE, checked_encode(clip, self._supervisor.folders), key, urgent)

    def _submit(self, request: Any = None, key: str | None = None, urgent: bool = False) -> dict[str, Any]:
        return self._queue(GENERATE, checked_generate(request, self._supervisor.folders), key, urgent)

    def _load(self, urgent: bool = False) -> dict[str, Any]:
        return self._queue(LOAD, {}, None, urgent)

    def _queue(self, kind: str, request: dict[str, Any], key: str | None, urgent: bool) -> dict[str, Any]:
        if key is not None and not 0 < len(key) <= _MAX_KEY:
            raise Refused(INVALID_PARAMS, f"the key is empty or longer than {_MAX_KEY} characters")
        return self._supervisor.submit(Job(kind=kind, request=request, key=key, urgent=urgent))

    def _get(self, job: str = "", since: int = -1) -> dict[str, Any]:
        found = self._supervisor.get(job)
        return found if found["revision"] > since else {"id": job, "revision": found["revision"]}

    def _list(self) -> list[dict[str, Any]]:
        return self._supervisor.list_jobs()

    def _cancel(self, job: str = "") -> dict[str, Any]:
        return self._supervisor.cancel(job)

    def _unload(self) -> dict[str, Any]:
        self._supervisor.unload()
        return {}

    def _doctor(self) -> dict[str, Any]:
        engine, jobs = self._supervisor.engine, self._supervisor.list_jobs()
        return {
            "system": platform.platform(),
            "versions": versions(),
            "settings": self._supervisor.settings,
            "model": engine.loaded if engine else None,
            "engine": {"pid": engine.pid, "memory_bytes": memory_bytes(engine.pid)} if engine else None,
            "supervisor": {"pid": os.getpid(), "memory_bytes": memory_bytes()},
            "log": str(self._supervisor.log),
            "folders": self._supervisor.folders.folders,
            "queued": sum(job["state"] == QUEUED for job in jobs),
            "running": [job["id"] for job in jobs if job["state"] in ACTIVE],
            "idle_unload_s": self._supervisor.idle_unload_s,
        }

    def _shutdown(self) -> dict[str, Any]:
        self._stop()
        return {}
