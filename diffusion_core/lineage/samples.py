"""The origin of samples, and the key that determines which samples are comparable.

`sample` writes the origin of its output next to it. So the samples of one model are never attributed to another, even
if a stage is run by hand or an output is restored without the others.
"""

from pydantic import BaseModel

from diffusion_core.config.settings import SampleSettings
from diffusion_core.lineage.provenance import code_digest, json_digest
from diffusion_core.lineage.record import Record

# The code that determines samples; also dependencies of the stage in dvc.yaml.
SAMPLING_CODE = ("generation.py", "networks", "process", "randomness.py", "samplers")


class SamplesOrigin(Record):
    """The origin of samples.

    Attributes:
        model_digest: digest of the sampled model.
        sampling_key: see `sampling_key`.
        sample: the section `sample` of params.yaml by which they were made; None for samples of former versions.
    """

    model_digest: str
    sampling_key: str
    sample: SampleSettings | None = None


def sampling_key(sample: BaseModel) -> str:
    """Return the digest of everything that determines samples except the model: the section `sample` and the code."""
    return json_digest([sample.model_dump(mode="json"), code_digest(*SAMPLING_CODE)])
