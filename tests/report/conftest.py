"""A project after two runs, and a browser that measures pages."""

import shutil
import subprocess

import pytest

from diffusion_core.config.environment import Environment
from diffusion_core.config.params import load_settings
from diffusion_core.stages import evaluate, promote, publish, reference, report, sample, train
from tests.data.test_report import CHROMIUM
from tests.stages.conftest import digits

__all__ = ["digits"]

ON_CPU = Environment(device="cpu", precision="float32")


def run_all(settings):
    train.run(settings.train, ON_CPU)
    sample.run(settings.sample, ON_CPU)
    evaluate.run(settings.evaluate, ON_CPU)
    publish.run(ON_CPU)
    promote.run(settings.promote, settings.sample, settings.evaluate, ON_CPU)
    report.run(ON_CPU)


@pytest.fixture(scope="package")
def finished(digits, tmp_path_factory):
    """A project after two runs, the second with another learning rate."""
    folder = tmp_path_factory.mktemp("report")
    shutil.copytree(digits, folder, dirs_exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        settings = load_settings()
        few = settings.sample.model_copy(update={"count": 40})
        settings = settings.model_copy(update={"sample": few})
        reference.run(settings.reference.model_copy(update={"images": 2000}), ON_CPU)
        gate = settings.promote.model_copy(update={"limits": {}})
        settings = settings.model_copy(update={"promote": gate})
        run_all(settings)
        other = settings.train.model_copy(update={"learning_rate": 0.002})
        run_all(settings.model_copy(update={"train": other}))
    return folder


@pytest.fixture(autouse=True)
def _project(finished, tmp_path, monkeypatch):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)


def shown(file, width, folder):
    """Return how wide a browser makes a page in a frame of this width, and how many of its pictures are broken."""
    # The page has no script, so a frame around it measures it.
    probe = folder / "probe.html"
    probe.write_text(
        f'<iframe src="{file}" style="width:{width}px;height:800px;border:0"></iframe><script>onload=()=>{{'
        "const page=document.querySelector('iframe').contentDocument.documentElement;"
        "document.title=page.scrollWidth+' '+[...page.querySelectorAll('img')].filter(i=>!i.naturalWidth).length}"
        "</script>"
    )
    done = subprocess.run(
        [
            *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files"),
            *("--virtual-time-budget=5000", "--dump-dom", probe.as_uri()),
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    title = done.stdout.partition("<title>")[2].partition("</title>")[0]
    scroll, broken = map(int, title.split())
    return scroll, broken
