import subprocess
import sys
from pathlib import Path


def test_who_may_import_whom():
    lint = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([lint, "--no-cache"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_locked_prefect_and_fastapi_go_together():
    done = subprocess.run(
        [sys.executable, "-c", "import prefect.server.api.server"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
