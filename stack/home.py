"""The persistent state of the stack: its folder, ports and passwords."""

import json
import secrets
import shlex
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from diffusion_core.documents import read_json
from diffusion_core.files import write_whole


class StackError(Exception):
    """The stack cannot do what was requested; the message says why."""


HOST = "127.0.0.1"
SERVERS = ("postgres", "s3", "mlflow", "prefect")
BUCKETS = ("images", "dvc", "mlflow")
ADMIN = "admin"


@dataclass(frozen=True)
class Home:
    """The stack of one checkout.

    Attributes:
        folder: the folder of the stack, absolute.
        ports: the port of each of `SERVERS`.
        passwords: the password of each of `SERVERS`, and `cookies`, MLflow's key to sign forms.
        next_passwords: the new passwords while they are being changed, else empty.
    """

    folder: Path
    ports: Mapping[str, int]
    passwords: Mapping[str, str]
    next_passwords: Mapping[str, str] = field(default_factory=dict)

    @property
    def logs(self) -> Path:
        """The folder of the logs, one per server."""
        return self.folder / "logs"

    @property
    def prefect_api(self) -> str:
        """The address of Prefect's API."""
        return f"http://{HOST}:{self.ports['prefect']}/api"

    @property
    def s3_endpoint(self) -> str:
        """The address of the S3 store."""
        return f"http://{HOST}:{self.ports['s3']}"

    def database_variables(self) -> dict[str, str]:
        """Return the variables for PostgreSQL's programs and library, including the password."""
        return {
            "PGHOST": HOST,
            "PGPORT": str(self.ports["postgres"]),
            "PGUSER": ADMIN,
            "PGPASSWORD": self.passwords["postgres"],
            "PGDATABASE": "postgres",
        }

    def client_variables(self) -> dict[str, str]:
        """Return the variables to use the servers from a worker or a shell, including passwords."""
        return {
            "PREFECT_API_URL": self.prefect_api,
            "PREFECT_API_AUTH_STRING": f"{ADMIN}:{self.passwords['prefect']}",
            "DIFFUSION_TRACKING_URI": f"http://{ADMIN}:{self.passwords['mlflow']}@{HOST}:{self.ports['mlflow']}",
            "DIFFUSION_S3_ENDPOINT": self.s3_endpoint,
            "DIFFUSION_S3_REGION": "us-east-1",
            "DIFFUSION_S3_ACCESS_KEY": ADMIN,
            "DIFFUSION_S3_SECRET_KEY": self.passwords["s3"],
            "DIFFUSION_DVC_REMOTE": "s3://dvc/outputs",
        }

    def folder_variables(self) -> dict[str, str]:
        """Return the variables of the folders that outlive a run's checkout, for the worker and for a shell."""
        return {
            "DIFFUSION_CHECKPOINTS": str(self.folder / "checkpoints"),
            "DIFFUSION_DOWNLOADS": str(self.folder / "downloads"),
            "DIFFUSION_DVC_CACHE": str(self.folder / "cache"),
        }


def open_home(folder: Path) -> Home:
    """Return the stack in `folder`; create the folder and passwords if needed.

    Raises:
        StackError: its file is damaged.
    """
    folder = folder.absolute()
    file = folder / "home.json"
    # The database's user needs permission to pass through the folder.
    folder.mkdir(mode=0o711, exist_ok=True)
    if file.exists():
        try:
            home = Home(folder, **read_json(file))
        except (ValueError, TypeError):
            raise StackError(
                f"{file} is damaged: restore it from a backup, because the databases need its passwords"
            ) from None
    else:
        home = Home(folder, dict.fromkeys(SERVERS, 0), new_passwords())
    for each in (home.logs, folder / "runs", *(folder / "s3" / bucket for bucket in BUCKETS)):
        each.mkdir(parents=True, exist_ok=True)
    return home


def new_passwords() -> dict[str, str]:
    """Return a password for each server, and a key to sign forms."""
    return {name: secrets.token_urlsafe(24) for name in (*SERVERS, "cookies")}


def keep_home(home: Home) -> None:
    """Write ports and passwords to `home.json` and all variables to the shell file `env`; only the owner can read."""
    content = asdict(home)
    del content["folder"]
    write_whole(home.folder / "home.json", json.dumps(content, indent=1) + "\n", mode=0o600)
    variables = home.client_variables() | home.folder_variables() | home.database_variables()
    lines = [f"{name}={shlex.quote(value)}\n" for name, value in variables.items()]
    write_whole(home.folder / "env", "".join(lines), mode=0o600)


def with_port(home: Home, name: str) -> Home:
    """Return `home` with a port for a server to start: its previous port if that is free, else a free one."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, home.ports[name]))
        except OSError:
            probe.bind((HOST, 0))
        return replace(home, ports={**home.ports, name: probe.getsockname()[1]})
