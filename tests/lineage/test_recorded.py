"""What was recorded of a version is read as it was meant."""

import pytest

from diffusion_core.lineage.recorded import Lock, all_params, shown

PARAMS = "train: {seed: 7, report_every_images: 5, network: {dim: 4}}\npromote: {limits: {}}\n"
SECTION = """
stages:
  train:
    params: {params.yaml: {train: {seed: 0, network: {dim: 8}}}}
    outs:
    - {path: models/model.json, md5: '0123', size: 4}
"""
DOTTED = """
stages:
  train:
    params: {params.yaml: {train.seed: 0, train.network: {dim: 8}}}
"""


def test_the_lock_has_the_parameters_of_the_run_and_the_file_the_rest():
    assert all_params(PARAMS, None)["train"]["seed"] == 7
    assert all_params(PARAMS, Lock.parse(SECTION)) == {
        "train": {"seed": 0, "network": {"dim": 8}},
        "promote": {"limits": {}},
    }
    assert all_params(PARAMS, Lock.parse(DOTTED)) == {
        "train": {"seed": 0, "report_every_images": 5, "network": {"dim": 8}},
        "promote": {"limits": {}},
    }
    assert all_params(None, Lock.parse(DOTTED)) == {"train": {"seed": 0, "network": {"dim": 8}}}


@pytest.mark.parametrize(
    ("params", "lock"), [("[]", None), ("[]", SECTION), ("train: 1", DOTTED), (PARAMS, "stages: 1"), (PARAMS, "a: [")]
)
def test_what_is_not_of_that_form_is_an_error_of_its_value(params, lock):
    with pytest.raises(ValueError, match=r"\w"):
        all_params(params, None if lock is None else Lock.parse(lock))


@pytest.mark.parametrize(
    ("threads", "words"),
    [("2", "2"), ("2 4:1 7:2", "2, 1 after 4 steps, 2 after 7 steps"), ("changed 2,000 times", "changed 2,000 times")],
)
def test_threads_are_shown_in_words(threads, words):
    assert shown({"threads": threads, "torch": "2.13", "other": "x"}) == {"threads": words, "PyTorch": "2.13"}


def test_a_machine_that_was_not_recorded_is_empty():
    assert shown({}) == {}
