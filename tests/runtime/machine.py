"""A simulated machine: its clock moves only with steps, whose seconds depend on the threads."""

import json
import random

import torch

from diffusion_core.runtime.threads import ThreadChoice

# Seconds a step of the demo's network on two cores, by threads: alone, and beside a busy process.
QUIET = {2: 64 / 963, 1: 64 / 806}
BUSY = {2: 64 / 100, 1: 64 / 791}
# A network so small that a second thread only costs.
TINY = {2: 0.006, 1: 0.004}


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
