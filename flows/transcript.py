"""What a child process prints, as lines for a log."""

import codecs
import re
import time
from collections.abc import Callable

LONGEST_LINE = 1000
SECONDS_BETWEEN_FRAMES = 10.0

# A carriage return that no line feed follows ends one frame of a progress bar.
_ENDS = re.compile(r"(\r\n|\n|\r(?!$))")


def without_userinfo(text: str) -> str:
    """Return `text` without the users and passwords of the addresses in it."""
    return re.sub(r"(?<=://)[^\s/@]*@", "", text)


class Transcript:
    """Cuts output into lines, clips long ones, thins the frames of progress bars, and keeps passwords of addresses out.

    Args:
        tell: called with each line.

    Attributes:
        error: what followed `error:` in the last line that began so, or None. Our command line begins with it the one
            sentence about a mistake of the user's.
        trouble: the same of `ERROR:`, with which DVC begins its own.
    """

    def __init__(self, tell: Callable[[str], None]) -> None:
        self.error: str | None = None
        self.trouble: str | None = None
        self._tell = tell
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._rest = ""
        self._last_frame = -SECONDS_BETWEEN_FRAMES

    def feed(self, output: bytes) -> None:
        """Take the next bytes."""
        *parts, self._rest = _ENDS.split(self._rest + self._decoder.decode(output))
        for text, end in zip(parts[::2], parts[1::2], strict=True):
            self._line(text, is_frame=end == "\r")

    def close(self) -> None:
        """Take what is left as the last line."""
        self._line(self._rest + self._decoder.decode(b"", final=True), is_frame=False)
        self._rest = ""

    def _line(self, text: str, is_frame: bool) -> None:
        text = without_userinfo(text.strip())
        if not text:
            return
        if is_frame:
            now = time.monotonic()
            if now - self._last_frame < SECONDS_BETWEEN_FRAMES:
                return
            self._last_frame = now
        if text.startswith("error:"):
            self.error = text.removeprefix("error:").strip()
        elif text.startswith("ERROR:"):
            self.trouble = text.removeprefix("ERROR:").strip()
        self._tell(text if len(text) <= LONGEST_LINE else text[:LONGEST_LINE] + " ...")
