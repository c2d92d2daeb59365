"""Passwords: whether the servers of `make stack` and of Compose have those that the files say, and a shell's too."""

import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
from dotenv import dotenv_values

from diffusion_core.config.environment import DOTENV, Environment
from diffusion_core.doctor.diagnosis import Diagnosis, ok, problem, warning
from diffusion_core.documents import read_json
from diffusion_core.stages.remote import CONFIG

HOST = "127.0.0.1"
ADMIN = "admin"
STACK, COMPOSE = Path(".stack"), Path("docker/.env")
SECONDS_TO_ANSWER = 3.0
# A request of each server that needs its login.
PATHS = {"mlflow": "/api/2.0/mlflow/experiments/search?max_results=1", "prefect": "/api/admin/version"}


def stack_passwords(_: Environment) -> Iterator[Diagnosis]:
    """Check the passwords of `make stack`: a change that was interrupted, the servers', and this shell's."""
    if not (STACK / "home.json").exists():
        return
    try:
        home: dict[str, Any] = read_json(STACK / "home.json")
        ports, passwords = home["ports"], home["passwords"]
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
    kept = {name: value for name, value in dotenv_values(STACK / "env").items() if value}
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
    yield from _logins({name: (int(ports[name]), str(passwords[name])) for name in PATHS}, f"{STACK}/home.json")


def compose_passwords(_: Environment) -> Iterator[Diagnosis]:
    """Check that the servers of Compose have the passwords of docker/.env; MLflow learns its own only once."""
    if not COMPOSE.exists():
        return
    values = dotenv_values(COMPOSE)
    logins = {
        name: (int(values.get(f"{name.upper()}_PORT") or port), values.get(f"{name.upper()}_PASSWORD") or "")
        for name, port in (("mlflow", 5000), ("prefect", 4200))
    }
    yield from _logins(logins, str(COMPOSE))


def readable_secrets(_: Environment) -> Iterator[Diagnosis]:
    """Check that other users of the machine cannot read the files with passwords."""
    files = (DOTENV, CONFIG, COMPOSE, STACK / "env", STACK / "home.json")
    there = [file for file in files if os.access(file, os.R_OK)]
    for file in there:
        if file.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH) and (file != DOTENV or _has_secret(file)):
            yield warning(f"other users of this machine can read {file}", f"`chmod 600 {file}`")


def _has_secret(file: Path) -> bool:
    words = ("KEY", "SECRET", "PASSWORD", "AUTH", "NOTIFY")
    values = dotenv_values(file)
    return any(value and (any(word in name for word in words) or "@" in value) for name, value in values.items())


def _logins(servers: Mapping[str, tuple[int, str]], file: str) -> Iterator[Diagnosis]:
    """Ask each server with its password. One that does not run is not asked."""
    for name, (port, password) in servers.items():
        try:
            answer = httpx.get(f"http://{HOST}:{port}{PATHS[name]}", auth=(ADMIN, password), timeout=SECONDS_TO_ANSWER)
        except httpx.HTTPError:
            continue
        if answer.status_code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
            yield problem(
                f"the {name} server at port {port} has another password than {file}",
                "change it there or in the file, as docs/operate.md says under Rotating credentials",
            )
        elif answer.is_success:
            yield ok(f"the {name} server at port {port} has the password of {file}")
