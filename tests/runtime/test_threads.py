"""The number of threads is chosen by measuring, and on a quiet machine by the step's number alone."""

import json
from contextlib import closing

import pytest
import torch

from diffusion_core.runtime.threads import AGAIN_STEP, START_STEPS, TRIAL_STEPS, ThreadChoice, ThreadReplay, candidates
from tests.runtime.machine import BUSY, QUIET, TINY, Machine


def first_trial(steps, threads=(1,), after=2):
    """The counts of a run of which nothing but the first trial is to be seen."""
    trial = [count for count in threads for _ in range(TRIAL_STEPS)]
    return [2] * START_STEPS + trial + [after] * (steps - START_STEPS - len(trial))


def test_candidates_are_all_cores_and_halves_of_them():
    assert [candidates(cores) for cores in (1, 2, 6, 8)] == [(1,), (2, 1), (6, 3, 1), (8, 4, 2, 1)]
    with pytest.raises(ValueError, match="cores is 0"):
        candidates(0)


@pytest.mark.parametrize("wrong", [(), (1, 2), (2, 2), (2, 0)])
def test_candidates_that_do_not_fall_are_refused(wrong):
    with pytest.raises(ValueError, match="falling"):
        ThreadChoice(wrong)


# --- a quiet machine


def test_a_quiet_machine_uses_all_threads_and_never_tries_again():
    machine = Machine(QUIET)
    assert machine.train(machine.choice(), 2000) == first_trial(2000)


def test_noise_of_a_tenth_changes_nothing():
    for seed in range(20):
        for seconds in (QUIET, {2: 1.0, 1: 1.0}):
            machine = Machine(seconds, noise=0.1, seed=seed)
            assert machine.train(machine.choice(), 2000) == first_trial(2000)


def test_slow_steps_that_are_soon_over_change_nothing():
    machine = Machine(QUIET)
    choice = machine.choice()
    machine.train(choice, 100)
    for slow in ([10.0], [0.2] * 9, [2.0, 2.0], [10.0]):
        for seconds in slow:
            machine.seconds = {2: seconds, 1: seconds}
            assert machine.train(choice, 1) == [2]
        machine.seconds = QUIET
        assert machine.train(choice, 100) == [2] * 100
    machine.seconds = {2: 2.0, 1: 2.0}  # the control
    assert 1 in machine.train(choice, 5)


def test_work_that_a_second_thread_slows_down_gets_one_from_the_start():
    for seconds in (TINY, {2: 1.0, 1: 1 / 1.3}):
        machine = Machine(seconds, switch=1.4)
        assert machine.train(machine.choice(), AGAIN_STEP) == first_trial(AGAIN_STEP, after=1)
    machine = Machine({2: 1.0, 1: 1 / 1.1})  # control: a gain of a tenth is not worth it
    assert machine.train(machine.choice(), AGAIN_STEP) == first_trial(AGAIN_STEP)


def test_the_larger_count_that_lost_is_tried_at_fixed_steps():
    machine = Machine(TINY, noise=0.1)
    counts = machine.train(machine.choice(), 1000)
    later = [step for step, count in enumerate(counts) if count == 2 and step >= START_STEPS]
    assert later == [start + step for start in (100, 200, 400, 800) for step in range(TRIAL_STEPS)]


def test_a_start_beside_a_busy_process_is_made_up_for():
    machine = Machine(BUSY)
    choice = machine.choice()
    assert machine.train(choice, 150)[-1] == 1
    machine.seconds = QUIET
    assert machine.train(choice, 200)[-1] == 2


def test_few_counts_are_tried_where_fewer_threads_are_slower():
    machine = Machine({8: 1.0, 4: 2.0, 2: 4.0, 1: 8.0})
    counts = machine.train(machine.choice((8, 4, 2, 1)), 100)
    assert {2, 1}.isdisjoint(counts)
    assert counts.count(4) == TRIAL_STEPS
    # More threads than the container may use at once: the best are found below.
    machine = Machine({8: 5.0, 4: 2.5, 2: 1.0, 1: 1.9})
    assert machine.train(machine.choice((8, 4, 2, 1)), 50)[-1] == 2
    machine = Machine({8: 1.0, 4: 1.1, 2: 0.7, 1: 0.8})
    assert machine.train(machine.choice((8, 4, 2, 1)), 50)[-1] == 2


