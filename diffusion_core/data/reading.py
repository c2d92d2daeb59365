"""What to tell the user about a file of `data/prepared` that cannot be read."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
from pydantic import ValidationError

from diffusion_core.errors import UserError


@contextmanager
def reading(file: Path) -> Iterator[None]:
    """Turn what goes wrong in the block, which reads and checks `file`, into one sentence.

    Raises:
        UserError: `file` is missing, or the block raised ValueError or another error of a reader.
    """
    try:
        yield
    except FileNotFoundError:
        raise UserError(f"{file} is missing: run the stage that makes it with `dvc repro prepare`") from None
    except (OSError, ValueError, KeyError, EOFError, pa.ArrowException) as error:
        problem = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
        raise UserError(
            f"{file} is damaged ({problem}): make it again with `dvc repro --force --single-item prepare`"
        ) from None
