import pytest
import torch
from diffusers import RePaintScheduler

from diffusion_core import DDIM, DDPM, DPMSolver, GaussianDiffusion, Guidance, ImageNoise, Unet
from diffusion_core.samplers.loop import Trajectory
from diffusion_core.samplers.repaint import inpaint_loop, positions
from tests.conftest import Network
from tests.samplers.every import every_sampler

CORRELATION = 0.9
STD = 0.3


def pair(**options):
    """A process whose network knows the best guess for two correlated pixels, N(0, STD^2 [[1, c], [c, 1]])."""
    covariance = STD**2 * torch.tensor([[1.0, CORRELATION], [CORRELATION, 1.0]], dtype=torch.float64)

    def denoiser(x, t, _):
        alpha_bar = diffusion.alpha_bar(int(t[0]))
        identity = torch.eye(2, dtype=torch.float64)
        gain = alpha_bar**0.5 * covariance @ torch.linalg.inv(alpha_bar * covariance + (1 - alpha_bar) * identity)
        return (x.flatten(1) @ gain.T).reshape(x.shape)

    diffusion = GaussianDiffusion(
        Network(denoiser), image_size=(1, 2), timesteps=100, objective="pred_x0", auto_normalize=False, **options
    ).double()
    return diffusion


MASK = torch.tensor([[[[True, False]]]])


def painted(resamplings, sampler, count=4000):
    """The second pixel where the first is known to be 0.3."""
    torch.manual_seed(0)
    known = torch.full((count, 1, 1, 2), 0.3, dtype=torch.float64)
    images = pair().inpaint(known, MASK, sampler=sampler, jump_length=1, resamplings=resamplings)
    assert torch.equal(images[:, 0, 0, 0], known[:, 0, 0, 0])
    return images[:, 0, 0, 1]


@pytest.mark.parametrize("sampler", [DDPM(), DDIM(steps=50, eta=1.0)], ids=str)
def test_resampling_paints_what_goes_with_the_known_pixels(sampler):
    """The second pixel given the first is N(c x1, STD^2 (1 - c^2)). RePaint comes near it, and is not exact."""
    resampled, once = painted(10, sampler), painted(1, sampler)
    mean, std = CORRELATION * 0.3, STD * (1 - CORRELATION**2) ** 0.5
    assert float(resampled.mean()) == pytest.approx(mean, rel=0.15)
    assert float(resampled.std()) == pytest.approx(std, rel=0.15)
    assert abs(float(once.mean()) - mean) > 2 * abs(float(resampled.mean()) - mean)
    assert abs(float(once.std()) - std) > 1.5 * abs(float(resampled.std()) - std)


@pytest.mark.parametrize(("steps", "jump_length", "resamplings"), [(50, 10, 10), (30, 5, 3), (20, 1, 2), (9, 4, 1)])
def test_the_walk_is_that_of_the_authors(steps, jump_length, resamplings):
    scheduler = RePaintScheduler(num_train_timesteps=steps)
    scheduler.set_timesteps(steps, jump_length=jump_length, jump_n_sample=resamplings)
    # Theirs names the level by its timestep, which is one less than the steps that are left, and leaves out the image.
    ours = positions(steps, jump_length, resamplings)
    expected = [steps - position - 1 for position in ours[:-1]]
    # Theirs returns one timestep at a time, ours at once.
    theirs = scheduler.timesteps.tolist()
    rests = [
        t
        for before, t, after in zip([steps, *theirs], theirs, [*theirs[1:], -1], strict=False)
        if not before < t < after
    ]
    assert rests == expected
    assert ours[-1] == steps


class Given:
    """Draws that are known: 1, 2, 3 ... in turn."""

    def __init__(self):
        self.count = 0

    def __call__(self, like):
        self.count += 1
        return torch.full_like(like, float(self.count))


