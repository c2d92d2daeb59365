"""A real server of S3's protocol on loopback, and a proxy before it that makes trouble."""

import itertools
import os
import re
import subprocess
import sys
from pathlib import Path

import boto3
import pytest
from botocore.config import Config
from botocore.retries.standard import ExponentialBackoff

from diffusion_core.config.environment import Environment
from diffusion_core.storage import client, fetching, open_store
from tests.storage.proxy import proxying

ACCESS, SECRET = "CANARYKEYID", "canary+secret/0123456789"
# Where `diffusion remote` writes them.
CONFIG = Path(".dvc/config.local")
RCLONE = Path(sys.executable).with_name("rclone")
NUMBERS = itertools.count()


@pytest.fixture(scope="package")
def server(tmp_path_factory):
    """The address of `rclone serve s3`."""
    folder = tmp_path_factory.mktemp("store")
    process = subprocess.Popen(
        [RCLONE, "serve", "s3", "--addr", "127.0.0.1:0", folder],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        # By variable, as whoever may list processes reads their arguments.
        env={"PATH": os.environ["PATH"], "RCLONE_CONFIG": os.devnull, "RCLONE_AUTH_KEY": f'"{ACCESS},{SECRET}"'},
    )
    with process:
        try:
            found = (re.search(r"server on \[(http://.*?)/\]", line) for line in process.stderr)
            yield next(each[1] for each in found if each)
        finally:
            process.terminate()


@pytest.fixture(scope="package")
def admin(server):
    """A client that goes past the proxy."""
    return boto3.client(
        "s3",
        endpoint_url=server,
        aws_access_key_id=ACCESS,
        aws_secret_access_key=SECRET,
        region_name="us-east-1",
        config=Config(s3={"addressing_style": "path"}, request_checksum_calculation="when_required"),
    )


@pytest.fixture
def bucket(admin):
    """A new bucket."""
    name = f"bucket-{next(NUMBERS)}"
    admin.create_bucket(Bucket=name)
    return name


@pytest.fixture
def proxy(server):
    with proxying(server) as proxy:
        yield proxy


@pytest.fixture
def environment(proxy):
    return Environment(s3_endpoint=proxy.url, s3_access_key=ACCESS, s3_secret_key=SECRET)


@pytest.fixture
def store(environment):
    return open_store(environment)


@pytest.fixture
def put(admin, bucket):
    """Puts objects below the prefix `pictures`."""

    def put(objects):
        for key, body in objects.items():
            admin.put_object(Bucket=bucket, Key=f"pictures/{key}", Body=body)

    return put


@pytest.fixture(autouse=True)
def _alone(monkeypatch):
    """Nothing of the developer's own accounts, and retries that are few and wait for nothing."""
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, os.devnull)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for module in (client, fetching):
        monkeypatch.setattr(module, "ATTEMPTS", 3)
    monkeypatch.setattr(fetching, "LONGEST_PAUSE", 0.0)
    monkeypatch.setattr(ExponentialBackoff, "delay_amount", lambda self, context: 0.0)
