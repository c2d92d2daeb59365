"""Feature extractors beside the domain's own, one per file.

To add an extractor, add a file here and list its class in `ExtractorChoice`.
"""

from diffusion_core.metrics.extractors.imagenet import ImageNet
from diffusion_core.metrics.extractors.torchscript import TorchScript

ExtractorChoice = TorchScript | ImageNet