def test_known_pixels_come_in_at_their_noise_level_and_a_return_adds_what_is_missing():
    """With three steps and one return of one step: down, down, back, down, down to the image."""
    diffusion = pair()
    known, noise = torch.tensor([[[[0.4, 9.0]]]], dtype=torch.float64), torch.ones(1, 1, 1, 2, dtype=torch.float64)
    sampler = DDIM(steps=3)
    steps = list(
        inpaint_loop(diffusion.denoiser, sampler, noise, known, MASK, jump_length=1, resamplings=2, randn=Given())
    )
    times = [t for t, _ in sampler.transitions(diffusion.schedule)]
    path = positions(3, 1, 2)
    assert path == [0, 1, 0, 1, 2, 1, 2, 3]
    added = 0
    for position, after, before, x in zip(path, path[1:], [noise, *steps], steps, strict=False):
        alpha_bar = 1.0 if after == 3 else diffusion.alpha_bar(times[after])
        if after < position:
            added += 1
            kept = alpha_bar / diffusion.alpha_bar(times[position])
            torch.testing.assert_close(x, kept**0.5 * before + (1 - kept) ** 0.5 * added)
        else:
            added += after < 3
            level = alpha_bar**0.5 * 0.4 + (1 - alpha_bar) ** 0.5 * added
            assert float(x[0, 0, 0, 0]) == pytest.approx(level)
            alone = sampler.step(
                diffusion.schedule,
                Trajectory(diffusion.denoiser, None),
                before,
                times[position],
                -1 if after == 3 else times[after],
                Given(),
            )
            torch.testing.assert_close(x[0, 0, 0, 1], alone[0, 0, 0, 1])


def test_guidance_and_the_source_of_noise_reach_the_painting():
    network = Unet(8, dim_mults=(1, 2), channels=1, num_classes=3)
    diffusion = GaussianDiffusion(network, image_size=8, timesteps=20).eval()
    images, mask, classes = torch.rand(2, 1, 8, 8), torch.zeros(1, 1, 8, 8), torch.tensor([0, 1])

    def painted(seed, scale):
        return diffusion.inpaint(
            images,
            mask,
            sampler=DDIM(steps=3, eta=1.0),
            jump_length=1,
            resamplings=2,
            randn=ImageNoise(seed, range(2)),
            classes=classes,
            guidance=Guidance(scale=scale),
        )

    assert torch.equal(painted(0, 1.0), painted(0, 1.0))
    assert not torch.allclose(painted(0, 1.0), painted(1, 1.0), atol=1e-3)
    assert not torch.allclose(painted(0, 1.0), painted(0, 5.0), atol=1e-3)


@pytest.mark.parametrize("sampler", [sampler for sampler in every_sampler(6) if not sampler.multistep], ids=str)
def test_known_pixels_stay_as_they_are(sampler):
    torch.manual_seed(0)
    network = Unet(8, dim_mults=(1, 2), channels=3, self_condition=True, num_classes=4)
    diffusion = GaussianDiffusion(network, image_size=(8, 12), timesteps=50).eval()
    images, mask = torch.rand(2, 3, 8, 12), torch.rand(2, 1, 8, 12) < 0.5
    classes = torch.tensor([1, 3])
    options = {"sampler": sampler, "jump_length": 2, "resamplings": 2, "classes": classes}
    painted = diffusion.inpaint(images, mask, **options)
    kept = mask.expand_as(images)
    torch.testing.assert_close(painted[kept], images[kept], rtol=0, atol=1e-6)
    assert not torch.allclose(painted[~kept], images[~kept], atol=0.05)
    steps = diffusion.inpaint(images, mask, **options, return_all_timesteps=True)
    assert steps.shape[1] == len(positions(6, 2, 2))


def test_what_cannot_be_painted_is_named():
    diffusion, images = pair(), torch.zeros(2, 1, 1, 2)
    with pytest.raises(ValueError, match="sampler is dpm_solver, whose steps need the one before: take another"):
        diffusion.inpaint(images, MASK, sampler=DPMSolver(steps=3))
    with pytest.raises(ValueError, match="resamplings is 0; it must be at least 1"):
        diffusion.inpaint(images, MASK, resamplings=0)
    with pytest.raises(ValueError, match="jump_length is 10; in 10 steps it must be at most 9, or resamplings 1"):
        diffusion.inpaint(images, MASK, sampler=DDIM(steps=10))
    with pytest.raises(ValueError, match=r"mask has values between 0.0 and 0.5; each must be 0 or 1"):
        diffusion.inpaint(images, MASK * 0.5)
    with pytest.raises(ValueError, match=r"mask is a list; it must be a tensor of 0 and 1"):
        diffusion.inpaint(images, [1, 0])
    with pytest.raises(ValueError, match=r"the images are torch.uint8; they must be floating point"):
        diffusion.inpaint(images.byte(), MASK)
    with pytest.raises(ValueError, match=r"mask is \(3, 3\); it must broadcast to \(2, 1, 1, 2\)"):
        diffusion.inpaint(images, torch.ones(3, 3))
    with pytest.raises(ValueError, match=r"the images are \(1, 2, 2\); this process is for \(1, 1, 2\)"):
        diffusion.inpaint(torch.zeros(2, 1, 2, 2), MASK)
