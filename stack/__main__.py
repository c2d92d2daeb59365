"""The commands `python -m stack up`, `down` and `renew-passwords`; `make stack` and `make stack-down` use them."""

import shutil
import sys
import time
from argparse import ArgumentParser
from collections.abc import Callable
from pathlib import Path

import psutil

from diffusion_core.locks import Locked, exclusive_lock
from diffusion_core.supervision.child import GRACE_SECONDS, signals_held
from stack import services
from stack.home import HOST, Home, StackError, keep_home, open_home, with_port
from stack.passwords import renew
from stack.postgres import make_databases
from stack.processes import Service, Started, read_started, start, stop, wait_until_ready, write_started

FOLDER = Path(".stack")


def up(folder: Path = FOLDER) -> Home:
    """Start the servers that are not running, and return when all answer.

    If one fails, the servers that this call has started are stopped.

    Raises:
        StackError: a server cannot be started; the message names its log.
    """
    home = open_home(folder)
    file = home.folder / "started.json"
    running = read_started(file)
    lasting = set(running)
    new: list[Started] = []

    def launch(makers: dict[str, Callable[[Home], Service]]) -> None:
        nonlocal home
        waiting: list[tuple[Service, Started]] = []
        for name, make in makers.items():
            if name in running:
                continue
            if name in home.ports:
                before = home.ports[name]
                home = with_port(home, name)
                if lasting and before not in (0, home.ports[name]):
                    raise StackError(
                        f"port {before} of {name} has been taken by another program, and the servers that run still"
                        " look there: `make stack-down` and `make stack` give them another"
                    )
                keep_home(home)
            service = make(home)
            with signals_held():
                started = start(service, home.logs / f"{name}.log")
                running[name] = started
                new.append(started)
                write_started(file, running)
            waiting.append((service, started))
        for service, started in waiting:
            began = time.monotonic()
            wait_until_ready(service, started, home.logs / f"{service.name}.log")
            print(f"{service.name} answers ({time.monotonic() - began:.0f} s)", flush=True)

    try:
        launch({"postgres": services.postgres})
        make_databases(home)
        launch({"s3": services.s3, "mlflow": services.mlflow, "prefect": services.prefect})
        if "worker" not in running:
            _clear(home.folder / "runs")
        launch({"worker": services.worker})
    except BaseException:
        with signals_held():
            for each in reversed(new):
                each.stop()
            write_started(file, read_started(file))
        raise
    return home


def _clear(runs: Path) -> None:
    """Remove the leftovers of a killed worker's runs, except checkouts that are the folder of a running process."""
    for left in runs.iterdir():
        if not left.is_dir():
            left.unlink()
        elif not _workers_in(left):
            shutil.rmtree(left)


def _workers_in(folder: Path) -> list[psutil.Process]:
    """Return the processes with a working directory in a folder."""
    return [each for each in psutil.process_iter(["cwd"]) if Path(each.info["cwd"] or "/").is_relative_to(folder)]


def down(folder: Path = FOLDER) -> list[str]:
    """Stop the servers of `up` in reverse order, and return their names; their data remain."""
    file = folder.absolute() / "started.json"
    running = list(reversed(read_started(file).values()))
    with signals_held():
        for each in running:
            each.stop()
        # A killed worker may have left its run behind.
        stop(_workers_in(file.parent / "runs"), GRACE_SECONDS)
        if file.exists():
            write_started(file, {})
    return [each.name for each in running]


def _show(home: Home) -> None:
    print(f"Prefect:    http://{HOST}:{home.ports['prefect']}")
    print(f"MLflow:     http://{HOST}:{home.ports['mlflow']}")
    print(f"S3:         {home.s3_endpoint}  (buckets images, dvc and mlflow)")
    print(f"PostgreSQL: {HOST}:{home.ports['postgres']}")
    print(f"logs:       {home.logs}")
    print(f"Names and passwords are in {home.folder / 'env'}. A shell that is to work with the stack reads it:")
    print(f"    set -a; . {home.folder / 'env'}; set +a")
    print("`make deploy` then puts the nightly run on it, and `make stack-down` stops it.")


def main() -> None:
    """Run one command; on an error print one sentence, exit code 2."""
    parser = ArgumentParser("python -m stack", description="A team's servers on this machine.")
    parser.add_argument("command", choices=("up", "down", "renew-passwords"), help="start, stop, or change passwords")
    command = parser.parse_args().command
    try:
        FOLDER.mkdir(mode=0o711, exist_ok=True)
        with exclusive_lock(FOLDER / "lock"):
            if command == "up":
                _show(up())
            elif command == "down":
                print(f"stopped: {', '.join(down()) or 'nothing ran'}; the data stay in {FOLDER}")
            else:
                home = open_home(FOLDER)
                # After an interrupted change, some servers accept only new passwords, so they cannot be started first.
                renew(home if home.next_passwords else up())
                down()
                _show(up())
    except Locked as locked:
        print(
            f"error: another `make stack` or `make stack-down` is at work here{locked.holder}: wait until it ends",
            file=sys.stderr,
        )
        sys.exit(2)
    except StackError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        print(f"error: the disk refuses {error.filename} ({error.strerror}): correct or remove it", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
