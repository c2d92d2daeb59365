"""Soak the project: `python -m tests.soak --minutes 15`; exit code 1 if anything differs from an undisturbed run."""

import argparse
import json
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from itertools import count, cycle
from pathlib import Path

from diffusion_core.supervision.child import leave
from tests.flows.repository import CHECKOUT
from tests.soak.disk import enter_namespace
from tests.soak.project import kill_marked, variables, write_project
from tests.soak.round import Round
from tests.soak.servers import mlflow_server
from tests.soak.subjects import SUBJECTS


def arguments():
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=15.0, help="no round begins after them")
    parser.add_argument("--seed", type=int, help="of the disturbances; by default random, and printed")
    parser.add_argument(
        "--rounds", default="training,flow,training,worker", help=f"their order, of {', '.join(SUBJECTS)}"
    )
    parser.add_argument("--code", type=Path, default=CHECKOUT, help="another checkout to soak")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the summary there too")
    return parser.parse_args()


def main():
    """Run rounds until the minutes are over, and print a summary."""
    chosen = arguments()
    enter_namespace()
    signal.signal(signal.SIGTERM, leave)
    seed = random.randrange(2**31) if chosen.seed is None else chosen.seed
    print(f"soak: seed {seed}", flush=True)
    began = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    server, address = mlflow_server(folder / "mlflow", variables(folder))
    rounds = []
    try:
        server.start()
        kinds = chosen.rounds.split(",")
        write_project(folder / "project", chosen.code, with_dvc={*kinds} != {"training"})
        server.wait()
        for number, kind in zip(count(), cycle(kinds), strict=False):
            # The first round has all its disturbances, however short the soak is.
            deadline = began + 60.0 * chosen.minutes if number > 0 else float("inf")
            if time.monotonic() > deadline:
                break
            generator = random.Random(f"{seed} {number}")
            place = folder / f"round-{number}"
            soaked = Round(place.name, kind, number, generator, place, server, address, deadline)
            rounds.append(soaked)
            soaked.run(folder / "project")
            report(soaked, seed)
    finally:
        server.kill()
        kill_marked(folder)
        if any(folder.glob("round-*")) or isinstance(sys.exception(), Exception):
            print(f"soak: the files are kept in {folder}", flush=True)
        else:
            shutil.rmtree(folder)
    summary = summarise(rounds, seed, time.monotonic() - began)
    print(table(summary))
    if chosen.json:
        chosen.json.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    sys.exit(1 if summary["violations"] else 0)


def report(soaked, seed):
    """Print how a round went."""
    outcome = f"{len(soaked.violations)} violations" if soaked.violations else "the same as undisturbed"
    print(
        f"soak: {soaked.name}, a {soaked.kind}: {len(soaked.done)} disturbances, {soaked.starts} starts,"
        f" {time.monotonic() - soaked.began:.0f} s: {outcome}",
        flush=True,
    )
    if soaked.violations:
        print(f"soak: seed {seed}, {soaked.name}:")
        for moment, event in soaked.events:
            print(f"  {moment:6.1f} s  {event}")
        for sentence in soaked.violations:
            print(f"  violation: {sentence}", flush=True)


def summarise(rounds, seed, seconds):
    """Return the numbers of all rounds."""
    kinds = Counter(kind for soaked in rounds for kind in soaked.done)
    return {
        "seed": seed,
        "minutes": round(seconds / 60, 1),
        "completed": dict(Counter(soaked.kind for soaked in rounds)),
        "starts": sum(soaked.starts for soaked in rounds),
        "disturbances": dict(sorted(kinds.items())),
        "violations": [sentence for soaked in rounds for sentence in soaked.violations],
    }


def table(summary):
    """Return the summary as a table of Markdown."""
    completed = ", ".join(f"{number} of a {kind}" for kind, number in summary["completed"].items())
    rows = [
        ("seed", summary["seed"]),
        ("minutes", summary["minutes"]),
        ("rounds completed", completed),
        ("starts", summary["starts"]),
        *((f"disturbance: {kind}", number) for kind, number in summary["disturbances"].items()),
        ("violations", len(summary["violations"])),
    ]
    return "\n".join(["| what | how many |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])


if __name__ == "__main__":
    main()
