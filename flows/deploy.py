"""Deploys prefect.yaml to the Prefect server: `python -m flows.deploy [machine|docker|kubernetes]`.

It creates or updates the work pool, runs `prefect deploy`, and creates or updates the automations. Run it again after
any change.
"""

import json
import os
import re
import subprocess
import sys
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.exceptions import ObjectNotFound, PrefectException

from diffusion_core.documents import read_yaml
from flows.automations import put_automations
from flows.schedule import DEPLOYMENTS
from flows.transcript import without_userinfo
from flows.user_server import NoServer, reason, user_server

POOL_TYPES = {"machine": "process", "docker": "docker", "kubernetes": "kubernetes"}
# Prefect's own template has no fields for GPUs, secrets and volumes.
TEMPLATES = {"kubernetes": Path("docker/kubernetes-pool.json")}


class CannotDeploy(Exception):
    """Deploying is impossible; the message says why."""


def deploy(pool: str) -> list[str]:
    """Deploy to a pool and return the names of its deployments, the nightly one first.

    Raises:
        CannotDeploy: the pool is unknown, a variable is not set, or the server refuses.
        NoServer: no server is configured, or it cannot be used.
    """
    if pool not in POOL_TYPES:
        raise CannotDeploy(f"there is no pool {pool}: prefect.yaml has {', '.join(POOL_TYPES)}")
    content = read_yaml(DEPLOYMENTS)
    of_pool = [each for each in content["deployments"] if each["work_pool"]["name"] == pool]
    for each in of_pool:
        _check_variables(each)
    if user_server() is None:
        raise NoServer(
            "there is no Prefect server to deploy to: set PREFECT_API_URL; that of `make stack` is set by"
            " `set -a; . .stack/env; set +a`"
        )
    try:
        with get_client(sync_client=True) as client:
            _put_pool(client, pool)
            for each in of_pool:
                _run_prefect("deploy", "--name", each["name"])
            put_automations(client)
    except (httpx.HTTPError, PrefectException) as error:
        raise CannotDeploy(
            f"the Prefect server refuses ({reason(error)}): start it, or correct PREFECT_API_URL"
        ) from None
    return [f"{each['entrypoint'].rpartition(':')[2]}/{each['name']}" for each in of_pool]


def _check_variables(deployment: dict[str, Any]) -> None:
    wanted = sorted(set(re.findall(r"\{\{ \$(\w+) \}\}", json.dumps(deployment))))
    for name in (*wanted, "DIFFUSION_REPOSITORY"):
        # Prefect's database stores the deployment. A user without a password, as in ssh://git@host, is not a secret.
        if re.match(r"https?://[^/]*@|\w+://[^/]*:[^/]*@", os.environ.get(name, "")):
            raise CannotDeploy(
                f"{name} holds a user or a password, which Prefect's database would keep: leave it out, and let the"
                " worker's git or its variables know it"
            )
    missing = [name for name in wanted if name not in os.environ]
    if missing:
        raise CannotDeploy(
            f"{deployment['name']} needs {', '.join(missing)}: set each, to nothing where there is nothing to name;"
            " docs/operate.md says what they are"
        )
    near = [name for name in wanted if re.search(r"//(127\.|localhost|\[::1\])", os.environ[name])]
    if near:
        raise CannotDeploy(
            f"{near[0]} is an address of this machine alone, which a container does not reach: set it to another"
        )


def _put_pool(client: SyncPrefectClient, pool: str) -> None:
    template = json.loads(TEMPLATES[pool].read_text(encoding="utf-8")) if pool in TEMPLATES else {}
    try:
        there = client.read_work_pool(pool)
    except ObjectNotFound:
        client.create_work_pool(WorkPoolCreate(name=pool, type=POOL_TYPES[pool], base_job_template=template))
        return
    if there.type != POOL_TYPES[pool]:
        raise CannotDeploy(f"the server has a pool {pool} of the type {there.type}, not {POOL_TYPES[pool]}: delete it")
    # A pool without an entry in `TEMPLATES` keeps Prefect's own template, which a worker sets.
    if template and there.base_job_template != template:
        client.update_work_pool(pool, WorkPoolUpdate(base_job_template=template))


def _run_prefect(*arguments: str) -> None:
    command = [sys.executable, "-m", "prefect", "--no-prompt", *arguments]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = (done.stdout + done.stderr).strip().splitlines() or ["no reason is known"]
        # Prefect's errors may include the server's address and its password.
        why = without_userinfo(lines[-1].strip())
        raise CannotDeploy(f"`prefect {' '.join(arguments)}` fails ({why}): fix that and deploy again")


def main() -> None:
    """Deploy; on an error print one sentence, exit code 2."""
    parser = ArgumentParser("python -m flows.deploy", description=__doc__)
    parser.add_argument("pool", nargs="?", default="machine", help="the work pool: machine, docker or kubernetes")
    try:
        names = deploy(parser.parse_args().pool)
    except (CannotDeploy, NoServer) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    print(f"{' and '.join(names)} are deployed; `prefect deployment run {names[0]}` starts the first at once")


if __name__ == "__main__":
    main()
