"""The Prefect server in the user's settings: `python -m flows.user_server` prints the address of its pages.

It prints nothing if no server is configured. The settings are Prefect's: variables, `.env`, `prefect.toml` or a
profile.
"""

import re
import sys

import httpx
from prefect.client.orchestration import get_client
from prefect.exceptions import PrefectException
from prefect.settings import (
    PREFECT_API_REQUEST_TIMEOUT,
    PREFECT_CLIENT_MAX_RETRIES,
    get_current_settings,
    temporary_settings,
)

SECONDS_TO_ANSWER = 5


class NoServer(Exception):
    """No Prefect server can be used; the message says why."""


def user_server() -> str | None:
    """Return the address of the server's pages, without user and password, or None if none is configured.

    Raises:
        NoServer: the server does not answer, is not a Prefect server, or refuses the credentials.
    """
    settings = get_current_settings()
    if not settings.api.url:
        return None
    try:
        # By default, Prefect's client retries for minutes.
        with (
            temporary_settings({PREFECT_API_REQUEST_TIMEOUT: SECONDS_TO_ANSWER, PREFECT_CLIENT_MAX_RETRIES: 0}),
            get_client(sync_client=True) as client,
        ):
            client.read_flows(limit=1)
    except (httpx.HTTPError, httpx.InvalidURL, PrefectException, ValueError) as error:
        remedy = "start it, or change PREFECT_API_URL, which `prefect config view` shows"
        if isinstance(error, httpx.HTTPStatusError) and error.response.status_code == httpx.codes.UNAUTHORIZED:
            remedy = "correct PREFECT_API_AUTH_STRING (that of `make stack` is in .stack/env)"
        raise NoServer(
            f"the Prefect server at {_shown(settings.api.url)} cannot be used ({reason(error)}): {remedy}"
        ) from None
    return _shown(settings.ui_url or settings.api.url)


def _shown(url: str) -> str:
    return re.sub(r"^([a-z]+://)?.*@", r"\1", url.rstrip("/").removesuffix("/api"), flags=re.DOTALL | re.IGNORECASE)


def reason(error: Exception) -> str:
    """Return the reason of an error, without the server's address."""
    if isinstance(error, httpx.HTTPStatusError):
        return f"it answers {error.response.status_code}"
    if isinstance(error, httpx.ConnectError):
        return str(error)
    return type(error).__name__


if __name__ == "__main__":
    try:
        print(user_server() or "", end="")
    except NoServer as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
