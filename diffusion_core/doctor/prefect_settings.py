"""The address and login of the user's Prefect server, from where Prefect reads them, without importing Prefect."""

import os
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dotenv import dotenv_values

from diffusion_core.address import without_userinfo
from diffusion_core.errors import UserError


@dataclass(frozen=True)
class PrefectServer:
    """A Prefect server.

    Attributes:
        api: the address of its API; may have a user and a password.
        login: user and password, or None.
        key: the key of Prefect Cloud, or None.
    """

    api: str
    login: tuple[str, str] | None
    key: str | None

    @property
    def shown(self) -> str:
        """The address without a password."""
        return without_userinfo(self.api).rstrip("/").removesuffix("/api")


def prefect_server() -> PrefectServer | None:
    """Return the server in the user's settings, or None if none is named.

    Prefect's order: variables, `.env`, `prefect.toml`, and the profile in use.

    Raises:
        UserError: a file of settings is not TOML.
    """
    found: dict[str, str] = {}
    for settings in _settings():
        found = {**{name: value for name, value in settings.items() if value}, **found}
    if not found.get("PREFECT_API_URL"):
        return None
    user, colon, password = found.get("PREFECT_API_AUTH_STRING", "").partition(":")
    return PrefectServer(
        found["PREFECT_API_URL"].rstrip("/"), (user, password) if colon else None, found.get("PREFECT_API_KEY")
    )


def _settings() -> Iterator[Mapping[str, str | None]]:
    yield os.environ
    yield dotenv_values(".env")
    api = _toml(Path("prefect.toml")).get("api", {})
    yield {f"PREFECT_API_{name.upper()}": str(value) for name, value in api.items()}
    home = Path(os.environ.get("PREFECT_HOME") or "~/.prefect").expanduser()
    profiles = _toml(Path(os.environ.get("PREFECT_PROFILES_PATH") or home / "profiles.toml").expanduser())
    active = os.environ.get("PREFECT_PROFILE") or profiles.get("active", "")
    yield profiles.get("profiles", {}).get(active, {})


def _toml(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError:
        # Its message may show a line with a password.
        raise UserError(f"{file}, a file of Prefect's settings, is not TOML: correct it") from None
