from pathlib import Path

import pytest
import yaml

from diffusion_core.config.settings import EvaluateSettings
from diffusion_core.lineage import evaluation, provenance, samples
from diffusion_core.lineage.evaluation import MEASURING_CODE, evaluation_key
from diffusion_core.lineage.provenance import code_digest
from diffusion_core.lineage.samples import SAMPLING_CODE, sampling_key
from tests.registry.projects import EVALUATE, SAMPLE


def test_a_key_depends_on_all_that_figures_depend_on():
    other = SAMPLE.model_copy(update={"seed": SAMPLE.seed + 1})
    keys = [
        evaluation_key("r", sampling_key(SAMPLE), EVALUATE),
        evaluation_key("s", sampling_key(SAMPLE), EVALUATE),
        evaluation_key("r", sampling_key(other), EVALUATE),
        evaluation_key("r", sampling_key(SAMPLE), EvaluateSettings(seed=1)),
    ]
    assert len(set(keys)) == 4
    assert evaluation_key("r", sampling_key(SAMPLE), EVALUATE) == keys[0]


def test_other_code_makes_another_key(monkeypatch):
    before = sampling_key(SAMPLE), evaluation_key("r", "s", EVALUATE)
    for module in (evaluation, samples):
        monkeypatch.setattr(module, "code_digest", lambda *names: "other code")
    assert sampling_key(SAMPLE) != before[0]
    assert evaluation_key("r", "s", EVALUATE) != before[1]


def test_a_digest_of_code_is_of_every_file_and_its_name(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "PACKAGE", tmp_path)
    (tmp_path / "one.py").write_text("a")
    (tmp_path / "many" / "below").mkdir(parents=True)
    (tmp_path / "many" / "below" / "two.py").write_text("b")
    digests = {code_digest("one.py", "many")}
    (tmp_path / "many" / "below" / "two.py").write_text("c")
    digests.add(code_digest("one.py", "many"))
    (tmp_path / "many" / "below" / "two.py").rename(tmp_path / "many" / "two.py")
    digests.add(code_digest("one.py", "many"))
    (tmp_path / "one.py").write_text("d")
    digests.add(code_digest("one.py", "many"))
    assert len(digests) == 4
    (tmp_path / "elsewhere.py").write_text("e")
    assert code_digest("one.py", "many") in digests


@pytest.mark.parametrize(("stage", "code"), [("sample", SAMPLING_CODE), ("evaluate", MEASURING_CODE)])
def test_dvc_runs_a_stage_again_when_the_code_in_its_key_changes(stage, code):
    deps = yaml.safe_load(Path("dvc.yaml").read_text(encoding="utf-8"))["stages"][stage]["deps"]
    assert {f"diffusion_core/{name}" for name in code} <= set(deps)
