import math

import pytest
import torch

from diffusion_core.choices import choices, choose
from diffusion_core.process.noise_schedule import NoiseSchedule
from diffusion_core.process.schedules import Cosine, Linear, ScheduleChoice, Sigmoid

SCHEDULES = [Linear(), Cosine(), Sigmoid()]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda each: each.kind)
@pytest.mark.parametrize("timesteps", [25, 1000, 4000])
def test_snr_falls_strictly_and_betas_are_probabilities(schedule, timesteps):
    tables = NoiseSchedule(schedule, timesteps).double()
    assert tables.betas.dtype == torch.float64
    assert tables.betas.shape == (timesteps,)
    assert bool(((tables.betas > 0) & (tables.betas < 1)).all())
    assert bool((tables.snr.diff() < 0).all())


@pytest.mark.parametrize(
    ("schedule", "last_alpha_bar", "first_snr"),
    [(Linear(), 4.036e-5, 9999), (Cosine(), 2.43e-9, 24221), (Sigmoid(), 3.003e-7, 3329)],
    ids=lambda each: getattr(each, "kind", ""),
)
def test_ends_of_the_schedules_at_a_thousand_timesteps(schedule, last_alpha_bar, first_snr):
    tables = NoiseSchedule(schedule, 1000).double()
    assert float(tables.alphas_cumprod[-1]) == pytest.approx(last_alpha_bar, rel=2e-3)
    assert float(tables.snr[0]) == pytest.approx(first_snr, rel=1e-4)


def test_cosine_alpha_bar_is_the_squared_cosine_until_the_clip():
    timesteps, s = 200, 0.008
    alpha_bar = NoiseSchedule(Cosine(s=s), timesteps).double().alphas_cumprod
    for t in range(timesteps - 1):
        here = math.cos(((t + 1) / timesteps + s) / (1 + s) * math.pi / 2) ** 2
        assert float(alpha_bar[t]) == pytest.approx(here / math.cos(s / (1 + s) * math.pi / 2) ** 2, rel=1e-9)


def test_sigmoid_alpha_bar_is_symmetric_about_the_middle():
    alpha_bar = NoiseSchedule(Sigmoid(), 1000).double().alphas_cumprod
    for t in (100, 250, 400):
        assert float(alpha_bar[t - 1] + alpha_bar[999 - t]) == pytest.approx(1.0, abs=1e-7)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda each: each.kind)
@pytest.mark.parametrize("timesteps", [25, 1000])
def test_a_zero_terminal_snr_leaves_nothing_of_the_image_and_the_first_step_as_it_was(schedule, timesteps):
    plain = NoiseSchedule(schedule, timesteps).double()
    rescaled = NoiseSchedule(schedule, timesteps, zero_terminal_snr=True).double()
    assert float(rescaled.alphas_cumprod[-1]) == 0.0
    assert float(rescaled.alphas_cumprod[0]) == pytest.approx(float(plain.alphas_cumprod[0]), rel=1e-12)
    assert bool((rescaled.snr.diff() < 0).all())
    assert all(bool(torch.isfinite(table).all()) for table in rescaled.buffers())
    # The square roots are moved and stretched, so their differences keep their proportions.
    before, after = (tables.alphas_cumprod.sqrt().diff() for tables in (plain, rescaled))
    torch.testing.assert_close(after / after.sum(), before / before.sum())


def test_one_timestep_cannot_be_clean_and_noise():
    with pytest.raises(ValueError, match="zero_terminal_snr needs at least 2 timesteps; timesteps is 1"):
        NoiseSchedule(Cosine(), 1, zero_terminal_snr=True)


def test_linear_refuses_the_timesteps_at_which_beta_reaches_one():
    with pytest.raises(ValueError, match="timesteps is 20.*at least 21"):
        Linear().betas(20)
    assert float(Linear().betas(21)[-1]) < 1.0


@pytest.mark.parametrize("options", [{"kind": "cosine", "s": 0.0}, {"kind": "sigmoid", "tau": 0.0}])
def test_schedules_refuse_options_outside_their_range(options):
    with pytest.raises(ValueError, match=r"s is 0.0|tau is 0.0"):
        choose(ScheduleChoice, options.pop("kind"), "beta_schedule", **options)


def test_a_name_that_no_sibling_has_is_refused_with_the_names_there_are():
    with pytest.raises(ValueError, match="beta_schedule is 'os.system'.*cosine, linear, sigmoid, table"):
        choose(ScheduleChoice, "os.system", "beta_schedule")
    assert set(choices(ScheduleChoice)) == {"linear", "cosine", "sigmoid", "table"}


def test_a_table_gives_its_values_and_no_others():
    table = choose(ScheduleChoice, "table", "beta_schedule", values=Cosine().betas(50).tolist())
    assert torch.equal(table.betas(50), Cosine().betas(50))
    with pytest.raises(ValueError, match="timesteps is 51; the table of betas has 50 values"):
        table.betas(51)
