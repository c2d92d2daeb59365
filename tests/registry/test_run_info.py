import pytest

from diffusion_core.errors import UserError
from diffusion_core.registry.run_info import RunInfo


def test_what_is_written_is_read(tmp_path):
    info = RunInfo(run_id="r", dataset_md5=None, dataset_digest="d", git_commit=None, git_dirty=None, params_digest="p")
    info.write(tmp_path / "run_info.json")
    assert RunInfo.read(tmp_path / "run_info.json") == info


@pytest.mark.parametrize("content", ["", "{}", '{"run_id": 1}', "[]", "\xff"])
def test_anything_else_is_told_with_its_remedy(tmp_path, content):
    file = tmp_path / "run_info.json"
    file.write_text(content, encoding="latin-1")
    with pytest.raises(UserError, match=r"run_info\.json is damaged: .*dvc repro"):
        RunInfo.read(file)
