"""The number of threads is chosen by measuring, and on a quiet machine by the step's number alone.

A simulated machine stands for the real one: its clock moves only with steps, whose seconds depend on the threads.
"""

import json
import logging
import random
from contextlib import closing
from itertools import pairwise

import pytest
import torch

from diffusion_core.runtime import threads as cpu_threads
from diffusion_core.runtime.threads import AGAIN_STEP, START_STEPS, TRIAL_STEPS, ThreadChoice, candidates

# Seconds a step of the demo's network on two cores, by threads: alone, and beside a busy process.
QUIET = {2: 64 / 963, 1: 64 / 806}
BUSY = {2: 64 / 100, 1: 64 / 791}
# A network so small that a second thread only costs.
TINY = {2: 0.006, 1: 0.004}
FOUR_QUIET = {4: 1.0, 2: 1.9, 1: 3.6}


@pytest.fixture(autouse=True)
def _own_number_of_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


class Machine:
    """Takes `seconds[threads]` for a step.

    `noise` is the largest share by which that changes, and `switch` what a step takes longer after a change of threads.
    """

    def __init__(self, seconds, noise=0.0, switch=1.0, seed=0):
        self.seconds, self.noise, self.switch, self.now = seconds, noise, switch, 0.0
        self.random, self.threads = random.Random(seed), None

    def train(self, choice, steps, restored=False):
        """Return the threads of each step; `restored`: each step with a new object, from the last one's state."""
        counts = []
        for _ in range(steps):
            if restored:
                state = json.loads(json.dumps(choice.state()))
                choice = self.choice(choice.candidates)
                choice.restore(state)
            with choice.timed():
                counts.append(torch.get_num_threads())
                factor = 1.0 if counts[-1] == self.threads else self.switch
                self.threads = counts[-1]
                self.now += self.seconds[self.threads] * factor * (1 + self.random.uniform(-self.noise, self.noise))
        self.last = choice
        return counts

    def train_for(self, choice, seconds):
        """Return the threads of each step of a while."""
        until, counts = self.now + seconds, []
        while self.now < until:
            counts += self.train(choice, 1)
        return counts

    def choice(self, counts=(2, 1)):
        return ThreadChoice(counts, clock=lambda: self.now)


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


# --- a busy machine


def test_a_busy_process_is_noticed_and_fewer_threads_are_used(caplog):
    caplog.set_level(logging.INFO, cpu_threads.__name__)
    machine = Machine(QUIET, noise=0.1)
    choice = machine.choice()
    machine.train(choice, 500)
    assert not caplog.messages
    machine.seconds = BUSY
    counts = machine.train_for(choice, 25)
    assert counts[:3] == [2, 2, 2]
    assert counts.index(1) * BUSY[2] < 6
    assert set(counts[counts.index(1) :]) == {1}
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("training uses 1 of 2 threads: 0.0")
    assert caplog.messages[0].endswith(" with 2")


@pytest.mark.parametrize(("slow", "noticed"), [(1.5, False), (1.9, True)])
def test_only_much_slower_steps_are_a_reason_to_try(slow, noticed):
    machine = Machine(QUIET)
    choice = machine.choice()
    machine.train(choice, 100)
    machine.seconds = {2: slow * QUIET[2], 1: QUIET[1]}
    assert (1 in machine.train_for(choice, 20)) is noticed


def test_short_steps_that_are_fast_and_slow_by_turns_are_slow_together():
    machine = Machine(TINY | {1: 0.009})
    choice = machine.choice()
    machine.train(choice, 100)
    counts = []
    for _ in range(100):
        machine.seconds = {2: 0.06, 1: 0.009}
        counts += machine.train(choice, 3)
        machine.seconds = {2: 0.006, 1: 0.009}
        counts += machine.train(choice, 1)
    assert counts[-1] == 1


def test_all_threads_return_when_the_busy_process_has_ended(caplog):
    machine = Machine(QUIET, noise=0.05)
    choice = machine.choice()
    machine.train(choice, 100)
    machine.seconds = BUSY
    assert machine.train_for(choice, 60)[-1] == 1
    machine.seconds = QUIET
    caplog.set_level(logging.INFO, cpu_threads.__name__)
    assert machine.train_for(choice, 120)[-1] == 2
    assert [message[:29] for message in caplog.messages] == ["training uses 2 of 2 threads:"]
    assert set(machine.train(choice, 2000)) == {2}


