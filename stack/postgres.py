"""PostgreSQL: the system's programs, a cluster for the stack, and one database per server."""

import os
import pwd
import shutil
import subprocess
from pathlib import Path

from diffusion_core.files import write_whole
from stack.home import ADMIN, Home, StackError

DATABASES = ("prefect", "mlflow", "mlflow_auth")
# Debian has one folder of programs per version.
DEBIAN = Path("/usr/lib/postgresql")


def program(name: str, version: str = "*") -> str:
    """Return the path of one of PostgreSQL's programs.

    Args:
        name: the program.
        version: the major version, or "*" for the newest installed one.

    Raises:
        StackError: the program is not installed.
    """
    versions = sorted(DEBIAN.glob(f"{version}/bin/{name}"), key=lambda path: int(path.parts[-3]))
    found = str(versions[-1]) if versions else shutil.which(name)
    if found is None:
        raise StackError("PostgreSQL is not installed: install it, on Debian with `apt install postgresql`")
    return found


def owner() -> str | None:
    """Return the user for PostgreSQL, which refuses to run as root; None if this process is not root.

    Raises:
        StackError: the user `postgres`, which Debian creates, does not exist.
    """
    if os.geteuid() != 0:
        return None
    try:
        return pwd.getpwnam("postgres").pw_name
    except KeyError:
        raise StackError("PostgreSQL does not run as root: become another user, or make the user postgres") from None


def make_cluster(home: Home) -> Path:
    """Return the folder of the cluster; create it if needed.

    Raises:
        StackError: it cannot be created.
    """
    folder = home.folder / "postgres"
    if (folder / "PG_VERSION").exists():
        return folder
    user = owner()
    new = home.folder / "postgres.new"
    shutil.rmtree(new, ignore_errors=True)  # of an interrupted attempt
    new.mkdir(mode=0o700)
    word = home.folder / "postgres-password"
    write_whole(word, home.passwords["postgres"], mode=0o600)
    if user is not None:
        shutil.chown(new, user)
        shutil.chown(word, user)
    command = [program("initdb"), "--pgdata", str(new), "--username", ADMIN, "--pwfile", str(word)]
    command += ["--auth", "scram-sha-256", "--encoding", "UTF8", "--no-locale"]
    try:
        made = subprocess.run(
            command,
            cwd="/",
            user=user,
            extra_groups=None if user is None else [],
            env={"PATH": os.defpath},
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        word.unlink()
    if made.returncode:
        why = (made.stderr.strip().splitlines() or ["no reason is known"])[-1]
        raise StackError(
            f"PostgreSQL cannot make its files in {new} ({why}): see that its user"
            f" {user or 'is you and'} may pass through all folders above"
        )
    new.rename(folder)
    return folder


def make_databases(home: Home) -> None:
    """Create the missing databases.

    Raises:
        StackError: PostgreSQL refuses.
    """
    there = psql(home, "SELECT datname FROM pg_database").split()
    for name in DATABASES:
        if name not in there:
            psql(home, f"CREATE DATABASE {name}")


def is_ready(home: Home) -> bool:
    """Return whether PostgreSQL accepts connections."""
    asked = subprocess.run([program("pg_isready")], env=_environment(home), capture_output=True, check=False)
    return asked.returncode == 0


def _environment(home: Home) -> dict[str, str]:
    return {"PATH": os.environ.get("PATH", os.defpath), **home.database_variables()}


def psql(home: Home, statement: str) -> str:
    """Return PostgreSQL's output; the statement is sent by standard input, because it may include a password.

    Raises:
        StackError: PostgreSQL refuses the statement.
    """
    command = [program("psql"), "--no-psqlrc", "--tuples-only", "--no-align", "--set", "ON_ERROR_STOP=1"]
    done = subprocess.run(command, input=statement, env=_environment(home), capture_output=True, text=True, check=False)
    if done.returncode:
        raise StackError(
            f"PostgreSQL refuses ({done.stderr.strip()}): {home.folder / 'home.json'} must hold the password that the"
            f" databases in {home.folder / 'postgres'} were made with"
        )
    return done.stdout
