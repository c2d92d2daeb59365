"""Serve a registered model over HTTP, by LitServe."""

import logging
import multiprocessing
import os
import signal
import socket
from functools import partial
from pathlib import Path

from fastapi import FastAPI, Response
from fastapi.routing import APIRoute
from litserve import LitServer
from starlette.middleware.trustedhost import TrustedHostMiddleware

from diffusion_core.config.environment import Environment
from diffusion_core.errors import UserError
from diffusion_core.runtime.device import choose_device, choose_dtype
from diffusion_core.serving import measures
from diffusion_core.serving.admission import Admission, Limits
from diffusion_core.serving.answer import tell_invalid_requests
from diffusion_core.serving.api import CARD, PATH, PROBLEM, ImageAPI, samples
from diffusion_core.serving.request import ImageRequest

LOOPBACK = "127.0.0.1"
# Without a token: a page of elsewhere in somebody's browser must not ask under a name that leads here.
LOCAL_HOSTS = [LOOPBACK, "localhost"]
LOCAL = ((TrustedHostMiddleware, {"allowed_hosts": LOCAL_HOSTS}),)
# What LitServe can listen on.
HOSTS = (LOOPBACK, "0.0.0.0", "::")
FIRST_PORT, LAST_PORT = 1024, 65535
# Of a token that cannot be found by trying.
SHORTEST_TOKEN = 12
# Beyond the time of a request, for the process that speaks HTTP to end.
PATIENCE_SECONDS = 5


def serve(environment: Environment, name: str, version: str, host: str, port: int) -> None:
    """Serve until INT or TERM, and answer then what was asked for.

    The variable of `measures.FOLDER` must name a folder, since before `measures` was imported.

    Args:
        environment: the environment, with the store, the device and the limits.
        name: the registered model.
        version: an alias, which is followed, or a number.
        host: 127.0.0.1, or 0.0.0.0 or :: for clients of other machines, which needs a token.
        port: of 1024 to 65535.

    Raises:
        UserError: host or port cannot be used, other machines could ask without a token, or the version cannot be
            loaded.
    """
    _check_address(environment, host, port)
    choose_dtype(environment.precision, choose_device(environment.device))
    folder = Path(os.environ[measures.FOLDER])
    address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    server = LitServer(
        ImageAPI(environment, name, version, address, folder),
        accelerator="cpu",  # one process; the environment says on which device it samples
        timeout=False,
        middlewares=[
            (Admission, {"path": PATH, "limits": _limits(environment), "samples": partial(samples, folder)}),
            *(LOCAL if environment.serve_token is None else ()),
        ],
        restart_workers=True,
    )
    _add_routes(server.app, folder / CARD, name)
    server.uvicorn_graceful_timeout = environment.serve_seconds
    # The process that speaks HTTP inherits the handler, and ends by itself.
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, partial(_stop, os.getpid(), environment.serve_seconds + PATIENCE_SECONDS))
    try:
        server.run(host, port, num_api_servers=1, generate_client_file=False, log_level="error")
    except KeyboardInterrupt:
        # Before it was ready.
        pass
    except RuntimeError:
        if (folder / PROBLEM).exists():
            raise UserError((folder / PROBLEM).read_text()) from None
        raise
    finally:
        for child in multiprocessing.active_children():
            child.terminate()
            child.join(PATIENCE_SECONDS)


def _limits(environment: Environment) -> Limits:
    token = environment.serve_token
    return Limits(
        None if token is None else token.get_secret_value(),
        environment.serve_queue,
        environment.serve_images,
        environment.serve_steps,
        environment.serve_seconds,
    )


def _add_routes(app: FastAPI, card: Path, name: str) -> None:
    app.title = f"Images of {name}"
    for route in app.routes:
        if isinstance(route, APIRoute) and route.path == PATH:
            route.summary = "Sample images"
            route.description = "The same seed gives the same images as the pipeline, but for rounding."

    @app.get("/model")
    async def model() -> Response:
        """Return the version that is served, its classes, defaults and limits."""
        return Response(card.read_bytes(), media_type="application/json")

    @app.get("/metrics")
    async def metrics() -> Response:
        """Return the values of Prometheus."""
        return Response(measures.exposition(), media_type="text/plain; version=0.0.4")

    tell_invalid_requests(app, ImageRequest)


def _check_address(environment: Environment, host: str, port: int) -> None:
    if host not in HOSTS:
        raise UserError(f"--host is {host}: it must be one of {', '.join(HOSTS)}")
    if host != LOOPBACK and environment.serve_token is None:
        raise UserError(f"--host {host} lets other machines ask: set a token in DIFFUSION_SERVE_TOKEN, which they send")
    if environment.serve_token is not None and len(environment.serve_token.get_secret_value()) < SHORTEST_TOKEN:
        raise UserError(
            f"DIFFUSION_SERVE_TOKEN has fewer than {SHORTEST_TOKEN} characters: make one with `openssl rand -hex 24`"
        )
    check_port(host, port)


def check_port(host: str, port: int) -> None:
    """Check that a server can listen on a port.

    Raises:
        UserError: it cannot.
    """
    if not FIRST_PORT <= port <= LAST_PORT:
        raise UserError(f"--port is {port}: it must be one of {FIRST_PORT} to {LAST_PORT}")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        # As the server does it: a port that was used a moment ago is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UserError(f"--port {port} cannot be used ({error.strerror}): name another") from None


def _stop(server: int, seconds: float, *_: object) -> None:
    """Have the process that speaks HTTP answer what it was asked, and then end the server as Ctrl-C does."""
    if os.getpid() != server:
        return
    for child in multiprocessing.active_children():
        if child.name.startswith("LitServer"):
            child.terminate()
            child.join(seconds)
    # LitServe's thread that watches processes reports the end of what it asks.
    logging.disable()
    raise KeyboardInterrupt
