"""No module of this project runs what a file says: no unpickling, no unsafe loader, no code from a text."""

import ast
from pathlib import Path

import grimp
import pytest

PACKAGES = ("diffusion_core", "flows", "stack")

# Modules that turn bytes into objects of any class, or unpack an archive to where its entries say.
MODULES = {
    *("cPickle", "cloudpickle", "dill", "joblib", "jsonpickle", "marshal", "pickle", "pickletools", "shelve"),
    *("code", "codeop", "runpy", "tarfile", "xmlrpc"),
}
# Functions that run a text, import what a text names, or unpack an archive.
FUNCTIONS = {"eval", "exec", "compile", "__import__", "extractall", "unpack_archive"}
# What loads a file, and the only way in which it may be called: (argument, value), or None for no way.
LOADERS = {
    "torch.load": ("weights_only", True),
    "torch.jit.load": None,
    "torch.package.PackageImporter": None,
    # Shards, samples and images are mapped, which no object can be (diffusion_core/data/shards.py).
    "np.load": None,
    "numpy.load": None,
    "np.lib.format.open_memmap": ("mode", "r"),
    "mlflow.pyfunc.load_model": None,
    "pd.read_pickle": None,
    "YAML": ("typ", "safe"),
    "yaml.load": None,
    "yaml.unsafe_load": None,
    "yaml.full_load": None,
}
DYNAMIC = {"import_module"}

# What is found and right, with the reason: (file, what).
JUSTIFIED = {
    ("diffusion_core/interop/lucidrains.py", "pickle"): "names an exception of torch.load(weights_only=True)",
    ("diffusion_core/metrics/extractors/torchscript.py", "torch.jit.load"): (
        "runs the file whose sha256 params.yaml names, and whose programs reach tensors alone"
    ),
    ("diffusion_core/data/sources/tar_file.py", "tarfile"): "reads entries, and unpacks none to the disk",
    ("diffusion_core/__init__.py", "import_module"): "imports from a table in the same file",
    ("diffusion_core/__main__.py", "import_module"): "imports a stage from a table in the same file",
}


def dotted(node):
    """Return a name with its dots, or "" for another expression."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (owner := dotted(node.value)):
        return f"{owner}.{node.attr}"
    return ""


def is_safe(call, wanted):
    if wanted is None:
        return False
    argument, value = wanted
    return any(
        each.arg == argument and isinstance(each.value, ast.Constant) and each.value.value == value
        for each in call.keywords
    )


def dangers(source):
    """Yield what a source imports and calls that could run what a file says."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (each.name for each in node.names if each.name.partition(".")[0] in MODULES)
        elif isinstance(node, ast.ImportFrom):
            names = {each.name for each in node.names} & ({"load"} | FUNCTIONS)
            if (node.module or "").partition(".")[0] in MODULES:
                yield node.module
            elif names and (node.module or "").partition(".")[0] in ("torch", "numpy", "yaml"):
                # Under a bare name the rules below would not see it.
                yield f"{node.module}.{min(names)}"
        elif isinstance(node, ast.Call):
            name = dotted(node.func)
            last = node.func.attr if isinstance(node.func, ast.Attribute) else name
            if (name in LOADERS and not is_safe(node, LOADERS[name])) or last == "read_pickle":
                yield name
            # `model.eval()` and `re.compile(...)` are methods of others.
            elif name in FUNCTIONS | DYNAMIC or last in ("extractall", "unpack_archive", "import_module"):
                yield last
            elif any(each.arg == "allow_pickle" and getattr(each.value, "value", None) is not False
                     for each in node.keywords):  # fmt: skip
                yield "allow_pickle"


def sources():
    return [file for package in PACKAGES for file in sorted(Path(package).rglob("*.py"))]


def test_no_module_runs_what_a_file_says():
    found = {(file.as_posix(), what) for file in sources() for what in dangers(file.read_text(encoding="utf-8"))}
    assert found - JUSTIFIED.keys() == set()
    # Nothing is justified that is not there.
    assert JUSTIFIED.keys() == found


def test_the_closure_of_imports_has_none_of_these_modules():
    graph = grimp.build_graph(*PACKAGES, include_external_packages=True, cache_dir=None)
    importers = {
        (importer.replace(".", "/") + ".py", module)
        for module in MODULES & graph.modules
        for importer in graph.find_modules_that_directly_import(module)
    }
    assert importers == {
        ("diffusion_core/interop/lucidrains.py", "pickle"),
        ("diffusion_core/data/sources/tar_file.py", "tarfile"),
    }
    # Every file is in the graph, so nothing lies beside what was looked at.
    known = {module for module in graph.modules if module.partition(".")[0] in PACKAGES}
    assert {".".join(file.with_suffix("").parts).removesuffix(".__init__") for file in sources()} <= known


@pytest.mark.parametrize(
    "planted",
    [
        "import pickle",
        "import joblib",
        "from cloudpickle import loads",
        "def f():\n    import marshal",
        "import shelve as s",
        "torch.load(file)",
        "torch.load(file, weights_only=False)",
        "torch.load(file, weights_only=flag)",
        "from torch import load",
        "np.load(file)",
        "np.load(file, allow_pickle=True)",
        "numpy.lib.npyio.load(file, allow_pickle=True)",
        "yaml.load(text, Loader=yaml.Loader)",
        "yaml.unsafe_load(text)",
        "YAML().load(text)",
        "YAML(typ='unsafe').load(text)",
        "pd.read_pickle(file)",
        "eval(text)",
        "exec(text)",
        "__import__(name)",
        "importlib.import_module(name)",
        "archive.extractall(folder)",
        "shutil.unpack_archive(file)",
    ],
)
def test_what_is_planted_is_found(planted):
    """The control."""
    assert [*dangers(planted)]


@pytest.mark.parametrize(
    "harmless",
    [
        "torch.load(file, weights_only=True)",
        "model.eval()",
        "re.compile('a')",
        "YAML(typ='safe', pure=True).load(text)",
    ],
)
def test_what_is_harmless_is_not_found(harmless):
    assert not [*dangers(harmless)]
