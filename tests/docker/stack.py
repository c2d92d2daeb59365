"""docker/compose.yaml as the tests read it, and its commands as processes of this machine."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
import pytest
import yaml

from tests.ports import free_port

FOLDER = Path("docker")
BIN = Path(sys.executable).parent.absolute()
COMPOSE = yaml.safe_load((FOLDER / "compose.yaml").read_text(encoding="utf-8"))
SERVICES = COMPOSE["services"]
LASTING = {name for name, service in SERVICES.items() if service["restart"] != "no"}
EXAMPLE = (FOLDER / ".env.example").read_text(encoding="utf-8")
PASSWORDS = re.findall(r"^(\w+)=change-me$", EXAMPLE, re.MULTILINE)

# A password for each, which is found again wherever it leaks to.
GOOD = {name: f"canary-{name.lower()}-0123456789" for name in PASSWORDS}
FILLED_IN = {**GOOD, "DIFFUSION_REPOSITORY": "https://git.example/team/diffusion.git"}


def interpolated(value, variables=FILLED_IN):
    """Return a value of compose.yaml with `${NAME:-default}` and `${NAME:?why}` replaced as Compose does."""
    return re.sub(r"\$\{(\w+)(?::-([^}]*)|:\?[^}]*)?\}", lambda found: variables.get(found[1], found[2]), value)


def environment(service):
    """Return the variables that compose.yaml sets for a service."""
    return {name: interpolated(value) for name, value in SERVICES[service].get("environment", {}).items()}


def instructions(dockerfile):
    """Return the instructions of a Dockerfile: each a word in capitals and the rest of its line."""
    lines = [line for line in (FOLDER / dockerfile).read_text(encoding="utf-8").splitlines() if line[:1] != "#"]
    return [line.split(" ", 1) for line in "\n".join(lines).replace("\\\n", " ").splitlines() if line]


def image_environment(dockerfile):
    """Return the variables that a Dockerfile sets."""
    return dict(pair.split("=", 1) for word, rest in instructions(dockerfile) if word == "ENV" for pair in rest.split())


def words(dockerfile):
    """Return the default command of an image."""
    (command,) = (rest for word, rest in instructions(dockerfile) if word == "CMD")
    return json.loads(command)


def postgres_programs():
    """Return the folder of PostgreSQL's programs, or skip."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not folders:
        pytest.skip("PostgreSQL is not installed")
    return folders[-1]


