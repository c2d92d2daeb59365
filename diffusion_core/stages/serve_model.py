"""Serve a registered model over HTTP."""

import os
import tempfile

from diffusion_core.config.environment import Environment
from diffusion_core.registry.served import version_now
from diffusion_core.stages.version_names import registered_name


def run(environment: Environment, name: str, host: str, port: int) -> None:
    """Serve until INT or TERM.

    Args:
        environment: the environment.
        name: `NAME@ALIAS`, `NAME/NUMBER`, or an alias or number of the environment's registered model.
        host: see `serve`.
        port: see `serve`.

    Raises:
        UserError: there is no such version, or the address cannot be used.
        Unavailable: the tracking store does not answer.
    """
    model, version = registered_name(environment, name)
    number = version_now(environment, model, version)
    print(f"version {number} of {model} at http://{host}:{port}/images, described at /docs", flush=True)
    with tempfile.TemporaryDirectory(prefix="diffusion-serve-") as folder:
        # Before Prometheus' library is imported, which decides then that processes share their values.
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
        from diffusion_core.serving.server import serve

        serve(environment, model, version, host, port)
