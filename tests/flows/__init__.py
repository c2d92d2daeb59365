"""Tests of the flows, which neither follow the developer's own Prefect settings nor touch the developer's home.

Prefect reads the variables when it is imported, which no module here does before this one.
"""

import atexit
import os
import shutil
import signal
import tempfile

# A shell starts what runs in the background deaf to Ctrl-C, and so would be all that is started here.
signal.signal(signal.SIGINT, signal.default_int_handler)

for _name in [name for name in os.environ if name.startswith("PREFECT_")]:
    del os.environ[_name]
os.environ["PREFECT_HOME"] = tempfile.mkdtemp(prefix="prefect-")
atexit.register(shutil.rmtree, os.environ["PREFECT_HOME"], ignore_errors=True)

# The flows' own settings are those of the tests as well.
import flows as flows  # noqa: E402