def test_trials_of_the_larger_count_become_rare_and_end_after_a_slow_step():
    machine = Machine(QUIET)
    choice = machine.choice()
    machine.train(choice, 100)
    machine.seconds = BUSY
    began, tried = machine.now, []
    while machine.now < began + 3600:
        if machine.train(choice, 1) == [2]:
            tried.append(machine.now - began)
    tried = [seconds for seconds in tried if seconds > 20]  # after it was noticed
    waits = [later - earlier for earlier, later in pairwise(tried)]
    assert tried[0] == pytest.approx(30, abs=10)
    assert waits == pytest.approx([60, 120, 240, 480, 600, 600, 600, 600], abs=2)
    # Control: a larger count that is less slow is timed for the whole trial.
    machine.seconds = {2: 2.5 * BUSY[1], 1: BUSY[1]}
    assert machine.train_for(choice, 660).count(2) == TRIAL_STEPS


def test_a_larger_count_returns_only_if_it_is_faster():
    machine = Machine(QUIET)
    choice = machine.choice()
    machine.train(choice, 100)
    machine.seconds = BUSY
    machine.train_for(choice, 20)
    machine.seconds = {2: 1.1 * QUIET[1], 1: QUIET[1]}
    assert 2 in machine.train_for(choice, 300)
    assert choice.threads == 1
    machine.seconds = {2: 0.9 * QUIET[1], 1: QUIET[1]}
    machine.train_for(choice, 600)
    assert choice.threads == 2


def test_long_steps_are_not_all_spent_on_trials():
    machine = Machine({2: 20.0, 1: 25.0})
    choice = machine.choice()
    machine.train(choice, 20)
    machine.seconds = {2: 500.0, 1: 50.0}
    counts = machine.train(choice, 100)
    assert counts[:6] == [2, 2, 2, 1, 1, 1]
    tried = [step for step, count in enumerate(counts) if count == 2 and step > 3]
    assert min(later - earlier for earlier, later in pairwise([6, *tried])) >= TRIAL_STEPS
    assert 4 <= len(tried) <= 12
    # The slowness of the smaller count, below which there is none, does not keep the larger from its trial.
    machine.seconds = {2: 20.0, 1: 50.0}
    assert machine.train(choice, 40)[-1] == 2


def test_a_new_busy_process_long_after_is_a_new_beginning():
    machine = Machine(QUIET)
    choice = machine.choice()
    machine.train(choice, 100)
    for _ in range(3):
        machine.seconds = BUSY
        machine.train_for(choice, 200)
        machine.seconds = QUIET
        assert 2 in machine.train_for(choice, 400)
        assert set(machine.train_for(choice, 600)) == {2}
        machine.seconds = BUSY
        assert machine.train_for(choice, 20)[-1] == 1
        machine.seconds = QUIET
        assert machine.train_for(choice, 60)[-1] == 2


def test_slowness_that_fewer_threads_do_not_heal_is_rarely_looked_into():
    machine = Machine(QUIET)
    choice = machine.choice()
    machine.train(choice, 100)
    machine.seconds = {count: 3 * seconds for count, seconds in QUIET.items()}  # as on a processor that cools down
    counts = machine.train_for(choice, 3600)
    assert counts[-1] == 2
    assert 2 * TRIAL_STEPS <= counts.count(1) <= 12 * TRIAL_STEPS


def test_of_many_counts_those_are_used_for_which_there_are_cores():
    machine = Machine(FOUR_QUIET)
    choice = machine.choice((4, 2, 1))
    machine.train(choice, 20)
    machine.seconds = {4: 20.0, 2: 2.0, 1: 3.6}
    assert machine.train(choice, 15)[-1] == 2
    # A further one. It is noticed although a trial was not long ago, and needs as many slow steps.
    machine.seconds = {4: 20.0, 2: 4.5, 1: 3.6}
    assert machine.train(choice, 7) == [2, 2, 2, 1, 1, 1, 1]
    machine.seconds = FOUR_QUIET
    counts = machine.train(choice, 100)
    assert counts[-1] == 4
    returns = counts.index(2)
    assert counts[returns : returns + 2 * TRIAL_STEPS] == [2] * TRIAL_STEPS + [4] * TRIAL_STEPS


def test_the_count_that_a_trial_has_kept_has_its_own_slow_steps_before_the_next():
    machine = Machine(FOUR_QUIET)
    choice = machine.choice((4, 2, 1))
    machine.train(choice, 20)
    machine.seconds = {4: 20.0, 2: 4.0, 1: 3.6}  # two threads are slow as well, and no worse than one
    assert machine.train(choice, 13) == [4] * 3 + [2] * 3 + [1] * 3 + [2] * 3 + [1]


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
