"""Starts MLflow's web pages for the store of this environment: `python -m diffusion_core.registry.server HOST PORT`.

If the store is an MLflow server, which has its own pages, it prints a line and exits.
"""

import os
import sys

from diffusion_core.address import without_userinfo
from diffusion_core.config.environment import load_environment
from diffusion_core.errors import UserError
from diffusion_core.registry.connection import artifact_folder, connect, is_server, tracking_uri


def main() -> None:
    """Replace this process by `mlflow server`."""
    host, port = sys.argv[1:]
    try:
        environment = load_environment()
        uri = tracking_uri(environment)
        if is_server(uri):
            print(f"runs are tracked by {without_userinfo(uri)}, which has its own pages")
            return
        # Migrates the store once, before several processes open it.
        connect(environment)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    # A variable, because every user of the machine can read arguments, and the address may include a password.
    os.environ["MLFLOW_BACKEND_STORE_URI"] = uri
    os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"
    os.environ["MLFLOW_ARTIFACTS_DESTINATION"] = artifact_folder(uri).as_uri()
    os.execv(
        sys.executable, [sys.executable, "-m", "mlflow", "server", "--host", host, "--port", port, "--workers", "1"]
    )


if __name__ == "__main__":
    main()
