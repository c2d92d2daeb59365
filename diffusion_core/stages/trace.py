"""Show where a registered version comes from, and write plots/trace.html and plots/trace.json."""

import json
from dataclasses import asdict

from diffusion_core.config.environment import Environment
from diffusion_core.files import write_whole
from diffusion_core.lineage.trace import Trace
from diffusion_core.registry.connection import answering, connect
from diffusion_core.registry.traced import traced
from diffusion_core.registry.version_names import registered_name
from diffusion_core.registry.versions import find_named
from diffusion_core.report.trace import trace_page
from diffusion_core.stages.paths import TRACE, TRACE_JSON


def run(environment: Environment, name: str, as_json: bool) -> None:
    """Print the trace of a version, and write its page and its JSON.

    Args:
        environment: the environment, with store and registered model.
        name: `NAME@ALIAS`, `NAME/NUMBER`, or an alias or the number of a version of the environment's model.
        as_json: print JSON in place of text.

    Raises:
        UserError: there is no such version.
        Unavailable: the tracking store does not answer.
    """
    client = connect(environment, may_create=False)
    with answering(environment):
        model, version = registered_name(environment, name)
        trace = traced(client, environment, find_named(client, model, version))
    content = json.dumps(asdict(trace), indent=2)
    TRACE.parent.mkdir(exist_ok=True)
    write_whole(TRACE, trace_page(trace))
    write_whole(TRACE_JSON, content + "\n")
    print(content if as_json else _text(trace))


def _text(trace: Trace) -> str:
    """Return the trace as lines; of the parameters only those that differ from the champion before."""
    lines = [f"{trace.title}, published {trace.published}"]
    lines += [trace.decision] if trace.decision else []
    for title, table in trace.tables().items():
        width = max(map(len, table))
        lines += ["", title, *(f"  {name:{width}}  {value}" for name, value in table.items())]
    for title, changes in trace.changes().items():
        width = max(len(each.name) for each in changes)
        lines += ["", title, *(f"  {each.name:{width}}  {each.before} -> {each.now}" for each in changes)]
    lines += ["", *(f"trace: {sentence}" for sentence in trace.missing)]
    return "\n".join([*lines, f"trace: {TRACE} and {TRACE_JSON} have it with all {len(trace.params)} parameters"])
