"""Serve the gallery's page to a browser on this machine."""

import json
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Annotated

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi import Path as PathParam
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse
from starlette.middleware.trustedhost import TrustedHostMiddleware

from diffusion_core.config.environment import Environment
from diffusion_core.errors import Unavailable, UserError
from diffusion_core.serving.answer import refusal, tell_invalid_requests
from diffusion_core.serving.gallery import Frame, Gallery, Look
from diffusion_core.serving.server import LOCAL_HOSTS, LOOPBACK, check_port

PAGE = Path(__file__).parent / "templates" / "gallery.html"


def show(environment: Environment, name: str, port: int) -> None:
    """Serve the page until INT or TERM.

    Args:
        environment: the environment, with the store and the device.
        name: the registered model.
        port: of 1024 to 65535.

    Raises:
        UserError: the port or the device cannot be used.
    """
    check_port(LOOPBACK, port)
    server = uvicorn.Server(uvicorn.Config(application(environment, name), LOOPBACK, port, log_level="warning"))
    print(f"the gallery of {name} is at http://{LOOPBACK}:{port}: Ctrl-C ends it", flush=True)
    server.run()


def application(environment: Environment, name: str) -> FastAPI:
    """Return the page and what it asks for."""
    app = FastAPI(title=f"Gallery of {name}")
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=LOCAL_HOSTS)
    gallery = Gallery(environment, name)

    @app.get("/")
    def page() -> Response:
        return FileResponse(PAGE, media_type="text/html")

    @app.get("/versions")
    def versions() -> Response:
        return JSONResponse({"model": name, "versions": gallery.versions()})

    @app.get("/versions/{number}")
    def version(number: Annotated[str, PathParam(pattern=r"^\d+$")]) -> Response:
        return JSONResponse(gallery.card(number))

    @app.post("/frames")
    def frames(look: Look) -> Response:
        return StreamingResponse(_lines(gallery.frames(look)), media_type="application/x-ndjson")

    @app.exception_handler(UserError)
    async def refused(_: Request, error: Exception) -> Response:
        is_down = isinstance(error, Unavailable)
        return refusal(HTTPStatus.SERVICE_UNAVAILABLE if is_down else HTTPStatus.UNPROCESSABLE_ENTITY, str(error))

    tell_invalid_requests(app, Look)
    return app


def _lines(frames: Iterator[Frame]) -> Iterator[str]:
    for frame in frames:
        yield json.dumps(frame) + "\n"
