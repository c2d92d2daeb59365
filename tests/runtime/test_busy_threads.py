"""Beside a busy process fewer threads are used, and all of them again when it has ended."""

import logging
from itertools import pairwise

import pytest

from diffusion_core.runtime import threads as cpu_threads
from diffusion_core.runtime.threads import TRIAL_STEPS
from tests.runtime.machine import BUSY, QUIET, TINY, Machine

FOUR_QUIET = {4: 1.0, 2: 1.9, 1: 3.6}


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
