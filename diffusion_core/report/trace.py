"""The page `plots/trace.html`: where a version comes from. It needs no other file, no network and no script."""

from diffusion_core.lineage.trace import Trace
from diffusion_core.report.templating import templates

TEMPLATE = "trace.html.jinja"


def trace_page(trace: Trace) -> str:
    """Return the page as HTML."""
    return templates().get_template(TEMPLATE).render(trace=trace)
