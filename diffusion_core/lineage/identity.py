"""What determines the weights of a training. A checkpoint resumes only a training with the same identity."""

import ast
import json
from collections.abc import Mapping
from pathlib import Path

from diffusion_core.documents import read_small
from diffusion_core.lineage.provenance import code_files, json_digest
from diffusion_core.lineage.record import Record

FILE = "identity.json"

# Files and folders of this package that determine the weights: those in `deps` of the stage `train` in dvc.yaml.
CODE = (
    *(
        "stages/train.py",
        "stages/plan.py",
        "stages/parent.py",
        "stages/validating.py",
        "randomness.py",
        "data/dataset.py",
        "data/manifest.py",
        "data/shards.py",
    ),
    *("lineage/saved_model.py", "networks", "process", "training", "samplers/ddpm.py", "samplers/protocols.py"),
    *(f"runtime/{name}.py" for name in ("allocator", "compilation", "compile_cache", "device", "distributed")),
    *(f"runtime/{name}.py" for name in ("precision", "recording", "threads")),
    *("self_check/comparison.py", "self_check/training.py"),
)


class Identity(Record):
    """The content of `identity.json` in a folder of checkpoints.

    Attributes:
        dataset: sha256 of the dataset's content.
        params: the keys of the section `train` of params.yaml that determine the weights after each step,
            flat: dotted names and values as strings. So a longer training continues a shorter one.
        parent: sha256 of the model that it begins from, or None.
        code: sha256 of each source file in `CODE`, by path.
        torch: version of PyTorch.
    """

    dataset: str
    params: Mapping[str, str]
    parent: str | None = None
    code: Mapping[str, str]
    torch: str

    @classmethod
    def of(cls, dataset: str, params: Mapping[str, str], parent: str | None, torch: str) -> "Identity":
        """Return the identity of a training by the present code."""
        return cls(dataset=dataset, params=params, parent=parent, code=code_files(*CODE), torch=torch)

    @property
    def digest(self) -> str:
        """The sha256 of all of it."""
        return json_digest(self.model_dump(mode="json"))

    def differences(self, other: "Identity") -> list[str]:
        """Return in words how `other` differs from this: parameters, data, PyTorch and files."""
        found = [
            f"train.{name} was {other.params.get(name, 'not set')} and is {self.params.get(name, 'not set')}"
            for name in sorted({*self.params, *other.params})
            if self.params.get(name) != other.params.get(name)
        ]
        if self.dataset != other.dataset:
            found.append("the images in data/prepared are others")
        if self.parent != other.parent:
            found.append("the weights that it begins from are others")
        if self.torch != other.torch:
            found.append(f"PyTorch was {other.torch} and is {self.torch}")
        files = [name for name in sorted({*self.code, *other.code}) if self.code.get(name) != other.code.get(name)]
        if files:
            found.append(f"the code has changed ({', '.join(files)})")
        return found

    @classmethod
    def stored(cls, folder: Path) -> "Identity | None":
        """Return the identity of a folder of checkpoints, or None if it has none that can be read."""
        try:
            return cls.model_validate_json(read_small(folder / FILE))
        except (OSError, ValueError):
            return None


def flattened(params: Mapping[str, object], prefix: str = "") -> dict[str, str]:
    """Return nested parameters as strings with dotted names."""
    flat: dict[str, str] = {}
    for name, value in params.items():
        if isinstance(value, Mapping):
            flat |= flattened(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = str(value)
    return flat


def as_in_yaml(value: str) -> str:
    """Return a value of `flattened` as params.yaml may have it: null, true and false, also in lists and mappings."""
    try:
        parsed = ast.literal_eval(value)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return value
    return value if isinstance(parsed, str | int | float) and not isinstance(parsed, bool) else json.dumps(parsed)
