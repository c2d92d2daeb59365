"""Bytes that the stages of a flow run have moved over this machine's network."""

import json
import logging
from pathlib import Path

import psutil

from diffusion_core.documents import read_json
from diffusion_core.files import write_whole

logger = logging.getLogger(__name__)

MOVED = Path(".cache/moved.json")
GIGABYTE = 1e9
INTERFACES = Path("/sys/class/net")


def bytes_moved() -> int:
    """Return the bytes that all processes of this machine have received and sent since it started.

    Where there is hardware, it counts alone: bridges and tunnels repeat its bytes. A container has none, and all but
    its loopback counts.
    """
    counted = psutil.net_io_counters(pernic=True)
    hardware = {name for name in counted if (INTERFACES / name / "device").exists()}
    names = hardware or {name for name in counted if not name.startswith("lo")}
    return sum(counted[name].bytes_recv + counted[name].bytes_sent for name in names)


def add_moved(flow_run: str, stage: str, count: int) -> None:
    """Add bytes to those of a stage; warn if the disk refuses, because the stage's work is done."""
    moved = moved_by(flow_run)
    moved[stage] = moved.get(stage, 0) + count
    try:
        MOVED.parent.mkdir(parents=True, exist_ok=True)
        write_whole(MOVED, json.dumps({"flow_run": flow_run, "bytes": moved}) + "\n")
    except OSError as error:
        logger.warning("the bytes that %s moved are not recorded: %s", stage, error)


def moved_by(flow_run: str | None) -> dict[str, int]:
    """Return the bytes by stage; nothing without a flow run or if another one was the last in this folder."""
    try:
        recorded = read_json(MOVED)
        if flow_run is None or recorded["flow_run"] != flow_run:
            return {}
        return {stage: int(count) for stage, count in recorded["bytes"].items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return {}


def moved_metrics(flow_run: str | None) -> dict[str, float]:
    """Return what each stage moved as metrics of a run: `cost/train_network_gb`."""
    return {f"cost/{stage}_network_gb": count / GIGABYTE for stage, count in moved_by(flow_run).items()}
