"""Two models are the same to the last bit, or it is told where they differ."""

from math import nan

import numpy as np
import pytest
from safetensors.numpy import save_file

from diffusion_core.lineage.weights import Difference, compare_weights, first_difference

WEIGHTS = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.zeros(3, np.float32)}


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        ({}, Difference(2, [], 0.0, "")),
        ({"b": np.array([0.0, 0.25, -0.5], np.float32)}, Difference(2, ["b"], 0.5, "b")),
        # Equal as numbers, and not in their bits.
        ({"b": np.array([0.0, -0.0, 0.0], np.float32)}, Difference(2, ["b"], 0.0, "")),
        ({"a": WEIGHTS["a"].T.copy()}, Difference(2, ["a"], 0.0, "")),
        ({"c": WEIGHTS["b"]}, Difference(3, ["c"], 0.0, "")),
    ],
)
def test_a_bit_a_shape_or_a_name_makes_a_difference(tmp_path, other, difference):
    save_file(WEIGHTS, tmp_path / "one")
    save_file(WEIGHTS | other, tmp_path / "other")
    assert compare_weights(tmp_path / "one", tmp_path / "other") == difference


@pytest.mark.parametrize(
    ("other", "place"),
    [
        ({"loss": {64: 1.0, 128: 0.5}, "norm": {64: 2.0}}, None),
        ({"loss": {64: 1.0, 128: 0.25}, "norm": {64: 2.0}}, (128, "loss")),
        ({"loss": {64: 1.0, 128: 0.25}, "norm": {64: 2.5}}, (64, "norm")),
        # What was logged by one training alone says nothing.
        ({"loss": {128: 0.25, 192: 0.25}}, (128, "loss")),
        ({"loss": {192: 0.25}, "more": {64: 1.0}}, None),
        ({}, None),
        ({"bad": {64: nan}}, None),
        ({"bad": {64: 1.0}}, (64, "bad")),
    ],
)
def test_histories_part_at_their_first_difference(other, place):
    assert first_difference({"loss": {64: 1.0, 128: 0.5}, "norm": {64: 2.0}, "bad": {64: nan}}, other) == place
