"""Record with a training's run what made it: the machine, and the changes of a checkout that has some."""

import torch

from diffusion_core.lineage.changes import Unrecordable, checkout_changes
from diffusion_core.lineage.recorded import CHANGES, UNRECORDED
from diffusion_core.registry.tracking import Run
from diffusion_core.runtime.compile_cache import describe_processor
from diffusion_core.training.trainer import Trainer

# The longest tag that MLflow takes has 8,000 characters.
LONGEST = 7_000


def record_origin(tracked: Run, trainer: Trainer, is_dirty: bool | None) -> None:
    """Record the machine when a training begins and, if its checkout is dirty, the changes."""
    device, kind = trainer.diffusion.device, trainer.precision.dtype
    name = f" ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else ""
    tags = {
        "processor": f"{describe_processor()[0]}, {torch.backends.cpu.get_cpu_capability()}",
        "device": f"{device.type}{name}",
        "processes": str(trainer.ranks.count),
        "precision": str(kind).removeprefix("torch."),
        "compiled": "on" if trainer.ways.compiled else "off",
        "torch": torch.__version__,
    }
    for tag, value in tags.items():
        tracked.tag(tag, value)
    if is_dirty:
        try:
            tracked.text(checkout_changes(), CHANGES)
        except Unrecordable as why:
            print(f"train: the changes of this checkout are not recorded, because {why}")
            tracked.tag(UNRECORDED, str(why))


def record_threads(tracked: Run, trainer: Trainer) -> None:
    """Record when a training ends how many threads its steps had: they determine the last bits of the weights."""
    threads = str(torch.get_num_threads()) if trainer.threads is None else trainer.threads.used
    if threads is None:
        threads = "others on another machine"
    tracked.tag("threads", threads if len(threads) <= LONGEST else f"changed {threads.count(':'):,} times")
