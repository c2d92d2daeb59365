import json
from pathlib import Path

import pytest
import torch

from benchmarks.peers import Setting
from benchmarks.peers.ours import Task
from benchmarks.report import table


@pytest.mark.parametrize("file", sorted(Path("benchmarks").glob("compare-*.json")), ids=str)
def test_the_tables_are_those_of_the_measured_figures(file):
    text = table(json.loads(file.read_text(encoding="utf-8")))
    assert text == file.with_suffix(".md").read_text(encoding="utf-8")
    assert text.strip() in Path("docs/performance.md").read_text(encoding="utf-8")


def test_ratios_are_medians_of_neighbours_in_time():
    slow = {"ours": [1.0, 2.0, 10.0], "lucidrains": [3.0, 6.0, 20.0], "huggingface": [1.0, 2.0, 5.0]}
    once = {"ours": 100.0, "lucidrains": 200.0, "huggingface": 100.0}
    setting = {"batch": 30}
    content = {
        "machine": {"device": "abacus", "cores": 2, "python": "3"},
        "training": {
            "setting": setting, "train_seconds": slow, "torch": "2", "peak_megabytes": once, "first_step_seconds": once
        },
        "sampling": {"16": slow},
        "quality": {"seconds": 1.0, "floor": 0.5, **{name: {"frechet": value} for name, value in once.items()}},
    }  # fmt: skip
    lines = table(content).splitlines()
    assert lines[0] == "Measured on abacus, 2 cores, Python 3, PyTorch 2."
    assert lines[4] == "| training, images/s | 15 | 5 | 15 | 3.00x, 1.00x |"
    assert lines[6] == "| peak memory of training, MB | 100 | 200 | 100 | 0.50x, 1.00x |"


def test_this_projects_task_trains_and_draws():
    task = Task(Setting(size=8, channels=1, dim=8, dim_mults=(1, 2), batch=4))
    task.train_step()
    first, second = task.sample(2, 2), task.sample(2, 2)
    assert (first.shape, first.dtype) == ((2, 1, 8, 8), torch.uint8)
    assert not torch.equal(first, second)
