"""What is kept is hashed again once a week, and what rotted is repaired: see `diffusion verify`."""

from prefect import flow

from flows import tasks
from flows.automations import notify_crash, notify_failure
from flows.checkout import only_run
from flows.missed import take_over


@flow(name="upkeep", persist_result=False, on_failure=[notify_failure], on_crashed=[notify_crash])
def upkeep(repair: bool = True) -> None:
    """Verify data, DVC's cache, models, checkpoints and the champion; the run fails if something stays rotten.

    It waits for another run in this checkout.

    Args:
        repair: repair what can be had elsewhere.
    """
    take_over()
    with only_run(tasks.NETWORK_SECONDS):
        tasks.verify(repair)
