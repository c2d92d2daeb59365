"""Real commands that begin as forks of one process, which has imported everything once."""

import json
import os
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

# Each line of its input is a command: arguments, variables, files of output, and what to set before it runs.
PROGRAM = '''
import importlib, json, os, resource, sys, traceback
import psutil
for name in ("ingest", "prepare", "reference", "train", "sample", "evaluate", "publish"):
    importlib.import_module(f"diffusion_core.stages.{name}")
from diffusion_core.__main__ import main

def with_memory(function, megabytes):
    """From its first call on, the process may take so many megabytes more."""
    def limited(*arguments, **options):
        limit = psutil.Process().memory_info().vms + megabytes * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        return function(*arguments, **options)
    return limited

def run(folder, arguments, variables, outputs, setting):
    os.chdir(folder)
    for number, file in zip((1, 2), outputs):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), number)
    os.environ.update(variables)
    for place, expression in setting.items():
        module, _, name = place.partition(":")
        *path, last = name.split(".")
        owner = importlib.import_module(module)
        for each in path:
            owner = getattr(owner, each)
        setattr(owner, last, eval(expression, {**globals(), "original": getattr(owner, last)}))
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


@dataclass(frozen=True)
class Done:
    returncode: int
    stdout: str
    stderr: str


class Commands:
    """Runs commands of this project in one folder."""

    def __init__(self, process, folder):
        self._process = process
        self._folder = folder

    def run(self, *arguments, folder=".", setting=None, **variables):
        """Run a command to its end.

        Args:
            *arguments: of the command.
            folder: where it runs, from the folder of the project.
            setting: names to set in its process first, `module:name` to an expression, in which `original` is what the
                name had, and `with_memory` is there.
            **variables: of its environment.
        """
        outputs = [self._folder / name for name in ("out", "err")]
        for file in outputs:
            file.unlink(missing_ok=True)
        line = json.dumps([str(folder), arguments, variables, [str(file) for file in outputs], setting or {}])
        print(line, file=self._process.stdin, flush=True)
        return Done(int(self._process.stdout.readline()), *(file.read_text() for file in outputs))

    def succeeds(self, *arguments, **options):
        done = self.run(*arguments, **options)
        assert done.returncode == 0, done.stderr
        return done


@contextmanager
def commands(inside):
    """Yield `Commands` for the block; `inside` makes the command that runs another one in the folder of the project."""
    variables = {
        **os.environ,
        "DIFFUSION_DEVICE": "cpu",
        "DIFFUSION_PRECISION": "float32",
        "DIFFUSION_THREADS": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
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
            yield Commands(process, Path(folder))
        finally:
            process.stdin.close()
            process.stdout.close()
            assert process.wait(60) == 0
