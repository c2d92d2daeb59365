"""A DVC project with the graph of ours, whose stages write a line or two and need no training."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

CHECKOUT = Path(__file__).parents[2]

# A stage: it leaves its name and the flow run in `ran.txt`, and makes each output out of its inputs' bytes. Before that
# it does what `on_<stage>.py` says, where a test has put one.
STAGE = """
import hashlib, os, runpy, sys
from pathlib import Path

stage, inputs, outputs = sys.argv[1], sys.argv[2].split(), sys.argv[3].split()
with open("ran.txt", "a") as ran:
    print(stage, os.environ.get("PREFECT__FLOW_RUN_ID"), file=ran)
if Path(f"on_{stage}.py").exists():
    runpy.run_path(f"on_{stage}.py")
digest = hashlib.sha256()
for name in inputs:
    for file in sorted(Path(name).rglob("*")) if Path(name).is_dir() else [Path(name)]:
        digest.update(file.read_bytes())
for name in outputs:
    path = Path(name)
    if name == "samples":
        from PIL import Image

        path.mkdir()
        Image.new("L", (2000, 400), 7).save(path / "grid.png")
    elif not path.suffix:
        path.mkdir(parents=True)
        (path / "content").write_text(digest.hexdigest())
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        figures = '{"frechet": 2.5, "frechet_low": 2.4, "frechet_high": 2.6, "frechet_floor": 1.0, "precision": 0.75}'
        known = {"metrics": figures, "models": '{"trained_images": 25600, "git_commit": null}'}
        path.write_text(known[path.parent.name] if path.suffix == ".json" else digest.hexdigest())
print(f"{stage} is done")
"""

# What stands for `python -m diffusion_core remote`, `publish` and `promote` in the project's folder.
REGISTRY = """
import json, os, runpy, subprocess, sys
from pathlib import Path

if sys.argv[1] == "remote":
    add = ["remote", "add", "--quiet", "--local", "--default", "--force", "store", os.environ["DIFFUSION_DVC_REMOTE"]]
    sys.exit(subprocess.call([sys.executable, "-m", "dvc", *add]))
sys.argv[1:] = [sys.argv[1], "source.txt" if sys.argv[1] == "check" else "metrics/evaluate.json", ""]
runpy.run_path("stage.py")
Path(".cache").mkdir(exist_ok=True)
if sys.argv[1] == "check":
    print("check: there is no champion yet")
elif sys.argv[1] == "report":
    Path("plots/report.html").write_text("the page")
elif sys.argv[1] == "publish":
    content = {"model": "diffusion", "version": 7, "page": "http://127.0.0.1:5000/#/experiments/1/runs/abc"}
    Path(".cache/publication.json").write_text(json.dumps(content))
else:
    content = {"outcome": "refused", "sentence": "version 7 is refused: frechet is 2.5, 1.5 above 1", "reasons": []}
    Path(".cache/promotion.json").write_text(json.dumps(content))
"""


def graph():
    """The stages of the real dvc.yaml: name to (inputs that other stages make, outputs)."""
    stages = yaml.safe_load((CHECKOUT / "dvc.yaml").read_text())["stages"]
    outputs = {
        name: [_path(out) for kind in ("outs", "metrics", "plots") for out in stage.get(kind, [])]
        for name, stage in stages.items()
    }
    made = {path for paths in outputs.values() for path in paths}
    return {name: ([dep for dep in stage["deps"] if dep in made], outputs[name]) for name, stage in stages.items()}


def write_repository(folder):
    stages = {
        name: {
            "cmd": f'python stage.py {name} "{" ".join(inputs) or "source.txt"}" "{" ".join(outputs)}"',
            "deps": inputs,
            "outs": outputs,
        }
        for name, (inputs, outputs) in graph().items()
    }
    folder.mkdir()
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))
    (folder / "stage.py").write_text(STAGE)
    (folder / "source.txt").write_text("the images")
    (folder / ".gitignore").write_text(".cache/\n")
    shutil.copy(CHECKOUT / "params.yaml", folder)
    (folder / "diffusion_core").mkdir()
    # The command is the stand-in's, and all other modules are those of the checkout.
    (folder / "diffusion_core/__init__.py").write_text(f"__path__.append({str(CHECKOUT / 'diffusion_core')!r})\n")
    (folder / "diffusion_core/__main__.py").write_text(REGISTRY)
    for command in (["git", "init", "--quiet"], [sys.executable, "-m", "dvc", "init", "--quiet"]):
        subprocess.run(command, cwd=folder, check=True, env={**os.environ, "DVC_NO_ANALYTICS": "1"})


def commit(folder):
    """Commit all that git does not ignore; return the commit."""
    identity = ["-c", "user.name=tester", "-c", "user.email=tester@localhost"]
    for arguments in (["add", "--all"], [*identity, "commit", "--quiet", "--message", "state"]):
        subprocess.run(["git", *arguments], cwd=folder, check=True)
    return git(folder, "rev-parse", "HEAD")


def git(folder, *arguments):
    """What git prints."""
    return subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


def ran(folder):
    """The stages that ran since this was asked last."""
    file = folder / "ran.txt"
    if not file.exists():
        return []
    lines = [line.split() for line in file.read_text().splitlines()]
    file.unlink()
    return lines


def _path(out):
    return out if isinstance(out, str) else next(iter(out))
