import json
import re

import mlflow
import pytest

from diffusion_core.config.environment import Environment
from diffusion_core.config.settings import Comparison, EvaluateSettings, Limit, PromoteSettings, SampleSettings
from diffusion_core.errors import UserError
from diffusion_core.metrics.evaluation import Evaluator
from diffusion_core.registry.champions import DECISION, GATE, GENERATION
from diffusion_core.registry.connection import connect
from diffusion_core.registry.evaluation_table import TABLE
from diffusion_core.registry.versions import find_champion, recorded_evaluation
from diffusion_core.samplers.ddim import DDIM
from diffusion_core.samplers.guidance import Guidance
from diffusion_core.stages import promote, publish
from tests.registry import projects
from tests.registry.servers import dying_server

OPEN = PromoteSettings()
NOT_WORSE = PromoteSettings(champion={"frechet": Comparison(better="lower", margin=0.0)})


@pytest.fixture
def environment(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    projects.write_project(tmp_path)
    return projects.new_environment(tmp_path)


def publish_and_promote(environment, gate, sample=projects.SAMPLE, evaluate=projects.EVALUATE):
    publish.run(environment)
    promote.run(gate, sample, evaluate, environment)


def champion(environment):
    version = find_champion(connect(environment), environment.registered_model)
    return None if version is None else int(version.version)


def version(environment, number):
    return connect(environment).get_model_version(environment.registered_model, str(number))


def decision(folder):
    return json.loads((folder / ".cache/promotion.json").read_text())


def write_other_model(folder, sample=projects.SAMPLE, evaluate=projects.EVALUATE, **changes):
    """A second model, measured; `changes` overwrite its figures."""
    projects.write_model(folder / "models", seed=1)
    projects.evaluate_model(folder, sample, evaluate)
    projects.write_figures(folder, **changes)


def section(description):
    """What lies between heading and mark."""
    return description.partition("\n")[2].rpartition("\n")[0]


def test_the_first_model_within_its_limits_becomes_the_champion(environment, tmp_path, capsys):
    publish_and_promote(environment, PromoteSettings(limits={"precision": Limit(at_least=0.0)}))
    assert champion(environment) == 1
    assert version(environment, 1).tags["gate"] == "promoted"
    assert decision(tmp_path)["outcome"] == "promoted"
    assert "version 1 is the champion now" in capsys.readouterr().out


def test_version_run_and_model_are_described_by_the_decision_and_the_samples(environment, tmp_path):
    publish_and_promote(environment, OPEN)
    first = version(environment, 1)
    write_other_model(tmp_path, frechet=projects.read_figures(tmp_path)["frechet"] * 2)
    publish_and_promote(environment, NOT_WORSE)
    client, refused = connect(environment), version(environment, 2)
    picture = f"![samples](get-artifact?path=samples%2Fgrid.png&run_uuid={refused.run_id})"
    assert section(refused.description) == f"{decision(tmp_path)['sentence']}\n\n{picture}"
    assert "version 2 is refused" in client.get_run(refused.run_id).data.tags["mlflow.note.content"]
    # The champion's, as before.
    model = client.get_registered_model("diffusion").description
    assert section(model) == section(first.description)
    table = mlflow.artifacts.load_dict(f"{client.get_run(refused.run_id).info.artifact_uri}/{TABLE}")
    rows = {row[0]: dict(zip(table["columns"], row, strict=True)) for row in table["data"]}
    assert rows["frechet"]["champion"] == pytest.approx(rows["frechet"]["value"] / 2, rel=1e-4)


def test_what_people_wrote_around_a_section_stays(environment):
    publish_and_promote(environment, OPEN)
    client, first = connect(environment), version(environment, 1)
    model = client.get_registered_model("diffusion").description
    client.update_model_version("diffusion", "1", f"Mine.\n\n{first.description}\n\nMy notes.")
    client.update_registered_model("diffusion", description=f"Mine.\n\n{model}\n\nMy notes.")
    publish_and_promote(environment, OPEN)
    assert version(environment, 1).description == f"Mine.\n\n{first.description}\n\nMy notes."
    assert client.get_registered_model("diffusion").description == f"Mine.\n\n{model}\n\nMy notes."
    # Without the marks, all of it is theirs.
    client.update_model_version("diffusion", "1", "### Decision\nIt is mine.")
    publish_and_promote(environment, OPEN)
    assert version(environment, 1).description == f"### Decision\nIt is mine.\n\n{first.description}"


def test_the_table_keeps_limits_and_champion_when_a_champion_is_measured_again(environment, tmp_path):
    publish_and_promote(environment, OPEN)
    frechet = projects.read_figures(tmp_path)["frechet"]
    gate = NOT_WORSE.model_copy(update={"limits": {"frechet": Limit(at_most=1e9)}})
    write_other_model(tmp_path, frechet=frechet / 2)
    publish_and_promote(environment, gate)
    projects.write_figures(tmp_path, frechet=frechet / 4)
    publish_and_promote(environment, gate)
    run = connect(environment).get_run(version(environment, 2).run_id)
    table = mlflow.artifacts.load_dict(f"{run.info.artifact_uri}/{TABLE}")
    row = next(dict(zip(table["columns"], row, strict=True)) for row in table["data"] if row[0] == "frechet")
    assert row["value"] == pytest.approx(frechet / 4, rel=1e-4)
    assert (row["at_most"], row["champion"]) == (1e9, pytest.approx(frechet, rel=1e-4))


def test_a_model_beyond_a_limit_is_refused_with_the_amount(environment, tmp_path, capsys):
    projects.write_figures(tmp_path, frechet=12.5)
    publish_and_promote(environment, PromoteSettings(limits={"frechet": Limit(at_most=10.0)}))
    assert champion(environment) is None
    refusal = "frechet is 12.5, 2.5 above 10, its limit"
    assert decision(tmp_path)["reasons"] == [refusal]
    assert refusal in capsys.readouterr().out
    refused = version(environment, 1)
    assert refused.tags["gate"] == "refused"
    assert refusal in refused.description


def test_a_refusal_leaves_the_champion_untouched(environment, tmp_path):
    publish_and_promote(environment, OPEN)
    before = version(environment, 1)
    write_other_model(tmp_path, frechet=projects.read_figures(tmp_path)["frechet"] * 2)
    publish_and_promote(environment, NOT_WORSE)
    assert champion(environment) == 1
    assert version(environment, 1) == before
    assert decision(tmp_path)["outcome"] == "refused"
    assert decision(tmp_path)["grounds"]["champion"] == 1


def test_a_better_model_takes_the_alias_and_says_whose_it_was(environment, tmp_path):
    publish_and_promote(environment, OPEN)
    write_other_model(tmp_path, frechet=projects.read_figures(tmp_path)["frechet"] / 2)
    publish_and_promote(environment, NOT_WORSE)
    assert champion(environment) == 2
    assert version(environment, 2).tags["champion_before"] == "1"


def test_a_champion_of_another_process_is_not_replaced_by_a_worse_model(environment, tmp_path, monkeypatch):
    """The other one promotes while the champion before it is compared."""
    publish_and_promote(environment, OPEN)
    frechet, decide = projects.read_figures(tmp_path)["frechet"], promote.Decision.on
    write_other_model(tmp_path, frechet=frechet / 4)
    publish.run(environment)
    projects.write_model(tmp_path / "models", seed=2)
    projects.evaluate_model(tmp_path)
    projects.write_figures(tmp_path, frechet=frechet / 2)
    publish.run(environment)
    compared = []

    def decide_late(grounds):
        compared.append(grounds.champion_evaluation.estimates["frechet"].value)
        connect(environment).set_registered_model_alias(environment.registered_model, "champion", "2")
        return decide(grounds)

    monkeypatch.setattr(promote.Decision, "on", decide_late)
    promote.run(NOT_WORSE, projects.SAMPLE, projects.EVALUATE, environment)
    assert compared == pytest.approx([frechet, frechet / 4])
    assert champion(environment) == 2
    assert version(environment, 3).tags["gate"] == decision(tmp_path)["outcome"] == "refused"
    assert decision(tmp_path)["grounds"]["champion"] == 2


def test_the_champion_is_not_compared_with_itself(environment, tmp_path):
    publish_and_promote(environment, OPEN)
    before = version(environment, 1)
    publish_and_promote(environment, PromoteSettings(limits={"frechet": Limit(at_most=0.0)}))
    assert champion(environment) == 1
    assert version(environment, 1) == before
    assert decision(tmp_path)["outcome"] == "unchanged"


def test_figures_of_the_same_key_are_taken_as_they_were_recorded(environment, tmp_path, monkeypatch):
    publish_and_promote(environment, OPEN)
    write_other_model(tmp_path)

    def measure(*_):
        raise AssertionError("the champion was measured again")

    monkeypatch.setattr(Evaluator, "evaluate", measure)
    publish_and_promote(environment, NOT_WORSE)


def test_a_champion_of_another_reference_is_measured_against_the_new_one(environment, tmp_path):
    publish_and_promote(environment, OPEN)
    before = version(environment, 1)
    projects.write_reference(tmp_path / "data/reference", seed=1)
    # What the champion's figure is against the new reference.
    projects.evaluate_model(tmp_path)
    figure = projects.read_figures(tmp_path)["frechet"]
    assert figure != recorded_evaluation(before).figures["frechet"]

    write_other_model(tmp_path, frechet=figure * 1.001)
    publish_and_promote(environment, NOT_WORSE)
    assert champion(environment) == 1
    assert f"worse than the champion's {figure:.4g}, " in decision(tmp_path)["reasons"][0]
    assert version(environment, 1) == before

    projects.write_figures(tmp_path, frechet=figure * 0.999)
    publish_and_promote(environment, NOT_WORSE)
    assert champion(environment) == 2


def test_a_champion_is_sampled_with_the_candidates_seed(environment, tmp_path):
    publish_and_promote(environment, OPEN)
    reasons = []
    for seed in (projects.SAMPLE.seed + 1, projects.SAMPLE.seed + 2):
        sample = SampleSettings(count=projects.SAMPLE.count, seed=seed, sampler=projects.SAMPLE.sampler)
        write_other_model(tmp_path, sample=sample, frechet=1e9)
        publish_and_promote(environment, NOT_WORSE, sample=sample)
        reasons += decision(tmp_path)["reasons"]
    assert reasons[0] != reasons[1]


# Another key than the champion's, so that it has to be measured.
OTHERWISE = EvaluateSettings(seed=1)


@pytest.mark.parametrize(("image_size", "channels"), [((16, 16), 1), ((8, 16), 1), ((16, 8), 1), ((8, 8), 4)])
def test_a_champion_of_another_shape_is_told(environment, tmp_path, image_size, channels):
    publish_and_promote(environment, OPEN)
    # The candidate's extractor takes images of another shape.
    projects.write_reference(tmp_path / "data/reference", seed=1, image_size=image_size, channels=channels)
    projects.write_model(tmp_path / "models", seed=1, image_size=image_size, channels=channels)
    projects.evaluate_model(tmp_path)
    wanted = re.escape(str((*image_size, channels)))
    with pytest.raises(UserError, match=rf"\(8, 8, 1\).*{wanted}.*DIFFUSION_REGISTERED_MODEL"):
        publish_and_promote(environment, NOT_WORSE)
    assert champion(environment) == 1


@pytest.mark.parametrize(
    ("champion_s", "changes", "message"),
    [
        ({"timesteps": 8}, {"sampler": DDIM(steps=9)}, "steps is 9.*8 timesteps"),
        ({"num_classes": None}, {"guidance": Guidance(scale=2.0)}, "guidance.scale is 2.0.*classes"),
    ],
)
def test_a_champion_that_cannot_be_sampled_alike_is_told(environment, tmp_path, champion_s, changes, message):
    projects.write_model(tmp_path / "models", **champion_s)
    projects.evaluate_model(tmp_path)
    publish_and_promote(environment, OPEN)
    sample = projects.SAMPLE.model_copy(update=changes)
    projects.write_model(tmp_path / "models", seed=1, timesteps=20)
    projects.evaluate_model(tmp_path, sample)
    with pytest.raises(UserError, match=rf"the champion, version 1, cannot be sampled.*{message}.*alias champion"):
        publish_and_promote(environment, NOT_WORSE, sample=sample)
    assert champion(environment) == 1


def test_a_model_that_is_not_published_is_told(environment):
    with pytest.raises(UserError, match="python -m diffusion_core publish"):
        promote.run(OPEN, projects.SAMPLE, projects.EVALUATE, environment)


@pytest.mark.parametrize(
    ("sample", "evaluate"),
    [
        (projects.SAMPLE, OTHERWISE),
        (projects.SAMPLE.model_copy(update={"seed": projects.SAMPLE.seed + 1}), projects.EVALUATE),
    ],
)
def test_figures_by_other_params_than_the_present_ones_are_told(environment, sample, evaluate):
    publish.run(environment)
    with pytest.raises(UserError, match="python -m diffusion_core publish"):
        promote.run(OPEN, sample, evaluate, environment)
    assert champion(environment) is None


def test_figures_by_another_reference_than_the_present_one_are_told(environment, tmp_path):
    publish.run(environment)
    projects.write_reference(tmp_path / "data/reference", seed=1)
    with pytest.raises(UserError, match="data/reference.*python -m diffusion_core publish"):
        promote.run(OPEN, projects.SAMPLE, projects.EVALUATE, environment)
    assert champion(environment) is None


def test_the_alias_moves_after_the_decision_and_before_what_says_that_it_has_moved(environment, monkeypatch):
    publish.run(environment)
    client = type(connect(environment))
    calls = []
    for name in ("set_model_version_tag", "set_registered_model_alias"):
        original = getattr(client, name)

        def record(self, *arguments, original=original):
            calls.append(arguments[2] if len(arguments) == 4 else "the alias")
            return original(self, *arguments)

        monkeypatch.setattr(client, name, record)
    promote.run(OPEN, projects.SAMPLE, projects.EVALUATE, environment)
    assert [call.partition(".")[0] for call in calls] == [GATE, DECISION, "the alias", "event", GENERATION]


def test_a_missing_model_is_told(environment, tmp_path):
    (tmp_path / "models/model.safetensors").unlink()
    with pytest.raises(UserError, match=r"model\.safetensors is missing"):
        promote.run(OPEN, projects.SAMPLE, projects.EVALUATE, environment)


def test_a_server_that_dies_is_told(environment, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with dying_server() as address, pytest.raises(UserError, match=rf"{address} stopped answering.*run this again"):
        promote.run(OPEN, projects.SAMPLE, projects.EVALUATE, Environment(tracking_uri=address))
