import copy
from pathlib import Path

import pytest
import yaml

from diffusion_core.choices import choices
from diffusion_core.config.params import load_settings
from diffusion_core.errors import UserError
from diffusion_core.metrics.figures import MetricChoice

PARAMS = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))


def changed(tmp_path, key, value):
    content = copy.deepcopy(PARAMS)
    if key.startswith("train.network.c"):
        content["sample"]["guidance"]["scale"] = 2.0
    place = content
    *parents, last = key.split(".")
    for part in parents:
        place = place[part]
    if value is None:
        del place[last]
    else:
        place[last] = value
    file = tmp_path / "params.yaml"
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    return file


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("train.learning_rat", 0.1, "unknown key train.learning_rat: did you mean learning_rate?"),
        ("trian", {}, "unknown key trian: did you mean train?"),
        ("train.zzz", 1, "unknown key train.zzz: remove it or correct its spelling"),
        ("train.network.dim_mult", [1], "unknown key train.network.dim_mult: did you mean dim_mults?"),
        ("promote.limits", {"frechet": {"at_mots": 1.0}}, "key promote.limits.frechet.at_mots: did you mean at_most?"),
        ("train.images", "many", r"train.images is 'many'"),
        ("train.batch_size", 0, r"train.batch_size is 0"),
        ("train.images", None, "train.images is missing: add it"),
        ("train.accumulate", 7, "accumulate is 7; it must divide batch_size, which is 64"),
        ("train.process.objective", "pred_score", r"is 'pred_score': did you mean pred_noise\? it must be one of pr"),
        ("train.process.objective", "predv", r"train.process.objective is 'predv': did you mean pred_v\?"),
        ("train.process.beta_schedule", {"kind": "os.system"}, "beta_schedule.kind is 'os.system': it must be"),
        ("sample.sampler", {"kind": "ddim", "eta": 2.0}, r"eta is 2.0; it must lie in \[0, 1\]"),
        ("sample.sampler", {"kind": "ddim", "step": 9}, "unknown key sample.sampler.step: did you mean steps?"),
        ("evaluate.metrics", [{"kind": "kernel", "size": 9}], "unknown key evaluate.metrics.0.size:"),
        ("evaluate.metrics", [], "evaluate.metrics is "),
        ("evaluate.metrics", [{"kind": "kernel"}, {"kind": "kernel"}], "evaluate: metrics gives kernel"),
        ("evaluate.seed", -1, "evaluate.seed is -1"),
        ("reference.seed", 2**63, "reference.seed is 9223372036854775808"),
        ("sample.count", 1, "sample.count is 1"),
        ("prepare.validation_fraction", 0.0, "prepare.validation_fraction is 0.0"),
        ("prepare.image_size", 4, "prepare.image_size is 4; evaluation needs at least 8 on each side"),
        ("prepare.image_size", [6, 16], r"prepare.image_size is \[6, 16\]; evaluation needs at least 8 on each side"),
        ("prepare.image_size", [16, 6], r"prepare.image_size is \[16, 6\]; evaluation needs at least 8 on each side"),
        ("prepare.image_size", "8", r"prepare.image_size is '8': write the pixels of a side, or \[height, width\]$"),
        ("prepare.image_size", True, "prepare.image_size is true: write the pixels"),
        ("prepare.image_size", 8.0, "prepare.image_size is 8.0: write the pixels"),
        ("prepare.image_size", 0, "prepare.image_size is 0: write the pixels"),
        ("prepare.image_size", [8], r"prepare.image_size is \[8\]: write the pixels"),
        ("prepare.image_size", [8, 8, 3], r"prepare.image_size is \[8, 8, 3\]: write the pixels"),
        ("prepare.image_size", [8, -8], r"prepare.image_size is \[8, -8\]: write the pixels"),
        ("prepare.image_size", ["8", 8], r"prepare.image_size is \['8', 8\]: write the pixels"),
        ("prepare.color", "cmyk", "prepare.color is 'cmyk': it must be one of grayscale, rgb, rgba$"),
        ("prepare.color", "RGB", r"prepare.color is 'RGB': did you mean rgb\? it must be one of grayscale"),
        ("prepare.color", 3, "prepare.color is 3: it must be one of grayscale"),
        ("prepare.color_profile", "ingore", r"color_profile is 'ingore': did you mean ignore\?"),
        ("train.network.class_conditional", False, "guidance.scale is 2.0; it must be 1.0.*class_conditional is"),
        ("train.network.cond_drop_prob", 0.0, "guidance.scale is 2.0; it must be 1.0.*cond_drop_prob is 0"),
        ("train.process.weighting", {"kind": "min_snr", "gamma": float("inf")}, "train.process.weighting.gamma is inf"),
        ("train.process.beta_schedule", {"kind": "sigmoid", "start": -4.0, "tau": 0.1}, "beta_schedule begins with 0"),
        ("sample.sampler", {"kind": "ddim", "spacing": "cubic"}, "sample.sampler.spacing is 'cubic': it must be"),
        ("sample.sampler", {"kind": "ddim", "spacing": "trailling"}, r"is 'trailling': did you mean trailing\?"),
        ("sample.sampler", {"kind": "heun", "sigma_min": 2.0, "sigma_max": 1.0}, "must be 0 < sigma_min < sigma_max"),
        ("sample.guidance", {"scale": -1.0}, r"guidance.scale is -1.0; it must be at least 0"),
        ("sample.guidance", {"scal": 1.0}, "unknown key sample.guidance.scal: did you mean scale?"),
        ("sample.guidance.interval", [2.0, 1.0], r"guidance.interval is \(2.0, 1.0\); it must be two rising"),
        ("train.process.loss", {"kind": "l3"}, r"train.process.loss.kind is 'l3': it must be one of l2, l1, huber"),
        ("sample.sampler", {"kind": "hun", "steps": 5}, r"kind is 'hun': did you mean heun\?"),
        ("sample.sampler", {"kind": "os.system"}, r"sampler.kind is 'os.system': it must be one of ddpm"),
        ("evaluate.metrics", [{"kind": "kernal"}], r"evaluate.metrics.0.kind is 'kernal': did you mean kernel\?"),
        ("evaluate.metrics", [{"kind": "Frechett"}], r"metrics.0.kind is 'Frechett': did you mean frechet\?"),
        ("ingest.source", {"kind": "foldr"}, r"ingest.source.kind is 'foldr': did you mean folder\?"),
        ("train.process.weighting", {"kind": "min-snr"}, r"weighting.kind is 'min-snr': did you mean min_snr\?"),
        ("evaluate.metrics", [{"kind": "recall"}], r"'recall': did you mean precision_recall\? it must .*_recall$"),
        ("sample.sampler", {"steps": 9}, "sample.sampler.kind is missing: add it"),
        ("train.process.zero_terminal_snr", True, "the weighting min_snr, which gives weight 0 to the last timestep"),
        ("train.process.vb_loss_weight", -1.0, "train.process.vb_loss_weight is -1.0"),
        ("train.2026-11-24", 1, "unknown key train.2026-11-24"),
        ("train.images", True, "train.images is true"),
        ("train.images", "32000", "train.images is '32000'"),
        ("train.images", 32000.0, "train.images is 32000.0"),
        ("train.learning_rate", float("nan"), "train.learning_rate is nan"),
        ("train.horizontal_flip", 1, "train.horizontal_flip is 1"),
        ("promote.limits", {"fid": {"at_most": 1.0}}, "promote.limits names fid.*: use one of .*frechet_ratio"),
        ("promote.limits", {"frechet_ration": {"at_most": 1.0}}, r"did you mean frechet_ratio\? use one of"),
        ("promote.champion", {"recal": {"better": "lower"}}, r"promote.champion names recal,.* did you mean recall\?"),
        ("promote.champion", {"recall": {"better": "hihger"}}, r"recall.better is 'hihger': did you mean higher\?"),
        ("promote.champion", {"fid": {"better": "lower"}}, "promote.champion names fid"),
        ("sample.sampler", {"kind": "ddim", "steps": 2000}, "sample.sampler.*steps is 2000.*1000 timesteps"),
        ("prepare.image_size", 9, "prepare.image_size is 9; .* train.network.dim_mults each side .*multiple of 2"),
        ("prepare.image_size", [9, 8], r"prepare.image_size is \[9, 8\]; .* each side must be a multiple of 2"),
        ("prepare.image_size", [8, 9], r"prepare.image_size is \[8, 9\]; .* each side must be a multiple of 2"),
        ("promote.champion", {"recall_low": {"better": "higher"}}, r"names recall_low.* did you mean recall\?"),
        ("promote.champion", {"recall": {"better": "higher", "tolerance": 1}}, r"unknown key promote.*tolerance"),
        ("promote.limits", {"frechet": {}}, "a limit needs at_most or at_least"),
        ("train.process", {**PARAMS["train"]["process"], "beta_schedule": {"kind": "linear"}, "timesteps": 10},
         "timesteps is 10; the linear schedule needs at least 21"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_sentence_that_names_the_key(tmp_path, key, value, message):
    with pytest.raises(UserError, match=message) as raised:
        load_settings(changed(tmp_path, key, value))
    assert "\n" not in str(raised.value)
    assert "params.yaml" in str(raised.value)


@pytest.mark.parametrize(("value", "size"), [(8, (8, 8)), ([16, 24], (16, 24)), ([24, 16], (24, 16))])
def test_an_image_size_is_a_square_or_height_and_width(tmp_path, value, size):
    assert load_settings(changed(tmp_path, "prepare.image_size", value)).prepare.size == size


@pytest.mark.parametrize(("color", "channels"), [("grayscale", 1), ("rgb", 3), ("rgba", 4)])
def test_a_color_is_a_number_of_channels(tmp_path, color, channels):
    assert load_settings(changed(tmp_path, "prepare.color", color)).prepare.channels == channels


@pytest.mark.parametrize(("value", "name"), [(3, "3"), ("champion", "champion"), ("~", "~")])
def test_a_model_to_begin_from_may_be_a_number(tmp_path, value, name):
    assert load_settings(changed(tmp_path, "train.from", value)).train.parent == name


def test_a_missing_or_broken_file_is_told(tmp_path):
    with pytest.raises(UserError, match=r"params.yaml is missing: run the command from the project's folder"):
        load_settings(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_text("a: [1\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"params.yaml is not valid YAML"):
        load_settings(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_text("", encoding="utf-8")
    with pytest.raises(UserError, match=r"params.yaml has no sections: restore it, or write ingest, prepare"):
        load_settings(tmp_path / "params.yaml")


def test_numbers_are_read_as_dvc_reads_them(tmp_path):
    text = Path("params.yaml").read_text(encoding="utf-8")
    assert "learning_rate: 0.003" in text
    file = tmp_path / "params.yaml"
    file.write_text(text.replace("learning_rate: 0.003", "learning_rate: 3e-3"), encoding="utf-8")
    assert load_settings(file).reference.learning_rate == 0.003


def leaves(content, key=""):
    if isinstance(content, dict) and content:
        return {leaf for name, value in content.items() for leaf in leaves(value, f"{key}.{name}")}
    if isinstance(content, list) and content and isinstance(content[0], dict):
        return {leaf for index, value in enumerate(content) for leaf in leaves(value, f"{key}.{index}")}
    return {key}


def test_every_key_that_a_stage_depends_on_is_in_the_file():
    """DVC sees no defaults: a key that is not there could change its value and nothing would run."""
    settings = load_settings().model_dump(mode="json", exclude={"promote"})
    assert leaves(settings) == leaves({name: PARAMS[name] for name in settings})


def test_all_metrics_are_measured():
    assert {metric.kind for metric in load_settings().evaluate.metrics} == set(choices(MetricChoice))
