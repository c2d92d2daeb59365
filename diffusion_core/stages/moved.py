"""Bytes that the stages of a flow run have moved over this machine's network."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path

import psutil

from diffusion_core.documents import read_json
from diffusion_core.files import write_whole

logger = logging.getLogger(__name__)

MOVED = Path(".cache/moved.json")
GIGABYTE = 1e9
INTERFACES = Path("/sys/class/net")


def network_bytes() -> dict[str, int]:
    """Return the bytes that each network interface has received and sent for all processes of this machine.

    Where there is hardware, it counts alone: bridges and tunnels repeat its bytes, and so does hardware that other
    hardware has as a part. A container has none, and all but its loopback counts. Nothing where the system counts none.
    """
    try:
        counted = psutil.net_io_counters(pernic=True)
    except OSError:
        return {}
    hardware = {name for name in counted if _is_hardware(name) and not _is_hardware(f"{name}/master")}
    names = hardware or {name for name in counted if not name.startswith("lo")}
    return {name: counted[name].bytes_recv + counted[name].bytes_sent for name in names}


def bytes_between(before: Mapping[str, int], after: Mapping[str, int]) -> int:
    """Return the bytes of the interfaces that were there before and after, and counted on."""
    return sum(max(0, count - before.get(name, count)) for name, count in after.items())


def _is_hardware(name: str) -> bool:
    return (INTERFACES / name / "device").exists()


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
    except (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError):
        return {}


def moved_metrics(flow_run: str | None) -> dict[str, float]:
    """Return what each stage moved as metrics of a run: `cost/train_network_gb`."""
    return {f"cost/{stage}_network_gb": count / GIGABYTE for stage, count in moved_by(flow_run).items()}
