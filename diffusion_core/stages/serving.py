"""Serve a registered model over HTTP, and show its versions in a browser."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from diffusion_core.config.environment import Environment
from diffusion_core.errors import UserError
from diffusion_core.registry.served import aliases_by_version, version_now
from diffusion_core.registry.version_names import registered_name


def serve_model(environment: Environment, name: str, host: str, port: int) -> None:
    """Serve until INT or TERM.

    Args:
        environment: the environment.
        name: `NAME@ALIAS`, `NAME/NUMBER`, or an alias or number of the environment's registered model.
        host: see `serving.server.serve`.
        port: see `serving.server.serve`.

    Raises:
        UserError: there is no such version, it cannot be loaded, the address cannot be used, or the extra `serve` is
            not installed.
        Unavailable: the tracking store does not answer.
    """
    model, version = registered_name(environment, name)
    version_now(environment, model, version)
    with tempfile.TemporaryDirectory(prefix="diffusion-serve-") as folder, _extra():
        # Before Prometheus' library is imported, which decides then that processes share their values.
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
        from diffusion_core.serving.server import serve

        serve(environment, model, version, host, port)


def gallery(environment: Environment, name: str | None, port: int) -> None:
    """Show the gallery until INT or TERM.

    Args:
        environment: the environment.
        name: the registered model; by default the environment's.
        port: of the page.

    Raises:
        UserError: the model has no versions, port or device cannot be used, or the extra `serve` is not installed.
        Unavailable: the tracking store does not answer.
    """
    model = name or environment.registered_model
    if not aliases_by_version(environment, model):
        raise UserError(
            f"{model} has no version in this store: publish one with `diffusion run`, or name another model"
        )
    with _extra():
        from diffusion_core.serving.page import show

        show(environment, model, port)


@contextmanager
def _extra() -> Iterator[None]:
    """Say in one sentence that a package of the extra `serve` is missing in the block."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.partition(".")[0] in ("fastapi", "litserve", "prometheus_client"):
            raise UserError(
                f"serving needs the package {error.name}: install it with pip install 'diffusion-core[serve]'"
            ) from None
        raise
