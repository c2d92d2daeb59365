"""Starting, watching and stopping other processes: a flow's child, Prefect's worker.

This module sets variables that Prefect reads at import time. Variables that the user has set do not change. It also
forbids core dumps, because flows, the worker and the servers have passwords in memory.
"""

import os
import re
from pathlib import Path
from urllib.parse import unquote

from diffusion_core.core_dumps import forbid_core_dumps

forbid_core_dumps()

_defaults = {
    "DO_NOT_TRACK": "1",
    "DVC_NO_ANALYTICS": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    "PREFECT_RESULTS_DEFAULT_SERIALIZER": "json",
}
for _name, _value in _defaults.items():
    os.environ.setdefault(_name, _value)

_users = ("PREFECT_API_URL", "PREFECT_HOME", "PREFECT_PROFILE")
if not any(os.environ.get(name) for name in _users) and not Path("~/.prefect/profiles.toml").expanduser().exists():
    # Without settings of the user, Prefect's data are in the project's folder.
    _home = Path(".prefect").absolute()
    # Prefect puts it into the address of its database, which a question mark would end.
    os.environ["PREFECT_HOME"] = _home.name if "?" in str(_home) else str(_home)

# Prefect shows the address in errors and logs, so credentials in it are moved to their own variable.
_login = re.match(r"(https?://)([^/@:]+:[^/@]+)@(.+)", os.environ.get("PREFECT_API_URL", ""))
if _login:
    os.environ["PREFECT_API_URL"] = _login[1] + _login[3]
    os.environ.setdefault("PREFECT_API_AUTH_STRING", unquote(_login[2]))
