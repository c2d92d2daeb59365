"""The alias champion moves back only as it is told, and what it leaves stays rejected."""

import json
import shutil
from pathlib import Path

import pytest

from diffusion_core.config.params import load_settings
from diffusion_core.config.settings import Comparison, Limit, PromoteSettings
from diffusion_core.errors import UserError
from diffusion_core.registry import champions
from diffusion_core.registry.champions import DECISION, GENERATION, REJECTED, recorded_decision
from diffusion_core.registry.connection import connect
from diffusion_core.registry.versions import find_champion
from diffusion_core.stages import check, decide, history, promote, publish, rollback
from tests.registry import projects

OPEN = PromoteSettings()
PREPARE = projects.PrepareSettings(image_size=8, color="grayscale")


@pytest.fixture
def environment(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    projects.write_project(tmp_path)
    return projects.new_environment(tmp_path)


def publish_and_promote(environment, gate=OPEN):
    publish.run(environment)
    promote.run(gate, projects.SAMPLE, projects.EVALUATE, environment)


def write_model(folder, seed, **values):
    projects.write_model(folder / "models", seed=seed)
    projects.evaluate_model(folder)
    projects.write_figures(folder, **values)


@pytest.fixture
def two(environment, tmp_path):
    """Two versions; the second is the champion and lies in models/."""
    publish_and_promote(environment)
    write_model(tmp_path, 1)
    publish_and_promote(environment)
    return environment


def champion(environment):
    version = find_champion(connect(environment), environment.registered_model)
    return None if version is None else int(version.version)


def version(environment, number):
    return connect(environment).get_model_version(environment.registered_model, str(number))


def outcome(tmp_path):
    return json.loads((tmp_path / ".cache/promotion.json").read_text())["outcome"]


def test_a_rolled_back_version_is_not_promoted_again_until_someone_says_otherwise(two, tmp_path, capsys):
    rollback.run(two, None)
    assert champion(two) == 1
    assert "version 1 is the champion by a rollback; version 2 is rejected" in capsys.readouterr().out
    publish_and_promote(two)
    assert (champion(two), outcome(tmp_path)) == (1, "refused")
    assert "`diffusion rollback 2` makes it the champion again" in capsys.readouterr().out
    rollback.run(two, 2)
    assert champion(two) == 2
    assert REJECTED in version(two, 1).tags
    assert REJECTED not in version(two, 2).tags
    publish_and_promote(two)
    assert (champion(two), outcome(tmp_path)) == (2, "unchanged")


def test_without_the_mark_the_next_run_would_undo_it(two, tmp_path, monkeypatch):
    """The control."""
    rollback.run(two, None)
    monkeypatch.setattr(promote, "rejection", lambda *_: None)
    publish_and_promote(two)
    assert champion(two) == 2


def test_so_it_is_where_the_alias_was_moved_in_mlflow(two, tmp_path, capsys):
    connect(two).set_registered_model_alias(two.registered_model, "champion", "1")
    publish_and_promote(two)
    assert (champion(two), outcome(tmp_path)) == (1, "refused")
    assert "it was the champion, and the alias was moved from it to version 1" in capsys.readouterr().out


def test_a_champion_that_lost_to_a_later_one_may_come_back(two, tmp_path):
    """The control of the test above: the gate moved the alias from version 1."""
    write_model(tmp_path, 0)
    publish_and_promote(two)
    assert (champion(two), outcome(tmp_path)) == (1, "promoted")


@pytest.mark.parametrize(
    ("number", "sentence"),
    [(2, "version 2 of diffusion is the champion already"), (9, "diffusion has no version 9 in this store")],
)
def test_a_rollback_to_nothing_is_refused_and_the_alias_stays(two, number, sentence):
    before = version(two, 2)
    with pytest.raises(UserError, match=sentence):
        rollback.run(two, number)
    assert champion(two) == 2
    assert version(two, 2) == before


def test_without_a_champion_or_one_before_it_is_told(environment):
    with pytest.raises(UserError, match="diffusion has no champion: promote a version first"):
        rollback.run(environment, None)
    publish_and_promote(environment)
    with pytest.raises(UserError, match="version 1 of diffusion has no champion before it: name a version"):
        rollback.run(environment, None)
    assert champion(environment) == 1


def test_a_version_whose_files_are_gone_is_not_rolled_back_to(two, tmp_path):
    shutil.rmtree(tmp_path / "mlartifacts")
    before = version(two, 2)
    with pytest.raises(UserError, match=r"the files of version 1 of diffusion are missing, or .*: restore"):
        rollback.run(two, None)
    assert champion(two) == 2
    assert version(two, 2) == before


def test_a_second_rollback_goes_further_back(two, tmp_path):
    """Also where a refusal came between, which names no champion before."""
    write_model(tmp_path, 2)
    publish_and_promote(two)
    write_model(tmp_path, 1)
    publish_and_promote(two, PromoteSettings(limits={"frechet": Limit(at_most=0.0)}))
    rollback.run(two, None)
    assert champion(two) == 2
    rollback.run(two, None)
    assert champion(two) == 1


def test_an_alias_moved_by_another_process_ends_a_rollback_and_marks_nothing(two, monkeypatch):
    before = version(two, 2)
    monkeypatch.setattr(champions, "_is_champion", lambda *_: False)
    with pytest.raises(UserError, match="another process has moved the alias of diffusion meanwhile"):
        rollback.run(two, None)
    assert champion(two) == 2
    assert version(two, 2) == before


@pytest.mark.parametrize("call", [1, 2, 3, 4, 5, 6])
def test_a_promotion_that_is_killed_is_completed_by_the_next_run_and_rejects_nothing(
    environment, tmp_path, monkeypatch, call
):
    """Killed before each request that changes the store."""
    publish_and_promote(environment)
    write_model(tmp_path, 1)
    publish.run(environment)
    client, calls = type(connect(environment)), []
    with monkeypatch.context() as patch:
        for name in ("set_model_version_tag", "set_registered_model_alias"):
            original = getattr(client, name)

            def dying(*arguments, original=original):
                calls.append(arguments)
                if len(calls) == call:
                    raise KeyboardInterrupt
                return original(*arguments)

            patch.setattr(client, name, dying)
        with pytest.raises(KeyboardInterrupt):
            promote.run(OPEN, projects.SAMPLE, projects.EVALUATE, environment)
    promote.run(OPEN, projects.SAMPLE, projects.EVALUATE, environment)
    assert champion(environment) == 2
    assert version(environment, 2).tags[GENERATION] == "2"
    assert json.loads(version(environment, 2).tags[DECISION])["outcome"] == "promoted"
    rollback.run(environment, None)
    assert champion(environment) == 1


def test_the_same_refusal_is_one_event(two, tmp_path, capsys):
    write_model(tmp_path, 2)
    for _ in range(2):
        publish_and_promote(two, PromoteSettings(limits={"frechet": Limit(at_most=0.0)}))
    capsys.readouterr()
    history.run(two, as_json=True)
    assert [event["version"] for event in json.loads(capsys.readouterr().out)["events"]] == [1, 2, 3]


def test_a_champion_of_former_code_is_shown_and_compared_with(environment, tmp_path, capsys):
    """Its version has no tag of this code's."""
    publish.run(environment)
    client, name = connect(environment), environment.registered_model
    client.delete_model_version_tag(name, "1", "evaluation")
    client.set_registered_model_alias(name, "champion", "1")
    capsys.readouterr()
    history.run(environment, as_json=False)
    assert capsys.readouterr().out == "history: version 1 is the champion of diffusion\n"
    write_model(tmp_path, 1)
    publish_and_promote(environment, NOT_WORSE)
    assert recorded_decision(version(environment, 2)).grounds.champion_evaluation is not None


def test_a_training_does_not_wait_for_a_store_that_is_down(capsys):
    environment = projects.Environment(tracking_uri="http://127.0.0.1:1")
    checked(environment)
    assert "check: the champion is not checked, because the tracking store" in capsys.readouterr().out


def test_the_history_says_who_was_champion_when_and_why(two, tmp_path, capsys):
    write_model(tmp_path, 2, frechet=99.0)
    publish_and_promote(two, PromoteSettings(limits={"frechet": Limit(at_most=10.0)}))
    rollback.run(two, 1)
    capsys.readouterr()
    history.run(two, as_json=False)
    lines = [line.partition(" UTC  ")[2] for line in capsys.readouterr().out.splitlines()]
    assert lines[:4] == [
        "version 1 is the champion now, and there was none",
        "version 2 is the champion now, and it was version 1",
        "version 3 is refused and version 2 stays the champion: frechet is 99, 89 above 10, its limit",
        "version 1 is the champion by a rollback; version 2 is rejected",
    ]
    history.run(two, as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert found["champion"] == 1
    assert [event["version"] for event in found["events"]] == [1, 2, 3, 1]
    times = [event["time"] for event in found["events"]]
    assert times == sorted(times)


def test_without_a_history_it_is_told(environment):
    with pytest.raises(UserError, match="diffusion has no history yet: publish a model"):
        history.run(environment, as_json=False)


def test_a_decision_is_made_again_from_the_registry_alone(environment, tmp_path, monkeypatch, capsys):
    publish_and_promote(environment)
    write_model(tmp_path, 1, frechet=projects.read_figures(tmp_path)["frechet"] * 2)
    publish_and_promote(environment, PromoteSettings(champion={"frechet": Comparison(better="lower", margin=0.5)}))
    recorded = (tmp_path / ".cache/promotion.json").read_text()
    assert json.loads(recorded)["outcome"] == "refused"
    # On another machine, which has the store alone.
    empty = tmp_path / "elsewhere"
    empty.mkdir()
    monkeypatch.chdir(empty)
    capsys.readouterr()
    decide.run(environment, 2, as_json=True)
    assert capsys.readouterr().out == recorded
    run = connect(environment).get_run(version(environment, 2).run_id)
    files = connect(environment).list_artifacts(run.info.run_id, "gate")
    assert [file.path for file in files] == ["gate/version-1.json", "gate/version-2.json"]


def test_a_decision_that_was_changed_by_hand_is_noticed(environment):
    publish_and_promote(environment)
    client, name = connect(environment), environment.registered_model
    changed = recorded_decision(version(environment, 1)).model_copy(update={"outcome": "refused"})
    client.set_model_version_tag(name, "1", DECISION, changed.model_dump_json())
    with pytest.raises(UserError, match="the decision on version 1 made again differs from the recorded"):
        decide.run(environment, 1, as_json=False)
    client.delete_model_version_tag(name, "1", DECISION)
    with pytest.raises(UserError, match="version 1 has no decision with its grounds"):
        decide.run(environment, 1, as_json=False)


NOT_WORSE = PromoteSettings(champion={"frechet": Comparison(better="lower")})


def checked(environment, prepare=PREPARE, gate=NOT_WORSE, parent=None):
    train = load_settings(Path(__file__).parents[2] / "params.yaml").train.model_copy(update={"parent": parent})
    check.run(prepare, train, projects.SAMPLE, gate, environment)


def test_a_model_to_begin_from_that_is_not_there_is_told_before_dvc_removes_the_last_one(environment):
    publish_and_promote(environment)
    checked(environment, parent="champion")
    sentence = (
        "train.from is champ: diffusion has no alias champ in this store: its versions are 1 (champion); there is no"
        " folder champ either"
    )
    with pytest.raises(UserError) as raised:
        checked(environment, parent="champ")
    assert str(raised.value) == sentence


def test_a_champion_that_cannot_be_compared_with_is_told_before_the_training(environment, tmp_path, capsys):
    checked(environment)
    assert "there is no champion yet" in capsys.readouterr().out
    publish_and_promote(environment)
    checked(environment)
    assert "the champion, version 1, can be compared with" in capsys.readouterr().out
    larger = PREPARE.model_copy(update={"image_size": 16})
    with pytest.raises(UserError, match=r"makes images of \(8, 8, 1\) and the dataset's are of \(16, 16, 1\)"):
        checked(environment, larger)
    checked(environment, larger, OPEN)
    assert "compares nothing with the champion" in capsys.readouterr().out
    shutil.rmtree(tmp_path / "mlartifacts")
    with pytest.raises(UserError, match=r"the files of version 1 of diffusion are missing, or .*`diffusion rollback`"):
        checked(environment)


def test_files_of_a_store_that_was_moved_are_found_again(environment, tmp_path, monkeypatch):
    publish_and_promote(environment)
    since = version(environment, 1).tags[GENERATION]
    moved = tmp_path.with_name("moved")
    tmp_path.rename(moved)
    monkeypatch.chdir(moved)
    there = type(environment)(tracking_uri=f"sqlite:///{moved}/mlflow.db", device="cpu")
    checked(there)
    assert version(there, 1).tags[GENERATION] == since
    # The control: without its artifacts beside it, the files are lost.
    (moved / "mlartifacts").rename(moved / "away")
    with pytest.raises(UserError, match="are missing"):
        checked(there)
