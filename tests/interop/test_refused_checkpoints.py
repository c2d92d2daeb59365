"""What is no checkpoint of a known network is refused in a sentence, and nothing in it is run."""

import os

import pytest
import torch

from diffusion_core.errors import UserError
from diffusion_core.stages.import_lucidrains import run
from tests.interop.checkpoints import TINY, checkpoint


def test_tables_that_are_not_known_here_are_refused_and_not_guessed(tmp_path):
    content = checkpoint(TINY)
    for state, at in ((content["model"], ""), (content["ema"], "ema_model.")):
        state[f"{at}betas"] = torch.linspace(1e-4, 0.5, 1000)
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(UserError, match=r"other.pt has tables of an objective that is not known here.*--objective"):
        run(tmp_path / "other.pt", tmp_path / "models", "16")
    with pytest.raises(UserError, match=r"--beta-schedule is cosine, and the betas in .*/other.pt are a table"):
        run(tmp_path / "other.pt", tmp_path / "models", "16", beta_schedule="cosine", objective="pred_v")
    assert not (tmp_path / "models").exists()
    run(tmp_path / "other.pt", tmp_path / "models", "16", objective="pred_v")
    content["model"]["betas"] = torch.ones(3, 3)
    torch.save(content, tmp_path / "square.pt")
    with pytest.raises(UserError, match=r"square.pt has tables that are none: betas is of shape \(3, 3\)"):
        run(tmp_path / "square.pt", tmp_path / "models", "16")


@pytest.mark.parametrize("part", ["model", "ema"])
def test_weights_that_are_not_finite_are_refused(tmp_path, part):
    content = checkpoint(TINY)
    name = next(key for key in content[part] if key.endswith("mid_attn.norm.g") and "online" not in key)
    content[part][name] = torch.full_like(content[part][name], torch.nan)
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(UserError, match=r"a.pt cannot be imported \(mid_attn.norm.g has values that are not finite"):
        run(tmp_path / "a.pt", tmp_path / "models", "16")
    assert not list((tmp_path / "models").glob("*"))


def test_weights_that_stand_there_twice_are_refused(tmp_path):
    content = checkpoint(TINY)["model"]
    torch.save(content | {f"module.{name}": value for name, value in content.items()}, tmp_path / "a.pt")
    with pytest.raises(UserError, match="a.pt has weights with and without _orig_mod or module before them"):
        run(tmp_path / "a.pt", tmp_path / "models", "16")


def test_an_average_of_another_network_is_refused(tmp_path):
    content = checkpoint(TINY)
    content["ema"]["ema_model.model.mid_attn.norm.g"] = torch.ones(3)
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(UserError, match="of another shape are mid_attn.norm.g"):
        run(tmp_path / "a.pt", tmp_path / "models", "16")


@pytest.mark.parametrize("wrong", [{"model": {"a": 3.0}}, {3: torch.ones(1)}, {"model": {"a": torch.ones(1), 4: 1}}])
def test_what_is_no_weight_is_told(tmp_path, wrong):
    torch.save(wrong, tmp_path / "a.pt")
    with pytest.raises(UserError, match=r"a.pt has .* among its weights, which is not a tensor with a name"):
        run(tmp_path / "a.pt", tmp_path / "models", "16")


def changed(change):
    content = checkpoint(TINY)
    for state in (content["model"], content["ema"]):
        for name in list(state):
            for prefix in ("", "ema_model."):
                if name.startswith(f"{prefix}model."):
                    change(state, f"{prefix}model.")
                    break
    return content


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda state, at: state.pop(f"{at}mid_attn.norm.g", None), "it lacks mid_attn.norm.g"),
        (lambda state, at: state.update({f"{at}extra.weight": torch.ones(2)}), "it has besides extra.weight"),
        (
            lambda state, at: state.update({f"{at}mid_attn.norm.g": torch.ones(3)}),
            "of another shape are mid_attn.norm.g",
        ),
        (
            lambda state, at: state.pop(f"{at}init_conv.weight", None),
            "it lacks init_conv.weight; it has downs.0.0.block1.*and 100 more",
        ),
        (
            lambda state, at: state.update({f"{at}init_conv.weight": torch.ones(32, 5, 7, 7)}),
            "takes 5 channels and gives 1, which no Unet does",
        ),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_with_the_names(tmp_path, change, told):
    torch.save(changed(change), tmp_path / "model-1.pt")
    with pytest.raises(UserError, match=f"model-1.pt does not fit the Unet .*{told}") as raised:
        run(tmp_path / "model-1.pt", tmp_path / "models", "16")
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "models").exists()


class Touch:
    """Unpickled, it makes a file."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("wrap", [lambda evil: evil, lambda evil: {"model": {"a": torch.ones(1)}, "opt": evil}])
def test_nothing_but_weights_is_ever_unpickled(tmp_path, wrap):
    marker = tmp_path / "marker"
    torch.save(wrap(Touch(marker)), tmp_path / "evil.pt")
    with pytest.raises(UserError, match="evil.pt is not a checkpoint of weights alone"):
        run(tmp_path / "evil.pt", tmp_path / "models", "16")
    assert not marker.exists()
    # The control: read without that protection, it does what it says.
    torch.load(tmp_path / "evil.pt", weights_only=False)
    assert marker.exists()


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"PK\x03\x04 cut off", b"# A README\n\nhello\n"])
def test_a_file_that_is_no_checkpoint_is_told(tmp_path, content):
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(UserError, match=r"a.pt is not a checkpoint of weights alone"):
        run(tmp_path / "a.pt", tmp_path / "models", "16")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(UserError, match=r"list.pt holds no weights by name"):
        run(tmp_path / "list.pt", tmp_path / "models", "16")
