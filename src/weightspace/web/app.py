"""The web application: pages, files and routes behind the guard."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import plotly
from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.staticfiles import StaticFiles

from weightspace import __version__
from weightspace.net.errors import WeightspaceError
from weightspace.web.answer import Answer
from weightspace.web.atlas_routes import atlas_routes
from weightspace.web.guard import Guard, Rules
from weightspace.web.jobs import job_routes
from weightspace.web.members import Members
from weightspace.web.playing import routes as play_routes
from weightspace.web.reports import report_routes
from weightspace.web.served import Served

__all__ = ["PAGES", "application"]


STATIC = Path(__file__).parent / "static"
_PLOTLY = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"
PAGES = {"/": "index.html", "/play": "play.html", "/atlas": "atlas.html", "/reports": "reports.html"}


def application(served: Served, rules: Rules) -> Guard:
    """The whole server as one ASGI application."""
    app = FastAPI(
        title="weightspace",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        default_response_class=Answer,
    )
    for path, file in PAGES.items():
        app.get(path, include_in_schema=False)(_file(STATIC / file))
    app.get("/vendor/plotly.js", include_in_schema=False)(_file(_PLOTLY, "text/javascript"))
    app.mount("/static", StaticFiles(directory=STATIC))
    app.include_router(_about(served))
    members = Members(served)
    for router in (atlas_routes(members), job_routes(members), report_routes(served), play_routes()):
        app.include_router(router)
    app.exception_handler(WeightspaceError)(_unfit)
    app.exception_handler(HTTPException)(_status)
    app.exception_handler(RequestValidationError)(_invalid)
    app.exception_handler(ClientDisconnect)(_gone)
    app.exception_handler(Exception)(_unexpected)
    return Guard(app, rules)


def _about(served: Served) -> APIRouter:
    router = APIRouter()

    @router.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @router.get("/api/server")
    async def server() -> dict[str, Any]:
        return {"version": __version__, "atlas": served.atlas, "data": list(served.data)}

    return router


def _file(path: Path, kind: str = "text/html; charset=utf-8") -> Callable[[], Any]:
    async def answer() -> FileResponse:
        return FileResponse(path, media_type=kind)

    return answer


def _said(status: int, why: str) -> Response:
    return Answer({"error": why}, status_code=status)


async def _unfit(request: Request, error: Exception) -> Response:
    return _said(422, str(error))


async def _status(request: Request, error: Exception) -> Response:
    found = error if isinstance(error, HTTPException) else HTTPException(500)
    return _said(found.status_code, str(found.detail))


async def _invalid(request: Request, error: Exception) -> Response:
    first = error.errors()[0] if isinstance(error, RequestValidationError) else {}
    where = ".".join(str(part) for part in first.get("loc", ()))
    return _said(422, f"{where}: {first.get('msg', 'not as expected')}"[:300])


async def _gone(request: Request, error: Exception) -> Response:
    return _said(408, "the body did not come in time")


async def _unexpected(request: Request, error: Exception) -> Response:
    return _said(500, f"unexpected {type(error).__name__}; please report it")
