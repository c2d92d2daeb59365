"""Every choice of params.yaml is listed where it is chosen from."""

import importlib
import pkgutil

import pytest

import diffusion_core
from diffusion_core.choices import Choice, choices, choose
from diffusion_core.data.crops import CropChoice
from diffusion_core.data.sources import SourceChoice
from diffusion_core.metrics.extractors import ExtractorChoice
from diffusion_core.metrics.figures import MetricChoice
from diffusion_core.process.losses import LossChoice
from diffusion_core.process.schedules import ScheduleChoice
from diffusion_core.process.weightings import WeightingChoice
from diffusion_core.samplers import SamplerChoice
from tests.gpu.test_samplers import SAMPLERS

UNIONS = (
    *(SourceChoice, CropChoice, ExtractorChoice, MetricChoice),
    *(LossChoice, ScheduleChoice, WeightingChoice, SamplerChoice),
)


def unlisted(unions):
    """Return the classes with a name, of those that the library defines, that no union has."""
    for module in pkgutil.walk_packages(diffusion_core.__path__, "diffusion_core."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    found, bases = set(), [Choice]
    while bases:
        base = bases.pop()
        bases += base.__subclasses__()
        if base.__module__.startswith("diffusion_core") and "kind" in vars(base):
            found.add(base)
    return found - {each for union in unions for each in choices(union).values()}


def test_no_class_is_left_out_of_its_union():
    assert unlisted(UNIONS) == set(), "add it to the union beside its siblings"


def test_no_sampler_is_left_out_of_the_checks_of_a_gpu():
    assert {sampler.kind for sampler in SAMPLERS.values()} == set(choices(SamplerChoice)), "add it to SAMPLERS"


def test_a_class_that_is_left_out_is_found():
    assert unlisted(set(UNIONS) - {LossChoice}) == set(choices(LossChoice).values())


@pytest.mark.parametrize("name", ["os.system", "diffusion_core.samplers.ddim.DDIM", "DDIM", ""])
def test_a_name_that_no_class_has_is_refused_with_the_names_there_are(name):
    with pytest.raises(ValueError, match=f"must be one of {', '.join(sorted(choices(SamplerChoice)))}"):
        choose(SamplerChoice, name, "sample.sampler")


def test_an_unknown_option_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match="sample.sampler ddim has no option step; it has steps, eta, spacing"):
        choose(SamplerChoice, "ddim", "sample.sampler", step=3)
