"""New passwords for all servers, as after somebody has left the team or a file has been seen."""

from dataclasses import replace

import httpx

from flows.stack.home import ADMIN, HOST, Home, keep_home, new_passwords
from flows.stack.postgres import psql
from flows.stack.trouble import StackTrouble


def renew(home: Home) -> None:
    """Give every server of a running stack another password; those that learn it at their start are to be restarted.

    Each is written down as soon as it is in force, so that whatever breaks this off locks nobody out.

    Raises:
        StackTrouble: PostgreSQL or MLflow does not take it.
    """
    words = new_passwords()
    known = home

    psql(known, f"ALTER ROLE {ADMIN} PASSWORD '{words['postgres']}'")
    known = replace(known, passwords={**known.passwords, "postgres": words["postgres"]})
    keep_home(known)

    try:
        answer = httpx.patch(
            f"http://{HOST}:{known.ports['mlflow']}/api/2.0/mlflow/users/update-password",
            json={"username": ADMIN, "password": words["mlflow"], "current_password": known.passwords["mlflow"]},
            auth=(ADMIN, known.passwords["mlflow"]),
            timeout=30.0,
        )
        answer.raise_for_status()
    except httpx.HTTPError as error:
        raise StackTrouble(f"MLflow does not take a new password ({error}): run `make stack`, and this again") from None
    keep_home(replace(known, passwords=words))
