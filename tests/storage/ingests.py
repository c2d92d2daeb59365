"""Images for a bucket, and processes that fetch them."""

import os
import subprocess
import sys
import time
from pathlib import Path

import yaml

from tests.flows.repository import CHECKOUT
from tests.storage.conftest import ACCESS, SECRET

RAW = Path("data/raw")
# Longer than what a pack says of each, so that packs may stay.
IMAGES = {"cat/1.png": b"1" * 500, "cat/2.PNG": b"22" * 500, "dog/deep/3.jpg": b"3" * 500, "dog/4.webp": b"4" * 500}


def contents(folder):
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def ingest_process(project, environment, url, **more):
    params = yaml.safe_load((CHECKOUT / "params.yaml").read_text(encoding="utf-8"))
    params["ingest"]["source"] = {"kind": "s3", "url": url}
    (project / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    variables = {
        "DIFFUSION_S3_ENDPOINT": environment.s3_endpoint,
        "DIFFUSION_S3_ACCESS_KEY": ACCESS,
        "DIFFUSION_S3_SECRET_KEY": SECRET,
        "PYTHONPATH": str(CHECKOUT),
        **more,
    }
    return subprocess.Popen(
        [sys.executable, "-m", "diffusion_core", "ingest"],
        cwd=project,
        env=os.environ | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def whole_files(parts):
    """What has arrived: the files that have their sha256 as suffix."""
    return [file for file in parts.rglob("*") if len(file.suffix) == 65]


def wait_for(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)
