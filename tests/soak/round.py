"""One round: a training or a flow is disturbed until it has completed, and compared with an undisturbed one."""

import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass

from tests.soak import checks
from tests.soak.disk import Disk
from tests.soak.project import copy_project, kill_marked, module, send, start_seconds, start_undisturbed, variables
from tests.soak.subjects import CLOCK, SUBJECTS

# Disturbances of a round, and seconds that one lasts, at most.
MOST, LASTING = 9, 5.0
# A killed flow's stage has 20 seconds for a checkpoint.
SECONDS_TO_END = 45.0
# Far more than any start of the undisturbed project takes.
SECONDS_TO_COMPLETE = 420.0
TICK = 0.05


@dataclass(frozen=True)
class Disturbance:
    """What is done, the seconds since what was done before, how long it lasts, and a size in bytes."""

    kind: str
    after: float
    seconds: float
    size: int


class Round:
    """One round.

    Args:
        name: of the round, of its experiment and of its model.
        kind: what is disturbed: training, flow or worker.
        seed: of the training.
        random: the generator of disturbances.
        folder: an empty folder for all its files.
        server: the MLflow server.
        address: its address.
        deadline: when to stop disturbing, as of `time.monotonic`.
    """

    def __init__(self, name, kind, seed, random, folder, server, address, deadline):
        self.name, self.kind, self.seed, self.folder = name, kind, seed, folder
        self.server, self.address, self.deadline = server, address, deadline
        folder.mkdir()
        self.disk = Disk(folder / "disk")
        self.project = self.disk.folder / "project"
        environment = variables(folder, DIFFUSION_TRACKING_URI=address, DIFFUSION_EXPERIMENT=name)
        environment |= {"DIFFUSION_REGISTERED_MODEL": name, "PREFECT_HOME": str(folder.parent / "prefect-home")}
        self.subject = SUBJECTS[kind](self.project, environment, folder / "log.txt", seed)
        # Disturbances reach a busy machine as far in a run as an idle one.
        scale = start_seconds()
        self.plan = [
            Disturbance(
                random.choice(self.subject.possible(self.disk)),
                scale * random.uniform(0.0, self.subject.pause),
                random.uniform(0.5, LASTING),
                random.choice([0, random.randrange(400_000)]),
            )
            for _ in range(random.randint(MOST // 2, MOST))
        ]
        self.began = time.monotonic()
        self.events = []
        self.done = []
        self.starts = 0
        self.violations = []
        self._later = []
        self._days, self._largest, self._excused = 0, None, False

    def run(self, base):
        """Run to the end, and fill `violations`."""
        copy_project(base, self.project, self.seed)
        undisturbed = self.folder / "undisturbed"
        copy_project(base, undisturbed, self.seed)
        beside = start_undisturbed(undisturbed, self.subject.stages)
        try:
            self.subject.prepare()
            if self._completes():
                self._conclude(undisturbed, beside)
        finally:
            self.subject.close()
            self.server.start()
            kill_marked(self.subject.mark)
            kill_marked(undisturbed)
            self._leave()

    def _completes(self):
        """Start and disturb until it has succeeded; return whether it has."""
        due = time.monotonic() + (self.plan[0].after if self.plan else 0.0)
        while True:
            self._start()
            while (code := self.subject.poll()) is None:
                if self.plan and time.monotonic() > self.deadline:
                    self.plan = []
                if self.plan and time.monotonic() >= due:
                    self._disturb(self.plan.pop(0))
                    due = time.monotonic() + (self.plan[0].after if self.plan else 0.0)
                if time.monotonic() > self._last + SECONDS_TO_COMPLETE:
                    self._violated(f"it has not completed in {SECONDS_TO_COMPLETE:.0f} seconds")
                    return False
                self._tick()
            self._note(f"ends with code {code}")
            if not self._all_end():
                return False
            if code == 0:
                self._undo_all()
                return True
            if not self._excused:
                self._violated(f"start {self.starts} ended with code {code} without a disturbance")
                return False

    def _start(self):
        while not self.subject.is_ready():
            self._tick()
        # What lasts from before can still fail this start.
        self._excused = bool(self._later) or self._largest is not None
        self.starts += 1
        self._last = time.monotonic()
        self._note(f"start {self.starts}, clock {self._days:+d} days")
        self.subject.start(self._days, self._largest)
        self._days, self._largest = 0, None

    def _all_end(self):
        """Wait until all that it has started has ended; return whether it has."""
        end = time.monotonic() + SECONDS_TO_END
        while left := self.subject.leftovers():
            if time.monotonic() > end:
                self.violations += checks.processes(left)
                return False
            self._tick()
        return True

    def _disturb(self, disturbance):
        self._last = time.monotonic()
        self._note(f"{disturbance.kind}, {disturbance.seconds:.1f} s")
        seconds = disturbance.seconds
        match disturbance.kind.split():
            case ["clock", _]:
                # As a machine that was off and comes back.
                self._days = CLOCK[disturbance.kind]
                send(signal.SIGKILL, self.subject.leftovers())
            case ["full", _] if self.disk.can_be_filled:
                self.disk.fill(disturbance.size)
                self._in(seconds, self.disk.free)
            case ["full", _]:
                self._largest = 1 + disturbance.size
                send(signal.SIGKILL, self.subject.leftovers())
            case ["slow", _]:
                for pulse in range(int(seconds / 0.4)):
                    self._in(0.4 * pulse, lambda: self.server.send(signal.SIGSTOP))
                    self._in(0.4 * pulse + 0.3, lambda: self.server.send(signal.SIGCONT))
            case [name, "mlflow"]:
                self._signal_server(self.server, name, seconds)
            case [name, "prefect"]:
                self._signal_server(self.subject.prefect, name, seconds)
            case ["TERM", "worker"]:
                # Its wrapper stops the flow runs first.
                self.subject.worker.send(signal.SIGTERM)
                self._in(seconds, self._start_worker)
            case [name, who]:
                found = self.subject.targets(who)
                if not found:
                    self._note("it finds no process, and is not counted")
                    return
                send(signal.Signals[f"SIG{name}"], found)
                if name == "STOP":
                    self._in(seconds, lambda: send(signal.SIGCONT, found))
                elif who == "worker":
                    self._in(seconds, self._start_worker)
        self._excused = True
        self.done.append(disturbance.kind)

    def _start_worker(self):
        if self.subject.worker.lives():
            self._in(1.0, self._start_worker)
        else:
            self.subject.worker.start()

    def _signal_server(self, server, name, seconds):
        server.send(signal.Signals[f"SIG{name}"])
        self._in(seconds, server.start)

    def _in(self, seconds, action):
        self._later.append((time.monotonic() + seconds, action))

    def _tick(self):
        now = time.monotonic()
        due = [action for moment, action in self._later if moment <= now]
        self._later = [each for each in self._later if each[0] > now]
        for action in due:
            action()
        time.sleep(TICK)

    def _undo_all(self):
        while self._later:
            self._tick()

    def _conclude(self, undisturbed, beside):
        """Send what waits for MLflow, and compare."""
        self.server.start()
        self.server.wait()
        self.subject.close()
        self._all_end()
        with (self.folder / "log.txt").open("ab") as log:
            environment = self.subject.environment
            replay = module("diffusion_core", "replay")
            code = subprocess.run(replay, cwd=self.project, env=environment, stdout=log, stderr=log, check=False)
        if code.returncode != 0:
            self._violated(f"replay ended with code {code.returncode}")
        assert beside.wait() == 0, f"the undisturbed project failed: {undisturbed}/log.txt says why"
        self.violations += checks.differing_files(self.project, undisturbed, self.subject.outputs)
        in_order = not {*self.done} & {*CLOCK}
        self.violations += checks.tracking_differences(
            self.address, self.name, undisturbed, self.subject.publishes, in_order
        )
        self.violations += checks.temporary_files(self.project)

    def _leave(self):
        """Remove all files, or keep those of a violation and of an error of the soak itself."""
        if not self.violations and not isinstance(sys.exception(), Exception):
            self.disk.unmount()
            shutil.rmtree(self.folder)
            return
        shutil.copytree(self.disk.folder, self.folder / "kept", symlinks=True)
        self.disk.unmount()

    def _violated(self, sentence):
        self.violations.append(sentence)

    def _note(self, event):
        with (self.folder / "log.txt").open("a") as log:
            log.write(f"--- {self._elapsed():6.1f} s: {event}\n")
        self.events.append((self._elapsed(), event))

    def _elapsed(self):
        return time.monotonic() - self.began
