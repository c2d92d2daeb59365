"""Who knows denoising-diffusion-pytorch calls the same methods with the same arguments in the same order."""

import ast
import inspect
import json
from pathlib import Path

import pytest

from diffusion_core import GaussianDiffusion, Unet

SIGNATURES = json.loads((Path(__file__).parent / "oracle.json").read_text(encoding="utf-8"))["signatures"]
METHODS = sorted(set(SIGNATURES) - {"GaussianDiffusion", "Unet"})
# They make a time embedding that the package's own GaussianDiffusion refuses.
LEFT_OUT = {"learned_sinusoidal_cond", "random_fourier_features", "learned_sinusoidal_dim"}


@pytest.mark.parametrize("method", METHODS)
def test_a_method_takes_the_packages_arguments_in_their_order(method):
    ours = list(inspect.signature(getattr(GaussianDiffusion, method)).parameters.values())
    theirs = SIGNATURES[method]
    positional = [each for each in theirs if each[2] == "POSITIONAL_OR_KEYWORD"]
    for mine, (name, default, kind) in zip(ours, positional, strict=False):
        assert (mine.name, mine.kind.name) == (name, kind)
        assert default is None or repr(mine.default) == default
    assert {name for name, _, _ in theirs} <= {each.name for each in ours}
    # Whatever we add has a default, and is given by name.
    for added in ours[len(positional) :]:
        assert added.default is not added.empty or added.kind.name.startswith("VAR_")


@pytest.mark.parametrize("kind", [GaussianDiffusion, Unet], ids=lambda each: each.__name__)
def test_a_constructor_takes_the_packages_keywords(kind):
    ours = inspect.signature(kind).parameters
    for name, default, _ in SIGNATURES[kind.__name__][1:]:
        if name in LEFT_OUT:
            continue
        assert name in ours
        if name not in ("schedule_fn_kwargs", "flash_attn"):
            assert default is None or ours[name].default == ast.literal_eval(default)


def test_everything_of_the_package_was_asked_for():
    assert {"q_sample", "p_losses", "interpolate", "model_predictions", "forward"} <= set(METHODS)
    assert {name for name, _, _ in SIGNATURES["Unet"]} >= LEFT_OUT
