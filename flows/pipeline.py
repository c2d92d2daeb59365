"""The whole pipeline, from the images to the champion: the stages of dvc.yaml, and then the registry.

`diffusion run` and `python -m flows.pipeline` run it once, with a temporary Prefect server if none is configured.
"""

import atexit
import gc
import shutil
import signal
import subprocess
import sys
from argparse import ArgumentParser

import httpx
import psutil
from prefect import State, flow
from prefect.client.orchestration import get_client
from prefect.exceptions import PrefectException
from prefect.settings import PREFECT_HOME, PREFECT_SERVER_EPHEMERAL_ENABLED, PREFECT_UI_URL, temporary_settings

from diffusion_core.stages.paths import REPORT
from diffusion_core.supervision.child import leave
from diffusion_core.supervision.tied import tie
from flows import tasks
from flows.automations import notify_crash, notify_failure
from flows.checkout import LockPolicy, Override, only_run, params_kept
from flows.failure import StageFailed
from flows.lock_file import keep_lock
from flows.missed import take_over
from flows.notices import check_addresses
from flows.page import RunPage
from flows.user_server import NoServer, reason, user_server
from flows.verdict import decided, published, run_name, tag_by_model

# Free bytes that a temporary server needs: a new database has about 2 MB, and grows with each run.
SERVER_BYTES = 16 * 2**20
# A process of its own, because the checks of params.yaml load PyTorch.
PREFLIGHT = (sys.executable, "-m", "diffusion_core.stages.preflight")


@flow(
    name="pipeline",
    flow_run_name=run_name,
    persist_result=False,
    on_failure=[notify_failure],
    on_crashed=[notify_crash],
)
def pipeline(
    overrides: list[Override] | None = None,
    refresh_data: bool = True,
    promote: bool = True,
    lock: LockPolicy = "none",
) -> State[None]:
    """Run every stage with changed inputs, then publish the model and promote it if it passes the gate.

    Args:
        overrides: values of params.yaml for this run, for example `train.seed=1`; the file is restored afterwards.
        refresh_data: run ingest again, because DVC does not detect changes of the source.
        promote: run the gate of the alias champion; otherwise only publish the model.
        lock: how to store the run's dvc.lock: none, artifact or branch.
    """
    tag_by_model()
    check_addresses()
    take_over()
    page = RunPage()
    with only_run(), params_kept(overrides or []):
        tasks.pull()
        tasks.ingest(refresh_data, overrides or [])
        tasks.prepare()
        page.data()
        tasks.reference()
        if promote:
            # Before the longest stage, because a champion that cannot be compared with stops the gate after it.
            tasks.check()
        tasks.train()
        page.training()
        # Save the result of the longest stage before later stages can fail.
        tasks.push()
        tasks.sample()
        page.samples()
        tasks.evaluate()
        page.metrics()
        tasks.push()
        keep_lock(lock)
        tasks.publish()
        if promote:
            tasks.promote()
            page.decision()
        tasks.report()
        page.network()
        page.links()
    return decided() if promote else published()


def main() -> None:
    """Run the flow once; exit code 2 for a user's error or a server that does not answer, 1 for a failed stage."""
    ArgumentParser("python -m flows.pipeline", description=__doc__).parse_args()
    signal.signal(signal.SIGTERM, leave)
    # As the command `diffusion` does.
    atexit.register(gc.freeze)
    try:
        # Before a server starts, because a temporary one has its database in this folder.
        with only_run():
            pass
        # Beside the next line, because it takes a second or two.
        with subprocess.Popen(PREFLIGHT, stderr=subprocess.PIPE, text=True) as preflight:
            page = user_server()
            _, refusal = preflight.communicate()
        if preflight.returncode:
            print(refusal, end="", file=sys.stderr)
            sys.exit(preflight.returncode)
        # By default, Prefect derives logged links from the API's address with its password. The default for temporary
        # servers is in Prefect's default profile, which a user's profile replaces.
        with temporary_settings({PREFECT_UI_URL: page}, set_defaults={PREFECT_SERVER_EPHEMERAL_ENABLED: True}):
            if page is None:
                _start_server()
            pipeline()
        print(f"see {REPORT}, samples/grid.png and metrics/evaluate.json; the other pages open while `make serve` runs")
    except NoServer as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except StageFailed as failure:
        print(f"error: {failure}", file=sys.stderr)
        sys.exit(2 if failure.is_mistake else 1)
    except TimeoutError as error:
        print(
            f"error: a stage hangs ({error}): see that the servers it speaks to answer, and start this again",
            file=sys.stderr,
        )
        sys.exit(2)
    except (httpx.HTTPError, PrefectException) as error:
        full = _full_disk() if page is None else None
        problem = f"the Prefect server stopped answering ({reason(error)}): see that it runs, and its database, and"
        print(f"error: {full or problem} start this again; what is done stays done", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)


def _full_disk() -> str | None:
    """Return what to say of a disk without room for a temporary server, or None where there is room."""
    home = PREFECT_HOME.value()
    if shutil.disk_usage(home).free >= SERVER_BYTES:
        return None
    return f"the disk of {home}, where Prefect keeps its database, is full: make room, and"


def _start_server() -> None:
    """Start the temporary server with INT blocked.

    A terminal sends Ctrl-C to all processes, and the flow needs the server to report its final state. If the flow is
    killed, the server ends with it.

    Raises:
        NoServer: the user's settings do not permit a temporary server, or the disk is full.
    """
    if not PREFECT_SERVER_EPHEMERAL_ENABLED.value():
        raise NoServer(
            "Prefect's settings name no server and forbid a temporary one: set PREFECT_API_URL, or"
            " PREFECT_SERVER_EPHEMERAL_ENABLED to true"
        )
    PREFECT_HOME.value().mkdir(parents=True, exist_ok=True)
    if (full := _full_disk()) is not None:
        # Prefect would wait two minutes for a server that has ended.
        raise NoServer(f"{full} start this again")
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        before = set(psutil.Process().children(recursive=True))
        with get_client(sync_client=True):
            pass
        for server in set(psutil.Process().children(recursive=True)) - before:
            tie(server.pid)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


if __name__ == "__main__":
    main()
