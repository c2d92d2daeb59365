"""Converts the output of a child process to log lines."""

import codecs
import re
import time
from collections.abc import Callable

LONGEST_LINE = 1000
SECONDS_BETWEEN_FRAMES = 10.0

# What DVC says to a person at a terminal: each of these lines is one of a hint.
HINTS = (
    "To track the changes with git, run:",
    "git add dvc.lock",
    "To enable auto staging, run:",
    "dvc config core.autostage true",
    "Use `dvc push` to send your updates to remote storage.",
)

# A carriage return without a line feed ends one frame of a progress bar.
_ENDS = re.compile(r"(\r\n|\n|\r(?!$))")


def without_userinfo(text: str) -> str:
    """Return `text` without users and passwords in addresses."""
    return re.sub(r"(?<=://)[^\s/@]*@", "", text)


class Transcript:
    """Splits output into lines, truncates long ones, removes passwords, and drops DVC's hints and frames of bars.

    Args:
        tell: called with each line.

    Attributes:
        error: the text after `error:` in the last line that begins with it, or None; the command line prints a
            `UserError` like this.
        dvc_error: the text after `ERROR:` in the last line that begins with it, or None; DVC prints its errors like
            this.
    """

    def __init__(self, tell: Callable[[str], None]) -> None:
        self.error: str | None = None
        self.dvc_error: str | None = None
        self._tell = tell
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._rest = ""
        self._last_frame = -SECONDS_BETWEEN_FRAMES

    def feed(self, output: bytes) -> None:
        """Add the next bytes of the output."""
        *parts, self._rest = _ENDS.split(self._rest + self._decoder.decode(output))
        for text, end in zip(parts[::2], parts[1::2], strict=True):
            self._line(text, is_frame=end == "\r")

    def close(self) -> None:
        """Process the remaining output as the last line."""
        self._line(self._rest + self._decoder.decode(b"", final=True), is_frame=False)
        self._rest = ""

    def _line(self, text: str, is_frame: bool) -> None:
        text = without_userinfo(text.strip())
        if not text or text.startswith(HINTS):
            return
        if is_frame:
            now = time.monotonic()
            if now - self._last_frame < SECONDS_BETWEEN_FRAMES:
                return
            self._last_frame = now
        if text.startswith("error:"):
            self.error = text.removeprefix("error:").strip()
        elif text.startswith("ERROR:"):
            self.dvc_error = text.removeprefix("ERROR:").strip()
        self._tell(text if len(text) <= LONGEST_LINE else text[:LONGEST_LINE] + " ...")
