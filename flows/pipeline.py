"""The whole job, from the images to the champion: the stages of dvc.yaml, and then the registry.

`python -m flows.pipeline` runs it once, with a temporary Prefect server where there is no other.
"""

import signal
import sys
from types import FrameType

from prefect import flow
from prefect.client.orchestration import get_client

from flows.artifacts import show_decision, show_metrics, show_run, show_samples
from flows.tasks import StageFailed, evaluate, ingest, prepare, promote, publish, reference, sample, train


@flow(name="pipeline", persist_result=False)
def pipeline(refresh_data: bool = True) -> None:
    """Run every stage whose inputs have changed, then publish the model and promote it if it is good enough.

    Args:
        refresh_data: bring in the images anew, because DVC does not watch where they come from.
    """
    ingest(["--force"] if refresh_data else [])
    prepare()
    reference()
    train()
    sample()
    show_samples()
    evaluate()
    show_metrics()
    publish()
    show_run()
    promote()
    show_decision()


def main() -> None:
    """Run the flow once: exit code 2 for a mistake of the user's, 1 for any other failure of a stage."""
    signal.signal(signal.SIGTERM, leave)
    try:
        _start_server()
        pipeline()
    except StageFailed as failure:
        print(f"error: {failure}", file=sys.stderr)
        sys.exit(2 if failure.is_mistake else 1)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)


def leave(number: int, _: FrameType | None) -> None:
    """Leave on a signal as a shell would count it, so that whatever was started is stopped on the way."""
    sys.exit(128 + number)


def _start_server() -> None:
    """Start the temporary server, if one is needed, deaf to Ctrl-C.

    A terminal sends Ctrl-C to all of its processes, and the flow needs the server to report how it ended.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        with get_client(sync_client=True):
            pass
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


if __name__ == "__main__":
    main()
