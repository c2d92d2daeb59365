"""The entries of a queue for a tracking store, and what each kind has."""

from typing import Annotated, Any, Literal, cast

from pydantic import Field, TypeAdapter
from typing_extensions import TypedDict

Entry = dict[str, Any]


class _Start(TypedDict):
    kind: Literal["start"]
    params: dict[str, str]
    dataset: dict[str, str | dict[str, int | str] | None]
    tags: dict[str, str]
    time: int


class _Metrics(TypedDict):
    kind: Literal["metrics"]
    values: dict[str, float]
    step: int
    time: int


class _Tag(TypedDict):
    kind: Literal["tag"]
    key: str
    value: str


class _Text(TypedDict):
    kind: Literal["text"]
    content: str
    # Below the run's artifacts.
    file: Annotated[str, Field(pattern=r"^(\w[\w.-]*/)*\w[\w.-]*$")]


class _Image(TypedDict):
    kind: Literal["image"]
    key: str
    step: int
    time: int
    # Nothing but an image of the queue.
    file: Annotated[str, Field(pattern=r"^[0-9a-f]{32}\.npy$")]


class _End(TypedDict):
    kind: Literal["end"]
    status: Literal["FINISHED", "FAILED", "KILLED"]
    time: int


_AnyEntry = Annotated[_Start | _Metrics | _Tag | _Text | _Image | _End, Field(discriminator="kind")]
_ENTRY: TypeAdapter[_AnyEntry] = TypeAdapter(_AnyEntry)


def parse(line: bytes) -> Entry:
    """Return the entry of a line of JSON.

    Raises:
        ValidationError: it is not an entry.
    """
    return cast(Entry, _ENTRY.validate_json(line))
