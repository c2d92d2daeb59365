"""Overrides that a killed flow has left in params.yaml."""

from diffusion_core.config.params import PARAMS_FILE
from diffusion_core.errors import UserError
from diffusion_core.locks import Locked, exclusive_lock
from diffusion_core.stages.paths import PARAMS_BEFORE, RUN_LOCK


def refuse_left_overrides() -> None:
    """Refuse to run a stage, as `dvc repro` does, with the overrides of a flow that was killed.

    Raises:
        UserError: params.yaml has them, and no flow runs here. The next flow restores it.
    """
    if not PARAMS_BEFORE.exists():
        return
    try:
        with exclusive_lock(RUN_LOCK):
            raise UserError(
                f"{PARAMS_FILE} may have the overrides of a run that was killed: look at `diff {PARAMS_FILE}"
                f" {PARAMS_BEFORE}`, restore it with `cp {PARAMS_BEFORE} {PARAMS_FILE}` or keep it, and then say"
                f" `rm {PARAMS_BEFORE}`"
            )
    except Locked:
        # A flow runs here and restores it; this is one of its stages, or one beside it.
        return
