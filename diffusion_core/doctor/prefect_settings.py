"""The address and login of the user's Prefect server, from where Prefect reads them, without importing Prefect."""

import os
import tomllib
from collections.abc import Callable, Iterator, Mapping
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
        UserError: a file of settings is not TOML, or has no settings where Prefect has them.
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
    api = _table(Path("prefect.toml"), lambda content: content.get("api", {}))
    yield {f"PREFECT_API_{name.upper()}": value for name, value in api.items()}
    home = Path(os.environ.get("PREFECT_HOME") or "~/.prefect")
    profiles = Path(os.environ.get("PREFECT_PROFILES_PATH") or home / "profiles.toml")
    yield _table(profiles, _profile)


def _profile(content: dict[str, Any]) -> dict[str, Any]:
    active = os.environ.get("PREFECT_PROFILE") or content.get("active", "")
    profile: dict[str, Any] = content.get("profiles", {}).get(active, {})
    return profile


def _table(file: Path, of: Callable[[dict[str, Any]], dict[str, Any]]) -> dict[str, str]:
    """Return the part of a file with Prefect's settings; empty if there is none."""
    try:
        content = tomllib.loads(file.expanduser().read_text(encoding="utf-8"))
        return {name: str(value) for name, value in of(content).items()}
    except FileNotFoundError:
        return {}
    except ValueError:
        # Its message may show a line with a password.
        raise UserError(f"{file}, a file of Prefect's settings, is not TOML: correct it") from None
    except (AttributeError, TypeError):
        raise UserError(f"{file} has a value where Prefect has a table of settings: correct it") from None
