"""A Ray cluster decodes to the same bytes as one machine, also when it loses a node."""

import os
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack, contextmanager, suppress
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from diffusion_core.config.environment import Environment
from diffusion_core.config.settings import IngestSettings, PrepareSettings
from diffusion_core.data.cluster import _check_versions
from diffusion_core.data.sources.digits import Digits
from diffusion_core.data.sources.folder import Folder
from diffusion_core.errors import UserError
from diffusion_core.stages import ingest, prepare
from tests.data.test_parallel import slow_jpeg
from tests.faults.commands import wait_for
from tests.flows.repository import CHECKOUT

pytestmark = pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed")

OPTIONS = {"image_size": 16, "color": "rgb", "validation_fraction": 0.3, "max_seconds": 1.0}
FILES = 130
TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef" * 4}
# Prepares; after ten files it says so, and goes on when it is told.
SCRIPT = f"""
from diffusion_core.config.environment import load_environment
from diffusion_core.config.settings import PrepareSettings
from diffusion_core.data import cluster
from diffusion_core.stages import prepare

def pauses(*arguments, original=cluster.decode_on_cluster):
    for number, each in enumerate(original(*arguments)):
        if number == 10:
            print("ten", flush=True)
            input()
        yield each

cluster.decode_on_cluster = pauses
prepare.run(PrepareSettings(**{OPTIONS!r}), load_environment())
"""


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@contextmanager
def node(folder, *arguments):
    """Run a node of a Ray cluster, and end it with all that it started."""
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats", *arguments]
    process = subprocess.Popen(
        command, env=os.environ | TOKEN | {"RAY_TMPDIR": str(folder)}, start_new_session=True, stdout=subprocess.DEVNULL
    )
    try:
        yield process
    finally:
        kill_group(process)


def kill_group(process):
    """Kill a process and all that it started, as a machine dies."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    """The address of a head node without processors."""
    # Sockets have short names.
    folder = Path("/tmp") / f"ray-{os.getpid()}"
    port = free_port()
    arguments = ("--head", f"--port={port}", "--num-cpus=0", "--include-dashboard=false", "--node-ip-address=127.0.0.1")
    with node(folder, *arguments):
        wait_for(lambda: listens(port))
        yield f"127.0.0.1:{port}", folder


def listens(port):
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="module")
def workers(head):
    """Two nodes of one processor each."""
    address, folder = head
    with ExitStack() as running:
        nodes = []
        for count in (1, 2):
            nodes.append(running.enter_context(node(folder, f"--address={address}", "--num-cpus=1")))
            wait_for(lambda: processors(address) == count)  # noqa: B023
        yield nodes


def processors(address):
    script = f"import ray; ray.init({address!r}, log_to_driver=False); print(ray.cluster_resources().get('CPU', 0))"
    given = os.environ | TOKEN | {"PYTHONPATH": path()}
    done = subprocess.run([sys.executable, "-c", script], env=given, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[0])


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project with images to prepare, and the dataset that one machine makes of them."""
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    for number in range(FILES):
        file = tmp_path / f"pictures/{number % 3}/{number:04d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (200, 200, 3), np.uint8)).save(file)
    (tmp_path / "pictures/0/cut.png").write_bytes(file.read_bytes()[:-1000])
    (tmp_path / "pictures/1/slow.jpg").write_bytes(slow_jpeg(3000))
    ingest.run(IngestSettings(source=Folder(tmp_path / "pictures")), Environment())
    prepare.run(PrepareSettings(**OPTIONS))
    Path("data/prepared").rename("alone")
    return tmp_path


def contents(folder):
    return {file.name: file.read_bytes() for file in Path(folder).iterdir()}


@contextmanager
def preparing(address, **variables):
    """Prepare in a process of its own."""
    given = os.environ | TOKEN | {"DIFFUSION_RAY_ADDRESS": address, "PYTHONPATH": path()} | variables
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT], env=given, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        yield process


def path():
    return os.pathsep.join([str(CHECKOUT), *filter(None, [os.environ.get("PYTHONPATH")])])


