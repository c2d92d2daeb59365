from itertools import pairwise
from typing import get_args

import pytest
from diffusers import DDIMScheduler

from diffusion_core.samplers.spacing import Spacing, check_steps, spaced_transitions

SPACINGS = get_args(Spacing)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize(("timesteps", "steps"), [(1000, 50), (1000, 333), (1000, 1000), (10, 10), (7, 5), (100, 1)])
def test_a_walk_visits_as_many_timesteps_as_it_has_steps_and_ends_at_the_image(spacing, timesteps, steps):
    walk = spaced_transitions("ddim", steps, spacing, timesteps)
    assert len(walk) == steps
    assert all(0 <= t < timesteps and t > t_next for t, t_next in walk)
    assert walk[-1][1] == -1
    assert all(before[1] == after[0] for before, after in pairwise(walk))
    if spacing != "leading":
        assert walk[0][0] == timesteps - 1


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("steps", [1, 7, 30, 50])
def test_leading_and_trailing_are_those_of_diffusers(spacing, steps):
    scheduler = DDIMScheduler(timestep_spacing=spacing, steps_offset=0)
    scheduler.set_timesteps(steps)
    assert [t for t, _ in spaced_transitions("ddim", steps, spacing, 1000)] == scheduler.timesteps.tolist()


def test_quadratic_is_dense_at_the_image():
    times = [t for t, _ in spaced_transitions("ddim", 11, "quadratic", 1001)]
    assert times == [1000, 810, 640, 490, 360, 250, 160, 90, 40, 10, 0]


def test_what_no_schedule_can_be_walked_with_is_named():
    with pytest.raises(ValueError, match="steps is 0; heun needs a whole number, at least 1"):
        check_steps("heun", 0, "linspace")
    with pytest.raises(ValueError, match="spacing is 'cubic'; it must be one of linspace, leading"):
        check_steps("ddim", 1, "cubic")
    with pytest.raises(ValueError, match="steps is 11; ddpm can take at most the process's 10"):
        spaced_transitions("ddpm", 11, "linspace", 10)
