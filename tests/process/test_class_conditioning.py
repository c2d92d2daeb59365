"""Labels reach the network on every way, and training drops its share of them."""

import pytest
import torch

from diffusion_core import DDIM, GaussianDiffusion, TensorData, Trainer, Unet
from tests.conftest import Network


class Recorder(Network):
    """Notes the labels that it is asked with, and answers with them, so that a wrong one shows."""

    num_classes = 4

    def __init__(self, **options):
        super().__init__(None, **options)
        self.scale = torch.nn.Parameter(torch.ones(()))
        self.asked = []

    def forward(self, x, t, x_self_cond=None, classes=None):
        self.asked.append(classes)
        return x * 0 + self.scale * 0.2 * classes.to(x.dtype)[:, None, None, None]


def process(network, **options):
    return GaussianDiffusion(network, image_size=4, objective="pred_x0", timesteps=20, **options)


def test_dropped_labels_are_dropped_in_the_guess_and_in_the_pass_alike():
    network = Recorder(self_condition=True)
    classes = torch.tensor([0, 1, 2, 3, 1, 0, 2, 3])
    x0 = torch.rand(8, 1, 4, 4)
    process(network)(x0, classes=classes, unlabelled=classes == 1)
    guess, whole = network.asked
    assert whole.tolist() == [0, 4, 2, 3, 4, 0, 2, 3]
    assert len(guess) == 4
    assert 1 not in guess.tolist()


def test_labels_are_dropped_at_the_given_rate():
    network = Recorder()
    network.cond_drop_prob = 0.3
    process(network)(torch.rand(10_000, 1, 4, 4), classes=torch.ones(10_000, dtype=torch.long))
    (asked,) = network.asked
    assert float((asked == 4).float().mean()) == pytest.approx(0.3, abs=0.02)
    assert set(asked.unique().tolist()) == {1, 4}


def test_the_guess_of_an_image_is_made_with_its_own_label():
    """The answer is the label, so what is fed back says with which label it was made."""
    fed_back = []

    class Feeding(Recorder):
        def forward(self, x, t, x_self_cond=None, classes=None):
            fed_back.append(x_self_cond)
            return super().forward(x, t, x_self_cond, classes)

    classes = torch.tensor([1, 2, 3, 1, 2, 3])
    process(Feeding(self_condition=True))(torch.rand(6, 1, 4, 4), classes=classes)
    guess = fed_back[-1][:, 0, 0, 0]
    made = guess > 0
    assert int(made.sum()) == 3
    torch.testing.assert_close(guess[made], 0.2 * classes[made])


def test_which_half_is_guessed_changes_from_batch_to_batch():
    fed_back = []
    network = Network(lambda x, t, s: fed_back.append(s) or torch.ones_like(x), self_condition=True)
    for _ in range(20):
        process(network)(torch.rand(8, 1, 4, 4))
    halves = {tuple((each[:, 0, 0, 0] > 0).tolist()) for each in fed_back if each is not None}
    assert len(halves) > 5


def test_the_trainer_hands_the_labels_over():
    network = Recorder()
    labels = torch.tensor([0, 1, 2, 3] * 4)
    data = TensorData(torch.randint(0, 256, (16, 1, 4, 4), dtype=torch.uint8), labels)
    for _ in Trainer(process(network), data, images=16, batch_size=16, precision="float32").steps():
        pass
    assert sorted(network.asked[0].tolist()) == sorted(labels.tolist())


def test_a_real_network_trains_on_labels_and_on_none():
    network = Unet(8, dim_mults=(1,), channels=1, num_classes=4, cond_drop_prob=0.5)
    asked = []
    network.register_forward_pre_hook(lambda module, inputs: asked.append(inputs[3]))
    diffusion = process(network)
    for _ in range(20):
        diffusion(torch.rand(16, 1, 4, 4), classes=torch.full((16,), 2))
    dropped = torch.cat(asked) == 4
    assert 0.35 < float(dropped.float().mean()) < 0.65


def test_every_way_to_an_image_takes_the_labels():
    network, classes = Recorder(), torch.tensor([1, 3])
    diffusion = process(network)
    x = torch.rand(2, 1, 4, 4)
    expected = 0.2 * classes.float()[:, None, None, None].expand(2, 1, 4, 4)
    torch.testing.assert_close(diffusion.p_sample(x, 0, classes=classes)[0], expected)
    torch.testing.assert_close(diffusion.interpolate(x, x, t=5, classes=classes), expected)
    torch.testing.assert_close(diffusion.sample(2, sampler=DDIM(steps=3), classes=classes), (expected + 1) / 2)
    painted = diffusion.inpaint(x, torch.zeros(1), sampler=DDIM(steps=3), resamplings=1, classes=classes)
    torch.testing.assert_close(painted, (expected + 1) / 2)
    assert all(each.tolist() == [1, 3] for each in network.asked)


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (torch.tensor([0, 4]), r"classes has the label 4; labels must lie in 0 .. 3"),
        (torch.tensor([-1, 0]), r"classes has the label -1; labels must lie in 0 .. 3"),
        (torch.tensor([0, 1, 2]), r"classes is torch.int64 of shape \(3,\); it must be int64 of \(2,\)"),
        (torch.tensor([0.0, 1.0]), r"classes is torch.float32 of shape \(2,\); it must be int64"),
    ],
)
def test_wrong_labels_are_named_in_training_and_sampling(classes, message):
    diffusion, images = process(Recorder()), torch.rand(2, 1, 4, 4)
    for call in (
        lambda: diffusion(images, classes=classes),
        lambda: diffusion.sample(2, classes=classes),
        lambda: diffusion.interpolate(images, images, classes=classes),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_labels_for_a_network_without_classes_are_refused():
    diffusion = process(Network(lambda x, t, _: x))
    with pytest.raises(ValueError, match="classes are given, but the network has no num_classes"):
        diffusion.sample(2, classes=torch.tensor([0, 1]))