class Stack:
    """The services of compose.yaml at free ports of the loopback, with their variables and commands.

    Only addresses are others than in the containers, and rclone stands in for the S3 store.
    """

    def __init__(self, folder, running):
        self.folder = folder
        self.running = running
        self.processes = {}
        self.ports = {name: free_port() for name in ("postgres", "store", "prefect-server", "mlflow")}
        self.store = f"http://127.0.0.1:{self.ports['store']}"

    def page(self, service):
        return f"http://127.0.0.1:{self.ports[service]}"

    def environment(self, service, dockerfile="server.Dockerfile"):
        """Return all variables that a process has which stands in for a service of our images."""
        home = self.folder / service
        home.mkdir(exist_ok=True)
        moved = {
            "PGHOST": "127.0.0.1",
            "PGPORT": str(self.ports["postgres"]),
            "PREFECT_SERVER_DATABASE_HOST": "127.0.0.1",
            "PREFECT_SERVER_DATABASE_PORT": str(self.ports["postgres"]),
            "PREFECT_SERVER_UI_API_URL": f"{self.page('prefect-server')}/api",
            "PREFECT_HOME": str(home / "prefect"),
            "PREFECT_SERVER_UI_STATIC_DIRECTORY": str(home / "pages"),
            "MLFLOW_AUTH_CONFIG_PATH": str((FOLDER / "mlflow-accounts.ini").absolute()),
            "MLFLOW_S3_ENDPOINT_URL": self.store,
            "AWS_ENDPOINT_URL_S3": self.store,
            "PREFECT_API_URL": f"{self.page('prefect-server')}/api",
            "DIFFUSION_TRACKING_URI": self.page("mlflow"),
            "TMPDIR": str(home),
            "PATH": f"{BIN}:{os.environ['PATH']}",
        }
        variables = {"PATH": "", "TMPDIR": "", **image_environment(dockerfile), **environment(service)}
        return variables | {name: value for name, value in moved.items() if name in variables} | {"HOME": str(home)}

    def command(self, service):
        """Return the command of a service with this machine's files and ports."""
        here = {
            "/srv/servers/buckets.py": str((FOLDER / "buckets.py").absolute()),
            "0.0.0.0": "127.0.0.1",
            "4200": str(self.ports["prefect-server"]),
            "--host=0.0.0.0": "--host=127.0.0.1",
            "--port=5000": f"--port={self.ports['mlflow']}",
        }
        program, *arguments = SERVICES[service]["command"]
        return [str(BIN / program), *(here.get(argument, argument) for argument in arguments)]

    def start(self, service):
        """Start a service of the server's image as compose.yaml says."""
        self.launch(service, self.command(service), env=self.environment(service), cwd=self.folder / service)

    def launch(self, service, command, **options):
        """Start a command, whose output goes to a file of the service's name."""
        with self.log(service).open("wb") as output:
            self.processes[service] = self.running.enter_context(
                process(command, stdout=output, stderr=subprocess.STDOUT, **options)
            )

    def run(self, *jobs):
        """Run the jobs side by side to their ends."""
        for job in jobs:
            self.start(job)
        for job in jobs:
            assert self.processes[job].wait(60) == 0, self.log(job).read_text()

    def log(self, service):
        return self.folder / f"{service}.log"

    def wait(self, service, ready):
        deadline = time.monotonic() + 60
        while not ready():
            assert self.processes[service].poll() is None, self.log(service).read_text()
            assert time.monotonic() < deadline, self.log(service).read_text()
            time.sleep(0.2)

    def start_postgres(self):
        """Make a database cluster as PostgreSQL's image does, and our databases in it."""
        programs = postgres_programs()
        variables = environment("postgres")
        data = self.folder / "data"
        data.mkdir()
        user = {}
        if os.geteuid() == 0:
            # PostgreSQL refuses to run as root.
            user = {"user": "postgres"}
            shutil.chown(data, "postgres")
        password = self.folder / "password"
        password.write_text(variables["POSTGRES_PASSWORD"])
        subprocess.run(
            [
                programs / "initdb",
                data,
                "--username=postgres",
                "--pwfile=/dev/stdin",
                variables["POSTGRES_INITDB_ARGS"],
            ],
            stdin=password.open(),
            stdout=subprocess.DEVNULL,
            cwd="/",
            check=True,
            **user,
        )
        port = self.ports["postgres"]
        listen = [f"-p{port}", f"-k{data}", "-clisten_addresses=127.0.0.1", "-cfsync=off"]
        # It takes its shared memory with it on INT.
        self.launch("postgres", [programs / "postgres", "-D", data, *listen], cwd="/", stop=signal.SIGINT, **user)
        address = {"PGHOST": "127.0.0.1", "PGPORT": str(port)}
        ready = [programs / "pg_isready", "--quiet", "--host=127.0.0.1", f"--port={port}"]
        self.wait("postgres", lambda: subprocess.run(ready, check=False).returncode == 0)
        variables = {**variables, **address, "PATH": f"{programs}:{os.environ['PATH']}"}
        subprocess.run([FOLDER / "databases.sh"], env=variables, check=True)

    def start_store(self):
        """Let rclone answer as the S3 store does, under the same account."""
        objects = self.folder / "objects"
        objects.mkdir()
        # By variable, as the passwords of all others come.
        account = f"{GOOD['S3_ACCESS_KEY']},{GOOD['S3_SECRET_KEY']}"
        keys = {"RCLONE_AUTH_KEY": f'"{account}"', "HOME": str(self.folder)}
        address = f"127.0.0.1:{self.ports['store']}"
        self.launch("store", [str(BIN / "rclone"), "serve", "s3", "--addr", address, objects], env=keys)
        self.wait("store", lambda: listens(self.ports["store"]))


def listens(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def answers(url):
    """Whether the containers' health check is content with an address."""
    return subprocess.run([sys.executable, FOLDER / "healthy.py", url], check=False).returncode == 0


@contextmanager
def process(command, stop=signal.SIGKILL, **options):
    """Run a command for the block, of whose family nobody is left afterwards."""
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True, **options)
    try:
        yield child
    finally:
        left = family(child.pid) if child.poll() is None else []
        for each in left:
            with suppress(psutil.NoSuchProcess):
                each.send_signal(stop)
        psutil.wait_procs(left, 10)
        child.wait()


@contextmanager
def started():
    """Run PostgreSQL, the store, the jobs and both servers as compose.yaml says."""
    # Not in pytest's folder, which nobody else may enter, PostgreSQL's user neither.
    with TemporaryDirectory(prefix="stack-") as folder, ExitStack() as running:
        Path(folder).chmod(0o755)
        stack = Stack(Path(folder), running)
        stack.start_store()
        stack.start_postgres()
        stack.run("buckets", "prefect-database", "mlflow-database", "mlflow-accounts")
        stack.start("prefect-server")
        stack.start("mlflow")
        stack.wait("prefect-server", lambda: answers(stack.page("prefect-server") + "/api/health"))
        stack.wait("mlflow", lambda: answers(stack.page("mlflow") + "/health"))
        yield stack


def family(pid):
    """Return a process and all that it started."""
    parent = psutil.Process(pid)
    return [parent, *parent.children(recursive=True)]
