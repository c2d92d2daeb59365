"""The clock: compared with those of the servers that the settings name."""

import time
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from http.client import HTTPException

import httpx

from diffusion_core.address import without_userinfo
from diffusion_core.config.environment import Environment
from diffusion_core.doctor.diagnosis import Diagnosis, ok, problem, warning
from diffusion_core.doctor.prefect_settings import prefect_server
from diffusion_core.errors import UserError
from diffusion_core.registry.connection import is_server, tracking_uri

AMAZON = "https://s3.amazonaws.com"
SECONDS_TO_ANSWER = 3.0
# S3 refuses requests from a clock that is off by more.
MOST_SECONDS = 15 * 60.0
# Heartbeats are compared over 90 seconds.
SOME_SECONDS = 60.0


def clock(environment: Environment) -> Iterator[Diagnosis]:
    """Compare this machine's clock with the dates in the answers of servers; one that does not answer is left out."""
    skews = {}
    for address in _addresses(environment):
        try:
            began = time.time()
            answer = httpx.get(address, timeout=SECONDS_TO_ANSWER)
            now = (began + time.time()) / 2
            skews[address] = now - parsedate_to_datetime(answer.headers["Date"]).timestamp()
        except (httpx.HTTPError, httpx.InvalidURL, HTTPException, LookupError, ValueError):
            continue
    if not skews:
        return
    address, skew = max(skews.items(), key=lambda each: abs(each[1]))
    sentence = f"this machine's clock is {abs(skew):,.0f} s {'after' if skew > 0 else 'behind'} that of {address}"
    remedy = "set it by NTP: `timedatectl set-ntp true`, for example"
    if abs(skew) > MOST_SECONDS:
        yield problem(f"{sentence}, and S3 refuses requests beyond {MOST_SECONDS:.0f} s", remedy)
    elif abs(skew) > SOME_SECONDS:
        yield warning(sentence, remedy)
    else:
        yield ok(f"this machine's clock is that of {', '.join(skews)}")


def _addresses(environment: Environment) -> list[str]:
    """Return the addresses of the servers, without passwords."""
    uri = tracking_uri(environment)
    try:
        prefect = prefect_server()
    except UserError:
        prefect = None
    store = environment.s3_endpoint or (AMAZON if environment.dvc_remote or environment.checkpoint_copies else None)
    found = (store, uri if is_server(uri) else None, prefect and f"{prefect.api}/health")
    return [without_userinfo(each) for each in found if each]
