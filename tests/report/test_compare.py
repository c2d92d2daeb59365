"""The page that compares runs is made of the store alone, and shows what differs between them."""

import shutil
from pathlib import Path

import mlflow
import pytest

from diffusion_core.errors import UserError
from diffusion_core.lineage.evaluation import Evaluation
from diffusion_core.metrics.estimate import Estimate, difference
from diffusion_core.registry.versions import recorded_evaluation
from diffusion_core.report.comparison import differing, floors, metric_cells
from diffusion_core.stages import compare
from diffusion_core.stages.paths import COMPARISON
from tests.data.test_report import CHROMIUM, Parsed
from tests.report.conftest import ON_CPU, shown


def client():
    return mlflow.MlflowClient(f"sqlite:///{Path.cwd()}/mlflow.db")


def page(*names):
    compare.run(ON_CPU, [*names])
    return Parsed(COMPARISON.read_text(encoding="utf-8"))


def words(parsed):
    return " ".join(" ".join(parsed.text).split())


def test_it_shows_samples_metrics_curves_and_what_differs(capsys):
    # The store alone has it.
    for folder in ("models", "samples", "metrics", "data"):
        shutil.rmtree(folder)
    parsed = page("1", "champion")
    text = words(parsed)
    assert capsys.readouterr().out.endswith(
        "plots/compare.html shows diffusion, version 1 and diffusion, version 2 (champion)\n"
    )
    assert len(parsed.all("img")) == 2
    # Three charts over images, three over seconds, and two lines in the legend.
    assert len(parsed.all("svg")) == 3 + 3 + 2
    assert "train.learning_rate 0.001 0.002" in text
    assert "train.batch_size" not in text
    first, second = (recorded_evaluation(client().get_model_version("diffusion", each)).estimates for each in "12")
    for name in first:
        assert name.replace("_", " ") in text
    more, width = difference(second["frechet"], first["frechet"])
    assert f"{more:+.3g} ± {width:.2g}" in text


def test_a_run_is_named_by_its_id_too():
    run = client().get_model_version("diffusion", "1").run_id
    text = words(page("champion", run))
    assert "diffusion, version 2 (champion) and diffusion, version 1" in text
    assert run in text


def test_a_run_of_another_registered_model_has_its_metrics():
    run = client().get_model_version("diffusion", "1").run_id
    compare.run(
        ON_CPU.model_copy(update={"registered_model": "other"}),
        [run, client().get_model_version("diffusion", "2").run_id],
    )
    text = words(Parsed(COMPARISON.read_text(encoding="utf-8")))
    assert "diffusion, version 1 and diffusion, version 2" in text
    frechet = recorded_evaluation(client().get_model_version("diffusion", "1")).estimates["frechet"]
    assert f"{frechet.value:.4g} ± {frechet.half_width:.2g}" in text
    assert f"{frechet.floor:.4g}" in text


def test_a_run_without_a_version_is_shown_with_what_it_has():
    made = client().create_run(client().get_run(client().get_model_version("diffusion", "1").run_id).info.experiment_id)
    client().log_param(made.info.run_id, "train.learning_rate", "0.003")
    text = words(page("1", made.info.run_id))
    assert f"diffusion, version 1 and {made.info.run_name}" in text
    assert "It has no samples." in text
    assert "train.learning_rate 0.001 0.003" in text


def test_samples_of_a_store_that_was_moved_are_shown(tmp_path, monkeypatch):
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for name in ("mlflow.db", "mlartifacts"):
        shutil.move(name, moved / name)
    monkeypatch.chdir(moved)
    assert len(page("1", "2").all("img")) == 2


def test_it_needs_nothing_else():
    parsed = page("1", "2")
    content = COMPARISON.read_text(encoding="utf-8")
    assert "default-src 'none'" in content
    assert "<script" not in content
    assert all(each["src"].startswith("data:image/") for each in parsed.all("img"))


def test_names_of_others_are_text():
    run = client().get_model_version("diffusion", "1").run_id
    client().set_tag(run, "git_commit", "<b>&{{ 7 * 7 }}")
    client().set_model_version_tag("diffusion", "1", "git_commit", "<b>&{{ 7 * 7 }}")
    page("1", "2")
    content = COMPARISON.read_text(encoding="utf-8")
    assert "&lt;b&gt;&amp;{{ 7 * 7 }}" in content
    assert "<b>&" not in content


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["1"], "compare takes 2 to 6 runs, and not 1"),
        ([str(number) for number in range(7)], "and not 7"),
        (["1", "9"], "diffusion has no version 9 in this store: its versions are 1, 2 "),
        (["1", "challenger"], "diffusion has no alias challenger in this store"),
        (["1", "0" * 32], "this store has no run 0{32}: name a version"),
        (["2", "champion"], r"version 2 and diffusion, version 2 \(champion\) are the same run"),
        (["1", "../x"], "has no alias x"),
    ],
)
def test_what_does_not_exist_is_told_and_no_page_is_left(names, message):
    with pytest.raises(UserError, match=message):
        compare.run(ON_CPU, names)
    assert not COMPARISON.exists()


def evaluation(value, key="k"):
    estimate = Estimate(value=value, replicates=(value, value + 1.0, value + 3.0), floor=0.0, ceiling=9.0)
    return Evaluation(key=key, counts={}, estimates={"frechet": estimate})


def test_metrics_of_other_images_or_seeds_have_no_difference():
    cells = metric_cells([evaluation(1.0), evaluation(3.0), evaluation(2.0, key="other"), None])["frechet"]
    # The replicates differ by the same number, so that the difference is certain.
    assert [cell.change for cell in cells] == ["", "+2 ± 0", "", ""]
    assert [cell.value.split()[0] for cell in cells] == ["1", "3", "2", "none"]
    assert metric_cells([None, evaluation(1.0)])["frechet"][1].change == ""


def test_the_value_of_real_images_is_shown_where_it_is_one():
    other = evaluation(3.0)
    moved = other.estimates["frechet"].model_copy(update={"floor": 0.5})
    assert floors([evaluation(1.0), None, other]) == {"frechet": "0"}
    assert floors([evaluation(1.0), other.model_copy(update={"estimates": {"frechet": moved}})]) == {
        "frechet": "differs"
    }


def test_options_that_differ_or_are_missing_are_listed():
    assert differing([{"a": "1", "b": "2"}, {"a": "1", "b": "3"}, {"a": "1"}]) == {"b": ["2", "3", "none"]}


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
@pytest.mark.parametrize("width", [390, 1200])
def test_a_browser_shows_it_on_a_phone_and_a_desk_without_scrolling_sideways(width, tmp_path):
    page("1", "2")
    scroll, broken = shown(COMPARISON, width, tmp_path)
    assert scroll <= width
    assert broken == 0
