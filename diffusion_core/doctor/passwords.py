"""Passwords: whether the servers of `make stack` and of Compose have those that the files say, and a shell's too."""

import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import httpx
from dotenv import dotenv_values
from pydantic import SecretStr

from diffusion_core.config.environment import DOTENV, PREFIX, Environment
from diffusion_core.doctor.diagnosis import Diagnosis, ok, problem, warning
from diffusion_core.documents import read_json
from diffusion_core.errors import UserError
from diffusion_core.stages.remote import CONFIG

HOST = "127.0.0.1"
ADMIN = "admin"
STACK, COMPOSE = Path(".stack"), Path("docker/.env")
SECONDS_TO_ANSWER = 3.0
# A request of each server that needs its login.
PATHS = {"mlflow": "/api/2.0/mlflow/experiments/search?max_results=1", "prefect": "/api/admin/version"}
# Variables whose names say that they hold a secret, beside those that the environment keeps as one.
WORDS = ("KEY", "SECRET", "PASSWORD", "TOKEN", "AUTH")
# The address of a tracking store is one only with a login in it.
SECRETS = {
    PREFIX + name.upper() for name, field in Environment.model_fields.items() if SecretStr in get_args(field.annotation)
} - {f"{PREFIX}TRACKING_URI"}


def stack_passwords(_: Environment) -> Iterator[Diagnosis]:
    """Check the passwords of `make stack`: a change that was interrupted, the servers', and this shell's."""
    if not (STACK / "home.json").exists():
        return
    try:
        home: dict[str, Any] = read_json(STACK / "home.json")
        logins = {name: (_port(home["ports"][name]), str(home["passwords"][name])) for name in PATHS}
        unfinished = home["next_passwords"]
    except PermissionError:
        yield ok(f"{STACK} is another user's")
        return
    except (ValueError, LookupError, TypeError):
        yield problem(f"{STACK}/home.json is damaged", "restore it from a backup: the databases need its passwords")
        return
    if unfinished:
        yield problem(
            "a change of the stack's passwords was interrupted, and servers may have new ones",
            "run `diffusion stack renew-passwords` again",
        )
        return
    kept = {name: value for name, value in _variables(STACK / "env").items() if value}
    # The addresses have passwords in them, so no value is shown.
    old = [
        name
        for name in kept
        if name.startswith(("DIFFUSION_", "PREFECT_")) and os.environ.get(name, kept[name]) != kept[name]
    ]
    if old:
        yield warning(
            f"this shell has other values than {STACK}/env for {', '.join(old)}",
            f"read it again: `set -a; . {STACK}/env; set +a`",
        )
    yield from _logins(logins, f"{STACK}/home.json")


def compose_passwords(_: Environment) -> Iterator[Diagnosis]:
    """Check that the servers of Compose have the passwords of docker/.env; MLflow learns its own only once."""
    if not COMPOSE.exists():
        return
    values, logins = _variables(COMPOSE), {}
    for name, port in (("mlflow", "5000"), ("prefect", "4200")):
        variable = f"{name.upper()}_PORT"
        try:
            logins[name] = _port(values.get(variable) or port), values.get(f"{name.upper()}_PASSWORD") or ""
        except ValueError:
            yield problem(f"{variable} in {COMPOSE} is not a port", "write a number up to 65535")
    yield from _logins(logins, str(COMPOSE))


def readable_secrets(_: Environment) -> Iterator[Diagnosis]:
    """Check that other users of the machine cannot read the files with passwords."""
    files = (DOTENV, CONFIG, COMPOSE, STACK / "env", STACK / "home.json")
    there = [file for file in files if os.access(file, os.R_OK)]
    for file in there:
        if file.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH) and (file != DOTENV or _has_secret(file)):
            yield warning(f"other users of this machine can read {file}", f"`chmod 600 {file}`")


def _has_secret(file: Path) -> bool:
    return any(
        value and (name in SECRETS or any(word in name for word in WORDS) or "@" in value)
        for name, value in _variables(file).items()
    )


def _variables(file: Path) -> dict[str, str | None]:
    try:
        return dotenv_values(file)
    except UnicodeDecodeError:
        raise UserError(f"{file} is not text in UTF-8: save it in that encoding") from None


def _port(value: object) -> int:
    port = int(str(value))
    if port not in range(2**16):
        raise ValueError(port)
    return port


def _logins(servers: Mapping[str, tuple[int, str]], file: str) -> Iterator[Diagnosis]:
    """Ask each server that asks for a login with its password.

    What listens at the port may be another server, which must not learn the password; nor must a proxy.
    """
    with httpx.Client(timeout=SECONDS_TO_ANSWER, trust_env=False) as client:
        for name, (port, password) in servers.items():
            address = f"http://{HOST}:{port}{PATHS[name]}"
            try:
                code = client.get(address).status_code
                asks = code == httpx.codes.UNAUTHORIZED
                if asks:
                    code = client.get(address, auth=(ADMIN, password)).status_code
            except httpx.HTTPError:
                continue
            if code == httpx.codes.UNAUTHORIZED:
                yield problem(
                    f"the {name} server at port {port} has another password than {file}",
                    "change it there or in the file, as docs/operate.md says under Rotating credentials",
                )
            elif code == httpx.codes.OK and asks:
                yield ok(f"the {name} server at port {port} has the password of {file}")
            elif code == httpx.codes.OK:
                yield warning(
                    f"the server at port {port} asks for no password, and {file} has one for {name}",
                    "see which server it is: that of the file would ask for one",
                )
