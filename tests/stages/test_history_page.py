"""plots/history.html shows what became of each run by day, with the metrics of its version and links."""

import subprocess
from pathlib import Path

import pytest

from diffusion_core import registered
from diffusion_core.errors import UserError
from diffusion_core.registry.connection import connect
from diffusion_core.report.calendar import Night, months
from diffusion_core.stages import history, promote, publish, rollback
from diffusion_core.stages.paths import HISTORY
from tests.data.test_report import CHROMIUM, Parsed
from tests.registry import projects


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """A store with version 1 of the flow run `first`, a champion, in the project's folder."""
    folder = tmp_path_factory.mktemp("history")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("PREFECT__FLOW_RUN_ID", "first")
        projects.write_project(folder)
        environment = projects.new_environment(folder)
        publish.run(environment)
        promote.run(promote.PromoteSettings(), projects.SAMPLE, projects.EVALUATE, environment)
        yield environment


def run(number, outcome, day, sentence="Flow run encountered an exception", version=None):
    page = f"http://127.0.0.1:4200/runs/flow-run/{number}"
    return {
        "id": number,
        "time": f"{day}T02:00:00+00:00",
        "outcome": outcome,
        "sentence": sentence,
        "version": version,
        "page": page,
    }


RUNS = [
    run("first", "promoted", "2026-02-01", "promoted: version 1 is the champion now", 1),
    run("second", "unchanged", "2026-02-28", "unchanged: version 1 is the champion already", 1),
    run("third", "failed", "2026-03-01", "ingest: <b>no images</b> of version 1 of cats"),
]


def test_each_run_has_its_outcome_the_metrics_of_its_version_and_links(environment, monkeypatch, tmp_path, capsys):
    history.write_page(environment, RUNS)
    assert capsys.readouterr().out == f"history: {HISTORY} shows its runs and events: 3\n"
    parsed = Parsed(HISTORY.read_text(encoding="utf-8"))
    (version,) = connect(environment).search_model_versions("name = 'diffusion'")
    pages = [each["href"] for each in parsed.all("a")]
    assert sum(version.run_id in each for each in pages) == 2
    # In the calendar and in the list.
    assert [pages.count(each["page"]) for each in RUNS] == [2, 2, 2]
    content = HISTORY.read_text(encoding="utf-8")
    assert content.index("March 2026") < content.index("February 2026")
    frechet = f"{publish.measured(publish.model_digest(publish.MODELS)).estimates['frechet'].value:.4g}"
    assert content.count(f"</b>{frechet}</a>") == 2
    assert "<b>no images</b>" not in content


def test_a_version_leads_to_its_run_in_its_own_experiment_and_nothing_is_created(environment):
    before = len(connect(environment).search_experiments())
    history.write_page(environment.model_copy(update={"experiment": "another"}), RUNS)
    (version,) = connect(environment).search_model_versions("name = 'diffusion'")
    experiment = connect(environment).get_run(version.run_id).info.experiment_id
    assert f"/experiments/{experiment}/runs/{version.run_id}" in HISTORY.read_text(encoding="utf-8")
    assert len(connect(environment).search_experiments()) == before


def test_without_prefect_the_page_has_what_the_registry_knows_and_says_so(environment, capsys):
    history.write_page(environment, None)
    assert "because no Prefect server is configured: set PREFECT_API_URL" in capsys.readouterr().out
    content = HISTORY.read_text(encoding="utf-8")
    assert content.count('class="run promoted"') == 1
    with pytest.raises(UserError, match="has no history yet"):
        history.write_page(environment.model_copy(update={"registered_model": "other"}), [])


def test_what_no_run_did_is_shown_beside_the_runs(environment):
    before = projects.published_versions(environment)
    assert len(before) == 1
    with pytest.raises(UserError, match="has no champion before it"):
        rollback.run(environment, None)
    history.write_page(environment, RUNS[1:])
    # The promotion, of which Prefect knows no run any more.
    assert HISTORY.read_text(encoding="utf-8").count('class="run promoted"') == 1


def test_weeks_begin_on_monday_and_months_are_the_newest_first():
    nights = [
        Night("2026-02-28T23:30:00-02:00", "failed", "", {}, {}),
        Night("2026-02-01T02:00:00+00:00", "promoted", "", {}, {}),
    ]
    march, february = months(nights)
    assert (march.name, february.name) == ("March 2026", "February 2026")
    # The first of both months was a Sunday; the first run began in March by UTC.
    assert [week[6][0] for week in (march.weeks[0], february.weeks[0])] == [1, 1]
    assert march.weeks[0][6][1] == [nights[0]]
    assert february.weeks[0][6][1] == [nights[1]]


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_a_browser_shows_it(environment, tmp_path):
    history.write_page(environment, RUNS)
    picture = tmp_path / "page.png"
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--screenshot={picture}", "--window-size=1200,1500"]
    page = f"file://{Path.cwd() / HISTORY}"
    subprocess.run([CHROMIUM, *options, page], check=True, capture_output=True, timeout=60)
    assert picture.stat().st_size > 10_000


def test_a_rollback_is_shown_where_its_versions_run_is_known(environment, monkeypatch):
    projects.write_model(Path("models"), seed=1)
    projects.evaluate_model(Path())
    monkeypatch.setenv("PREFECT__FLOW_RUN_ID", "fourth")
    publish.run(environment)
    promote.run(promote.PromoteSettings(), projects.SAMPLE, projects.EVALUATE, environment)
    runs = [*RUNS, run("fourth", "promoted", "2026-03-02", "promoted: version 2 is the champion now", 2)]
    rollback.run(environment, None)
    history.write_page(environment, runs)
    content = HISTORY.read_text(encoding="utf-8")
    assert content.count('class="run rollback"') == 1
    assert content.count('class="run promoted"') == 2


def test_a_page_is_no_json():
    with pytest.raises(UserError, match="--page and --json exclude each other"):
        registered.history(as_json=True, page=True)
