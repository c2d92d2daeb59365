"""Which files stay: those that are used well, so that no run writes much again and no bytes lie there for nothing."""

import numpy as np
import pytest

from diffusion_core.data.compaction import worth_keeping

FULL = 64


@pytest.mark.parametrize("seed", range(200))
def test_what_stays_is_used_at_least_by_half_and_what_goes_is_little_used_or_small(seed):
    random = np.random.default_rng(seed)
    sizes = dict(enumerate(random.integers(1, FULL + 9, random.integers(1, 40)).tolist()))
    used = {name: int(random.integers(1, size + 1)) for name, size in sizes.items() if random.random() < 0.9}
    grows = bool(seed % 2)
    stays = worth_keeping(used, sizes, FULL, grows=grows)
    for name, wanted in used.items():
        half, small = wanted >= sizes[name] / 2, sizes[name] < FULL / 8
        assert (name in stays) == (half and not (grows and small))
    # So no more than half of what stays lies there for nothing, however often images go.
    assert sum(sizes[name] for name in stays) <= 2 * sum(used[name] for name in stays)
    assert stays <= {*used}


def test_without_new_images_nothing_that_is_used_by_half_is_written_again():
    used, sizes = {"small": 1, "large": 32, "old": 31}, {"small": 2, "large": 64, "old": 64}
    assert worth_keeping(used, sizes, FULL, grows=False) == {"small", "large"}


@pytest.mark.parametrize("nightly", [1, 3, 7])
def test_a_file_for_each_night_does_not_stay_for_ever(nightly):
    """What is written again in a night is less than an eighth of a full file, however long it continues."""
    sizes, name, rewritten = {}, 0, []
    for _ in range(300):
        stays = worth_keeping(sizes, sizes, FULL, grows=True)
        joined = sum(size for each, size in sizes.items() if each not in stays)
        rewritten.append(joined)
        sizes = {each: sizes[each] for each in stays}
        new = nightly + joined
        while new:
            name += 1
            sizes[name] = min(new, FULL)
            new -= sizes[name]
    assert sum(sizes.values()) == 300 * nightly
    assert max(rewritten) < FULL / 8
    # With every file kept there would be 300.
    assert len(sizes) <= 1 + 300 * nightly / (FULL / 8)
