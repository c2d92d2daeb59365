"""Changes the passwords of all servers, for example when a member leaves the team."""

from dataclasses import replace

import httpx

from stack.home import ADMIN, HOST, Home, StackError, keep_home, new_passwords
from stack.postgres import psql


def renew(home: Home) -> None:
    """Give every server of a running stack a new password; restart the servers afterwards.

    The new passwords are stored before they are set, so that the next call can complete an interrupted one.

    Raises:
        StackError: PostgreSQL or MLflow refuses its password.
    """
    words = home.next_passwords or new_passwords()
    home = replace(home, next_passwords=words)
    keep_home(home)
    _tell_mlflow(home)
    _tell_postgres(home)
    keep_home(replace(home, passwords=words, next_passwords={}))


def _tell_mlflow(home: Home) -> None:
    old, new = home.passwords["mlflow"], home.next_passwords["mlflow"]
    api = f"http://{HOST}:{home.ports['mlflow']}/api/2.0/mlflow"
    change = {"username": ADMIN, "password": new, "current_password": old}
    try:
        if httpx.get(f"{api}/users/get?username={ADMIN}", auth=(ADMIN, new), timeout=30.0).is_success:
            return
        httpx.patch(f"{api}/users/update-password", json=change, auth=(ADMIN, old), timeout=30.0).raise_for_status()
    except httpx.HTTPError as error:
        raise StackError(
            f"MLflow does not take a new password ({error}): see that it runs, and do this again"
        ) from None


def _tell_postgres(home: Home) -> None:
    new = home.next_passwords["postgres"]
    statement = f"ALTER ROLE {ADMIN} PASSWORD '{new}'"
    try:
        psql(home, statement)
    except StackError:
        # The new password may be set already.
        psql(replace(home, passwords=home.next_passwords), statement)
