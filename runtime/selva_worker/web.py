"""The same methods on HTTP, on 127.0.0.1 and a port that the system chooses. Needs the extra `web`."""

from __future__ import annotations

import asyncio
import json
import secrets
import socket
from collections.abc import AsyncIterator

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from selva_worker.gate import Gate
from selva_worker.methods import Methods
from selva_worker.page.opening import forget_page, open_page, page_url
from selva_worker.page.routes import PageRoutes
from selva_worker.page.store import PageStore
from selva_worker.protocol import Refused, answer
from selva_worker.rendezvous import Rendezvous
from selva_worker.supervisor import Supervisor

_CONNECTIONS = 200
_KEEP_ALIVE_S = 15.0


class _Site:
    """The routes. What blocks on the supervisor's lock does so for microseconds."""

    def __init__(self, supervisor: Supervisor, methods: Methods, store: PageStore) -> None:
        self._supervisor, self._methods = supervisor, methods
        self.stopping = asyncio.Event()
        self.routes = [
            *PageRoutes(supervisor, store).routes,
            Route("/v1/rpc", self.call, methods=["POST"]),
            Route("/v1/jobs/{job}", self.job, methods=["GET"]),
            Route("/v1/events", self.events, methods=["GET"]),
        ]

    async def call(self, request: Request) -> Response:
        """One JSON-RPC request."""
        reply = answer(await request.body(), self._methods.call)
        return Response(status_code=204) if reply is None else Response(reply, media_type="application/json")

    async def job(self, request: Request) -> Response:
        """A job, or only its revision if that is not later than `since`."""
        since = request.query_params.get("since", "-1")
        try:
            return JSONResponse(self._methods.call("job.get", {"job": request.path_params["job"], "since": int(since)}))
        except ValueError as error:
            return JSONResponse({"error": str(error)}, 404 if isinstance(error, Refused) else 400)

    async def events(self, request: Request) -> Response:
        """Changes of jobs as server-sent events, from now on or after the event that the client saw last."""
        last = request.headers.get("last-event-id", "")
        since = int(last[:18]) if last.isdecimal() else self._supervisor.changes(0)[0]
        return StreamingResponse(self._changes(since), media_type="text/event-stream")

    async def _changes(self, seen: int) -> AsyncIterator[str]:
        loop, changed = asyncio.get_running_loop(), asyncio.Event()

        def tell() -> None:
            loop.call_soon_threadsafe(changed.set)

        leave = self._supervisor.listen(tell)
        try:
            yield ": connected\n\n"
            while not self.stopping.is_set():
                changed.clear()
                seen, jobs = self._supervisor.changes(seen)
                for job in jobs:
                    yield f"event: job.changed\nid: {job['revision']}\ndata: {json.dumps(job)}\n\n"
                try:
                    await asyncio.wait_for(changed.wait(), _KEEP_ALIVE_S)
                except TimeoutError:
                    yield ": alive\n\n"
        finally:
            leave()


def serve(supervisor: Supervisor, *, open_browser: bool) -> None:
    """Answer requests until a client calls `shutdown`.

    Raises:
        OutputError: the page's folder or the rendezvous file cannot be written.
    """
    store = PageStore(supervisor.log.parent)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port, token = listener.getsockname()[1], secrets.token_urlsafe(32)
        asyncio.run(_serve(supervisor, store, listener, port, token, open_browser=open_browser))


async def _serve(
    supervisor: Supervisor, store: PageStore, listener: socket.socket, port: int, token: str, *, open_browser: bool
) -> None:
    loop = asyncio.get_running_loop()

    def stop() -> None:
        loop.call_later(0.1, _end)  # after the reply

    def _end() -> None:
        server.should_exit = True
        site.stopping.set()
        supervisor.tell()

    site = _Site(supervisor, Methods(supervisor, stop), store)
    config = uvicorn.Config(
        Gate(Starlette(routes=site.routes), token, port),
        log_level="critical",
        access_log=False,
        lifespan="off",
        ws="none",
        server_header=False,
        limit_concurrency=_CONNECTIONS,
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    place = Rendezvous(port, token)
    try:
        if open_browser:
            listener.listen()  # the browser may be faster
            open_page(page_url(port, token))
        await server.serve([listener])
    finally:
        forget_page(page_url(port, token))
        place.close()
