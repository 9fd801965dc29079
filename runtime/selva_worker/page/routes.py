"""What the page needs beside the methods: videos and stems as bytes. `Gate` asks for the token before.

A stem is named by its job and its number, a video by its path; both must lie in allowed folders, links followed.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from selva_bundle.errors import OutputError, SelvaError
from selva_worker.gate import MAX_VIDEO_BYTES, VIDEOS
from selva_worker.page.assets import HEADERS, asset_routes
from selva_worker.page.store import KEEP_S, VIDEO_SUFFIXES, PageStore
from selva_worker.page.zipped import zip_stems
from selva_worker.protocol import INVALID_PARAMS, OUTSIDE, UNKNOWN_JOB, Refused
from selva_worker.supervisor import Supervisor

_MAX_ZIPPED = 1000
_Handler = Callable[[Request], Awaitable[Response]]


class PageRoutes:
    """The routes of the page. It keeps its files in `store`."""

    def __init__(self, supervisor: Supervisor, store: PageStore) -> None:
        self._supervisor, self._store = supervisor, store
        supervisor.folders.add(str(store.path))
        self.routes = [
            *asset_routes(),
            Route("/v1/page", _answered(self._about), methods=["GET"]),
            Route("/v1/page/marks", _answered(self._mark), methods=["POST"]),
            Route(VIDEOS + "{name:path}", _answered(self._upload), methods=["PUT"]),
            Route("/v1/page/video", _answered(self._video), methods=["GET"]),
            Route("/v1/page/zip", _answered(self._zip), methods=["GET"]),
            Route("/v1/jobs/{job}/stems/{number:int}", _answered(self._stem), methods=["GET"]),
            Route("/v1/jobs/{job}/timelines/{number:int}", _answered(self._timeline), methods=["GET"]),
        ]

    async def _about(self, request: Request) -> Response:
        return JSONResponse(
            {
                "stems_folder": str(self._store.stems),
                "max_video_bytes": MAX_VIDEO_BYTES,
                "video_suffixes": VIDEO_SUFFIXES,
                "keep_days": KEEP_S // 86_400,
                "otioz": find_spec("opentimelineio") is not None,
                "marks": self._store.marks(),
            }
        )

    async def _mark(self, request: Request) -> Response:
        asked = await request.json()
        if not isinstance(asked, dict) or not isinstance(asked.get("stem"), str):
            raise Refused(INVALID_PARAMS, 'a mark is {"stem": "JOB.NUMBER", "mark": "kept"}')
        self._store.mark(asked["stem"], asked.get("mark"))
        return JSONResponse({})

    async def _upload(self, request: Request) -> Response:
        length_bytes = int(request.headers["content-length"])  # the gate has looked at it
        path = await self._store.add_video(request.path_params["name"], length_bytes, request.stream())
        return JSONResponse({"path": str(path)})

    async def _video(self, request: Request) -> Response:
        path = request.query_params.get("path", "")
        if Path(path).suffix.lower() not in VIDEO_SUFFIXES:
            raise Refused(INVALID_PARAMS, f"{path!r} is not named like a video")
        return self._file(path)

    async def _stem(self, request: Request) -> Response:
        return self._file(self._stem_path(request.path_params["job"], request.path_params["number"]))

    async def _timeline(self, request: Request) -> Response:
        return self._file(_item(self._result(request.path_params["job"])["timelines"], request.path_params["number"]))

    async def _zip(self, request: Request) -> Response:
        asked = request.query_params.getlist("stem")
        if not 0 < len(asked) <= _MAX_ZIPPED:
            raise Refused(INVALID_PARAMS, f"a ZIP holds 1 to {_MAX_ZIPPED} stems")
        paths = []
        for stem in asked:
            job, _, number = stem.partition(".")
            if not (number.isascii() and number.isdigit() and len(number) < 7):
                raise Refused(INVALID_PARAMS, f"{stem!r} is not JOB.NUMBER")
            paths.append(self._allowed(self._stem_path(job, int(number))))
        return StreamingResponse(zip_stems(paths), media_type="application/zip", headers=HEADERS)

    def _result(self, job: str) -> dict[str, Any]:
        found: dict[str, Any] = self._supervisor.get(job)
        if not found["result"] or "stems" not in found["result"]:
            raise Refused(INVALID_PARAMS, f"the job {job} has no stems")
        result: dict[str, Any] = found["result"]
        return result

    def _stem_path(self, job: str, number: int) -> str:
        return str(_item(self._result(job)["stems"], number)["file"])

    def _allowed(self, path: str) -> Path:
        """Return the file without links."""
        found = Path(self._supervisor.folders.resolved(path))
        if not found.is_file():
            raise FileNotFoundError(f"{path} is not there any more")
        return found

    def _file(self, path: str) -> Response:
        found = self._allowed(path)
        return FileResponse(found, headers=HEADERS, media_type=_TYPES.get(found.suffix.lower()))


_STATUS = {OUTSIDE: 403, UNKNOWN_JOB: 404}
_TYPES = {".wav": "audio/wav", ".mp4": "video/mp4", ".webm": "video/webm", ".otioz": "application/zip"}


def _item(found: list[Any], number: int) -> Any:
    if number >= len(found):
        raise FileNotFoundError(f"there are only {len(found)} of these")
    return found[number]


def _answered(handler: _Handler) -> _Handler:
    """Turn errors of a handler into one line for the user."""

    async def answer(request: Request) -> Response:
        try:
            return await handler(request)
        except Refused as error:
            return JSONResponse({"error": str(error)}, _STATUS.get(error.code, 400))
        except FileNotFoundError as error:
            return JSONResponse({"error": str(error)}, 404)
        except (OutputError, OSError) as error:
            return JSONResponse({"error": str(error)}, 507)
        except ClientDisconnect:
            return Response(status_code=400)  # nobody hears it
        except (SelvaError, ValueError) as error:
            return JSONResponse({"error": str(error)}, 400)

    return answer
