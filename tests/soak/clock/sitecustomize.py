"""Shifts the clock of a Python process by the days in SOAK_DAYS; Python imports this module when it starts."""

import os
import time

_seconds = 86400 * int(os.environ.get("SOAK_DAYS", "0"))
if _seconds:
    _time, _time_ns = time.time, time.time_ns
    time.time = lambda: _time() + _seconds
    time.time_ns = lambda: _time_ns() + _seconds * 10**9
