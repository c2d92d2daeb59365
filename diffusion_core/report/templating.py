"""The templates of all pages."""

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined


def templates() -> Environment:
    """Return the templates of pages; their style is that of the page of the images."""
    return Environment(
        loader=ChoiceLoader([PackageLoader("diffusion_core.report"), PackageLoader("diffusion_core.data.report")]),
        # Names of classes and paths are other people's.
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
