"""The project of the soak: the code of a checkout with small parameters, and its undisturbed runs."""

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import yaml

from tests.flows.repository import commit

# Whatever the soak starts has this variable; its value names the round.
MARK = "SOAK_ROUND"

COPIED = ("diffusion_core", "flows", "dvc.yaml", "params.yaml", "prefect.yaml", ".gitignore", ".dvc", ".dvcignore")

TRAIN = {"images": 1920, "batch_size": 32, "warmup_images": 64, "report_every_images": 64, "preview_every_images": 640}

# Prefect's least frequency of heartbeats is 30 seconds. A dead run is noticed after two of them here, not three.
SOONER = ("flows/automations.py", "SILENCE = timedelta(seconds=90)", "SILENCE = timedelta(seconds=65)")


def variables(mark, **more):
    """Return the variables of a process of the soak; none are the user's own for this project."""
    own = ("DIFFUSION_", "PREFECT_", "MLFLOW_", "SOAK_")
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith(own)},
        **{"DO_NOT_TRACK": "1", "DVC_NO_ANALYTICS": "1", "MLFLOW_DISABLE_TELEMETRY": "true"},
        **{"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        **{"PREFECT_SERVER_ANALYTICS_ENABLED": "false", "PREFECT_LOGGING_COLORS": "false"},
        **{"DIFFUSION_DEVICE": "cpu", "DIFFUSION_PRECISION": "float32", "DIFFUSION_THREADS": "1"},
        **{"DIFFUSION_CHECKPOINT_SECONDS": "0.5", "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
        # DVC runs stages with `python`.
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
        # `python -m` finds the project in its folder first.
        "PYTHONPATH": str(Path(__file__).parent / "clock"),
        MARK: str(mark),
        **more,
    }


def module(*arguments):
    """Return the command of a Python module."""
    return [sys.executable, "-m", *arguments]


def write_project(folder, code, with_dvc):
    """Write the project with the code of the checkout `code`, and make what does not depend on the training's seed."""
    command = ["git", "ls-files", *COPIED]
    names = subprocess.run(command, cwd=code, check=True, capture_output=True, text=True).stdout.splitlines()
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(code / name, folder / name)
    name, before, after = SOONER
    text = (folder / name).read_text(encoding="utf-8")
    assert before in text, name
    (folder / name).write_text(text.replace(before, after), encoding="utf-8")
    content = yaml.safe_load((folder / "params.yaml").read_text(encoding="utf-8"))
    content["reference"] |= {"images": 640, "features": 8}
    content["train"] |= TRAIN
    content["train"]["network"] |= {"dim": 8, "dropout": 0.1}
    content["sample"] |= {"count": 12, "sampler": {"kind": "ddim", "steps": 4}}
    content["promote"] = {"limits": {"frechet": {"at_most": 1e9}}, "champion": {}}
    (folder / "params.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    subprocess.run(["git", "init", "--quiet", "--initial-branch", "main"], cwd=folder, check=True)
    commit(folder)
    if with_dvc:
        _run(folder, "dvc", "repro", "--quiet", "reference")
    else:
        _run(folder, "diffusion_core", "ingest")
        _run(folder, "diffusion_core", "prepare")


def start_seconds():
    """Return how long a process needs to import the largest libraries, on this machine as busy as it is now."""
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", "import torch, mlflow"], check=True)
    return time.monotonic() - began


def _run(folder, *arguments):
    done = subprocess.run(
        module(*arguments), cwd=folder, env=variables(folder), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def copy_project(base, folder, seed):
    """Copy the project, and give its training a seed."""
    shutil.copytree(base, folder, ignore=shutil.ignore_patterns("tmp", "*.lock-journal"))
    file = folder / "params.yaml"
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    content["train"]["seed"] = seed
    file.write_text(yaml.safe_dump(content), encoding="utf-8")


def start_undisturbed(folder, stages):
    """Run stages one after another in the background, with a store of their own."""
    steps = " && ".join(f'"{sys.executable}" -m diffusion_core {stage}' for stage in stages)
    with (folder / "log.txt").open("wb") as log:
        return subprocess.Popen(
            steps,
            shell=True,
            cwd=folder,
            env=variables(folder),
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def marked(mark):
    """Return the processes that live and have the mark of a round."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.environ().get(MARK) == str(mark) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def send(number, processes):
    """Send a signal to processes; some may have ended meanwhile."""
    for process in processes:
        with suppress(psutil.Error):
            process.send_signal(number)


def kill_marked(mark):
    """Kill all processes of a round."""
    while processes := marked(mark):
        send(signal.SIGKILL, processes)
        psutil.wait_procs(processes, 5)