def test_a_cluster_makes_the_bytes_of_one_machine_also_without_a_node_that_it_loses(head, workers, project):
    # One after the other: a lost node does not come back.
    for is_lost in (False, True):
        with preparing(head[0]) as process:
            assert process.stdout.readline() == "ten\n"
            if is_lost:
                kill_group(workers[0])
            print(file=process.stdin, flush=True)
            rest = process.stdout.read()
        assert process.returncode == 0, rest
        assert "left out 2 of 132 files" in rest
        assert contents("data/prepared") == contents("alone")
        shutil.rmtree("data/prepared")


OTHER_VERSIONS = """
import sys
from pathlib import Path
from diffusion_core.data import cluster
from diffusion_core.data.cluster import decode_on_cluster
from diffusion_core.errors import UserError
from diffusion_core.data.decoding import Decoding
from diffusion_core.data.raw import read_index
folder = Path("data/raw")

def refused(libraries):
    try:
        next(decode_on_cluster(folder, read_index(folder), Decoding((4, 4), 3), sys.argv[1], libraries))
    except UserError as error:
        print(error)

refused({"pillow": "0.1"})
# As where a node has not all libraries: this module is nowhere but here.
sys.path.append(sys.argv[2])
import only_here
cluster._decode_together = only_here.task
refused({})
"""


def test_a_node_with_other_libraries_is_told(head, workers, project):
    """By its task, because nodes join at any time. The control is the test before."""
    (project / "modules").mkdir()
    (project / "modules/only_here.py").write_text("def task(*arguments):\n    return []\n")
    command = [sys.executable, "-c", OTHER_VERSIONS, head[0], str(project / "modules")]
    given = os.environ | TOKEN | {"PYTHONPATH": path()}
    done = subprocess.run(command, env=given, capture_output=True, text=True, check=False)
    assert f"the Ray node {socket.gethostname()} has pillow {version('pillow')}, and the" in done.stdout, done.stderr
    assert "a Ray node lacks what the project needs (" in done.stdout, done.stderr
    assert "only_here" in done.stdout


def test_versions_are_compared():
    _check_versions({"pillow": version("pillow")})
    with pytest.raises(UserError, match="has no no-such-library, and the machine that prepares 0.1: install the same"):
        _check_versions({"pillow": version("pillow"), "no-such-library": "0.1"})


@pytest.mark.parametrize(
    ("address", "variables", "code", "sentence"),
    [
        ("127.0.0.1:1", {}, 75, "the Ray cluster at 127.0.0.1:1 does not answer"),
        ("head", {}, 2, "DIFFUSION_RAY_ADDRESS is 'head': write host:port"),
        ("127.0.0.1:1", {"RAY_AUTH_MODE": "disabled"}, 2, "RAY_AUTH_MODE is not token"),
        ("127.0.0.1:1", {"RAY_AUTH_TOKEN": ""}, 2, "the Ray cluster needs a token: set RAY_AUTH_TOKEN"),
        ("own", {"RAY_AUTH_TOKEN": "f" * 64}, 75, "the Ray cluster at DIFFUSION_RAY_ADDRESS cannot be used"),
    ],
)
def test_a_cluster_that_cannot_be_used_is_told(head, tmp_path, monkeypatch, address, variables, code, sentence):
    monkeypatch.chdir(tmp_path)
    ingest.run(IngestSettings(source=Digits()), Environment())
    params = yaml.safe_load((CHECKOUT / "params.yaml").read_text(encoding="utf-8"))
    params["prepare"] |= OPTIONS
    Path("params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    given = os.environ | TOKEN | {"HOME": str(tmp_path), "PYTHONPATH": path()} | variables
    given["DIFFUSION_RAY_ADDRESS"] = head[0] if address == "own" else address
    done = subprocess.run(
        [sys.executable, "-m", "diffusion_core", "prepare"], env=given, capture_output=True, text=True, check=False
    )
    assert (done.returncode, sentence in done.stderr, "Traceback" in done.stderr) == (code, True, False), done.stderr
    assert not Path("data/prepared").exists()
