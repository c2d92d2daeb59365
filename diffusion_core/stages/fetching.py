"""The start of a training whose checkpoints have copies: the newest copy is fetched, and no bucket may delay this.

It is a process of its own, because a request that hangs can only be ended with its process. The bucket has 20 seconds
to answer, and a transfer ends after 20 seconds in which nothing is written (a download writes 256 kB at once). Then the
training ends, and may be tried again. To begin at 0 would waste what the bucket may have of it.
"""

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

from diffusion_core.config.environment import load_environment
from diffusion_core.errors import Unavailable, UserError
from diffusion_core.files import disk_refusal
from diffusion_core.lineage.checkpoints import newest_whole_step
from diffusion_core.stages.copies import Copies

SECONDS = 20.0


def fetch_newest(copies: Copies) -> None:
    """Check the bucket, and fetch the newest copy if the folder has none that is as new and whole.

    Raises:
        UserError: the bucket cannot be used, or the disk refuses.
        Unavailable: the bucket does not answer in time.
    """
    command = [sys.executable, "-m", "diffusion_core.stages.fetching", str(copies.folder), str(SECONDS)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = process.stdout.read().strip()
    if process.returncode:
        kind = UserError if process.returncode == UserError.exit_code else Unavailable
        raise kind(said or f"the process that fetches checkpoints ended with {process.returncode}: run this again")
    if said:
        print(said, flush=True)


def main() -> None:
    """Fetch to the folder of the first argument; the second is the limit. The last line is the result or the error."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        _fetch(Path(sys.argv[1]), float(sys.argv[2]))
    except UserError as error:
        _end(str(error), error.exit_code)
    except OSError as error:
        refusal = disk_refusal(error)
        if refusal is None:
            raise
        _end(str(refusal), refusal.exit_code)
    _end("", 0)


def _fetch(folder: Path, seconds: float) -> None:
    copies = Copies.of(load_environment(), folder)
    assert copies is not None, "the training's process has the same environment"
    # Before the bucket's time begins, as it reads whole checkpoints.
    own = newest_whole_step(folder)
    threading.Thread(target=_end_if_it_hangs, args=(copies, seconds), daemon=True).start()
    copies.check()
    fetched = copies.fetch(newer_than=own)
    if fetched is not None:
        print(f"train: fetched the checkpoint {fetched} from {copies.address}")


def _end_if_it_hangs(copies: Copies, seconds: float) -> None:
    seen, since = _written(copies.folder), time.monotonic()
    while time.monotonic() - since < seconds:
        time.sleep(min(0.2, seconds / 10))
        now = _written(copies.folder)
        if now != seen:
            seen, since = now, time.monotonic()
    _end(
        f"{copies.address} was silent for {seconds:g} seconds and may have newer checkpoints: run this again when it"
        " answers, or unset DIFFUSION_CHECKPOINT_COPIES",
        Unavailable.exit_code,
    )


def _written(folder: Path) -> dict[Path, int]:
    """Return when each file of a copy that is being fetched was written last."""
    times = {}
    for file in folder.glob("*.tmp-*/*"):
        with suppress(FileNotFoundError):
            times[file] = file.stat().st_mtime_ns
    return times


def _end_with_parent() -> None:
    sys.stdin.buffer.read()
    os._exit(1)


def _end(said: str, code: int) -> None:
    """End the process, without waiting for threads of a transfer that hangs."""
    print(said, flush=True)
    os._exit(code)


if __name__ == "__main__":
    main()