def test_with_one_candidate_nothing_is_tried():
    machine = Machine({**QUIET, 3: 1.0})
    choice = machine.choice((2,))
    counts = machine.train(choice, 200)
    machine.seconds = BUSY
    assert counts + machine.train(choice, 200) == [2] * 400


# --- state


@pytest.mark.parametrize("seconds", [QUIET, TINY, BUSY])
def test_a_run_restored_at_every_step_uses_the_same_threads_as_an_unbroken_one(seconds):
    whole, broken = Machine(seconds), Machine(seconds)
    counts = whole.train(whole.choice(), 450)
    assert broken.train(broken.choice(), 450, restored=True) == counts
    assert broken.last.state() == whole.last.state()
    assert len(set(counts)) == 2


def test_a_run_that_is_not_restored_uses_other_threads():
    """The control of the test above."""
    machine = Machine(QUIET)
    counts = machine.train(machine.choice(), 10) + machine.train(machine.choice(), 10)
    assert counts != first_trial(20)


def test_a_restored_run_remembers_that_the_machine_is_busy():
    machine = Machine(QUIET)
    choice = machine.choice()
    machine.train(choice, 100)
    machine.seconds = BUSY
    machine.train_for(choice, 20)
    restored = machine.choice()
    restored.restore(json.loads(json.dumps(choice.state())))
    assert (choice.threads, restored.threads) == (1, 1)
    machine.seconds = QUIET
    assert machine.train_for(restored, 60)[-1] == 2


def test_states_are_json_and_are_not_changed_by_who_was_restored_from_them():
    machine = Machine(TINY)
    choice = machine.choice()
    for _ in range(START_STEPS + TRIAL_STEPS + 2):
        state = choice.state()
        text = json.dumps(state, allow_nan=False)
        other = machine.choice()
        other.restore(state)
        machine.train(other, 10)
        assert json.dumps(state) == text
        assert json.loads(text) == state
        machine.train(choice, 1)


def test_a_state_of_another_machine_begins_again_with_all_threads():
    machine = Machine({**QUIET, 8: 1.0, 4: 1.0})
    choice = machine.choice((8, 4, 2, 1))
    machine.train(choice, 50)
    other = machine.choice()
    other.restore(choice.state())
    assert machine.train(other, 50) == first_trial(50)
    choice.restore(other.state())
    assert choice.threads == 8


# --- PyTorch


def test_two_counts_set_what_pytorch_uses_and_close_sets_it_back():
    torch.set_num_threads(3)
    with closing(ThreadChoice((2, 1))) as choice:
        seen = []
        for _ in range(START_STEPS + 1):
            with choice.timed():
                seen.append(torch.get_num_threads())
                torch.ones(64, 64) @ torch.ones(64, 64)
        assert seen == [2] * START_STEPS + [1]
    assert torch.get_num_threads() == 3


def test_a_step_that_fails_is_not_counted():
    choice = ThreadChoice((2, 1))
    before = choice.state()
    with pytest.raises(ArithmeticError), choice.timed():
        raise ArithmeticError
    assert choice.state() == before


# --- the same again


@pytest.mark.parametrize("pause", [0, 6, 50])
def test_another_training_gets_the_threads_of_each_step(pause):
    machine = Machine(QUIET)
    first = machine.choice()
    steps = machine.train(first, pause)
    resumed = machine.choice()
    resumed.restore(json.loads(json.dumps(first.state())))
    machine.seconds = BUSY
    steps += machine.train(resumed, 100)
    assert resumed.used.startswith(f"2 {START_STEPS}:1")
    again = ThreadReplay(resumed.used)
    assert again.used is None
    replayed = Machine(QUIET).train(again, pause)
    later = ThreadReplay(resumed.used)
    later.restore(json.loads(json.dumps(again.state())))
    replayed += Machine(QUIET).train(later, 100)
    assert replayed == steps
    assert later.used == resumed.used


def test_a_number_that_never_changed_is_one_number():
    machine, choice = Machine(QUIET), ThreadChoice((2,))
    machine.train(choice, 5)
    assert choice.used == "2"


def test_what_another_machine_counted_is_not_known():
    machine = Machine(QUIET)
    first, moved = machine.choice(), ThreadChoice((4, 2, 1))
    machine.train(first, 5)
    moved.restore(first.state())
    assert moved.used is None
