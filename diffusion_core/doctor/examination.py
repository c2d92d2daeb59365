"""Makes all checks and prints what they have found."""

import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import asdict, dataclass

from diffusion_core.config.environment import Environment
from diffusion_core.doctor.clock import clock
from diffusion_core.doctor.devices import computation, driver
from diffusion_core.doctor.diagnosis import Diagnosis, of_error, problem
from diffusion_core.doctor.disks import disks, reflinks
from diffusion_core.doctor.dvc import checksums, dvc_config, dvc_locks
from diffusion_core.doctor.machine import memory, processors
from diffusion_core.doctor.object_store import object_store
from diffusion_core.doctor.passwords import compose_passwords, readable_secrets, stack_passwords
from diffusion_core.doctor.prefect_server import prefect_api
from diffusion_core.doctor.project import git, params, processes
from diffusion_core.doctor.tracking import queues, tracking_store
from diffusion_core.doctor.versions import lock, packages, prefect_import
from diffusion_core.errors import UserError
from diffusion_core.runtime.device import choose_device

# A check is a function of the environment, which changes nothing.
Check = Callable[[Environment], Iterable[Diagnosis]]

# In the order in which they are printed.
CHECKS: dict[str, tuple[Check, ...]] = {
    "machine": (processors, memory, disks, reflinks),
    "project": (params, git, processes, dvc_locks, dvc_config, checksums, readable_secrets),
    "versions": (packages, lock, prefect_import),
    "devices": (driver, computation),
    "servers": (tracking_store, queues, object_store, prefect_api, stack_passwords, compose_passwords, clock),
}
# Not beside others, which would change what it measures.
ALONE = processors
# A device takes what it takes, to compile for example.
UNLIMITED = computation
SECONDS = 15.0


@dataclass(frozen=True)
class Finding:
    """A diagnosis with its group and the name of its check."""

    group: str
    check: str
    diagnosis: Diagnosis

    def __str__(self) -> str:
        found = self.diagnosis
        remedy = f"\n{'':11}-> {found.remedy}" if found.remedy else ""
        return f"  {found.verdict:7}  {found.sentence}{remedy}"


def run(environment: Environment, as_json: bool = False) -> None:
    """Print what each check has found, by groups, or all as JSON.

    Raises:
        UserError: DIFFUSION_DEVICE names a device that this machine does not have.
        SystemExit: with code 1, if there is a problem.
    """
    if environment.device != "auto":
        choose_device(environment.device)
    findings: list[Finding] = []
    for finding in _examined(environment):
        if not as_json:
            if finding.group not in {each.group for each in findings}:
                print(finding.group)
            print(finding, flush=True)
        findings.append(finding)
    counts = Counter(finding.diagnosis.verdict for finding in findings)
    if as_json:
        checks = [{"group": each.group, "check": each.check, **asdict(each.diagnosis)} for each in findings]
        print(json.dumps({"problems": counts["problem"], "warnings": counts["warning"], "checks": checks}, indent=2))
    else:
        print(f"problems: {counts['problem']}, warnings: {counts['warning']}, fine: {counts['ok']}")
    if counts["problem"]:
        sys.exit(1)


def _examined(environment: Environment) -> Iterator[Finding]:
    """Make the checks side by side, because most of them wait, and return what they find in the order of `CHECKS`."""
    alone = [*_diagnoses(ALONE, environment)]
    futures = {
        check: _started(check, environment)
        for checks in CHECKS.values()
        for check in checks
        if check not in (ALONE, UNLIMITED)
    }
    end = time.monotonic() + SECONDS
    for group, checks in CHECKS.items():
        for check in checks:
            if check is ALONE:
                found: Iterable[Diagnosis] = alone
            elif check is UNLIMITED:
                found = _diagnoses(check, environment)
            else:
                found = _result(futures[check], check, end)
            yield from (Finding(group, check.__name__, each) for each in found)


def _started(check: Check, environment: Environment) -> "Future[list[Diagnosis]]":
    """Make a check in a thread that does not keep the process from its end, as a name server that hangs would."""
    future: Future[list[Diagnosis]] = Future()

    def make() -> None:
        try:
            future.set_result([*_diagnoses(check, environment)])
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=make, name=check.__name__, daemon=True).start()
    return future


def _result(future: "Future[list[Diagnosis]]", check: Check, end: float) -> list[Diagnosis]:
    try:
        return future.result(max(end - time.monotonic(), 0.0))
    except TimeoutError:
        if future.done():
            raise
        return [
            problem(
                f"the check {check.__name__} had no answer within {SECONDS:.0f} s",
                "see that the network and its name server answer",
            )
        ]


def _diagnoses(check: Check, environment: Environment) -> Iterator[Diagnosis]:
    try:
        yield from check(environment)
    except (UserError, OSError) as error:
        yield of_error(error)
