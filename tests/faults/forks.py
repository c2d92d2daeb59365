"""Real commands that begin as forks of one process, which has imported everything once."""

import json
import os
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

# Each line of its input is a command: where it runs, arguments, variables, files of output, what to set before it runs,
# and where it kills itself, as "module:function:call".
PROGRAM = '''
import importlib, json, os, resource, signal, sys, traceback
import psutil
for name in ("ingest", "prepare", "reference", "train", "sample", "evaluate", "publish", "verify", "clean"):
    importlib.import_module(f"diffusion_core.stages.{name}")
# What the stages import when they first need it, which takes a second of most of them.
for name in ("git", "pyarrow.dataset", "skimage.metrics", "sklearn.datasets", "torch._dynamo", "torch.profiler"):
    importlib.import_module(name)
from diffusion_core.__main__ import main

def with_memory(function, megabytes):
    """From its first call on, the process may take so many megabytes more."""
    def limited(*arguments, **options):
        limit = psutil.Process().memory_info().vms + megabytes * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        return function(*arguments, **options)
    return limited

def dies(function, call):
    """At the call with this number, the process kills itself."""
    calls = [0]
    def counted(*arguments, **options):
        calls[0] += 1
        if calls[0] == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)
    return counted

def replace(place, change):
    module, _, name = place.partition(":")
    *path, last = name.split(".")
    owner = importlib.import_module(module)
    for each in path:
        owner = getattr(owner, each)
    setattr(owner, last, change(getattr(owner, last)))

def run(folder, arguments, variables, outputs, setting, die_at):
    os.chdir(folder)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, file in zip((1, 2), outputs):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), number)
    os.environ.clear()
    os.environ.update(variables)
    for place, expression in setting.items():
        replace(place, lambda original: eval(expression, {**globals(), "original": original}))
    if die_at is not None:
        place, _, call = die_at.rpartition(":")
        replace(place, lambda original: dies(original, int(call)))
    sys.argv[1:] = arguments
    try:
        main()
        code = 0
    except SystemExit as exit:
        code = exit.code or 0
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)

print("ready", flush=True)
for line in sys.stdin:
    child = os.fork() or run(*json.loads(line))
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
'''


VARIABLES = {
    "DIFFUSION_DEVICE": "cpu",
    "DIFFUSION_PRECISION": "float32",
    "DIFFUSION_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": str(Path(__file__).parents[2]),
}


@dataclass(frozen=True)
class Done:
    returncode: int
    stdout: str
    stderr: str


class Commands:
    """Runs commands of this project in one folder."""

    def __init__(self, process, folder, environment):
        self._process = process
        self._folder = folder
        self._environment = environment

    def run(self, *arguments, folder=".", setting=None, die_at=None, environment=None, **variables):
        """Run a command to its end.

        Args:
            *arguments: of the command.
            folder: where it runs, from the folder of the project.
            setting: names to set in its process first, `module:name` to an expression, in which `original` is what the
                name had, and `with_memory` is there.
            die_at: where it kills itself, as "module:function:call".
            environment: all its variables; that of the first process if None.
            **variables: variables in addition.
        """
        outputs = [self._folder / name for name in ("out", "err")]
        for file in outputs:
            file.unlink(missing_ok=True)
        whole = {**(self._environment if environment is None else environment), **variables}
        line = json.dumps([str(folder), arguments, whole, [str(file) for file in outputs], setting or {}, die_at])
        print(line, file=self._process.stdin, flush=True)
        return Done(int(self._process.stdout.readline()), *(file.read_text() for file in outputs))

    def succeeds(self, *arguments, **options):
        done = self.run(*arguments, **options)
        assert done.returncode == 0, done.stderr
        return done


@contextmanager
def commands(inside):
    """Yield `Commands` for the block; `inside` makes the command that runs another one in the folder of the project."""
    variables = {**os.environ, **VARIABLES}
    with TemporaryDirectory() as folder:
        process = subprocess.Popen(
            inside([sys.executable, "-c", PROGRAM]),
            env=variables,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert process.stdout.readline() == "ready\n"
            yield Commands(process, Path(folder), variables)
        finally:
            process.stdin.close()
            process.stdout.close()
            assert process.wait(60) == 0
