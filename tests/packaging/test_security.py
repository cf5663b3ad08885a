"""No file of the package may turn data into code; read from the source with ast.

What is allowed is listed with its reason; an entry that is no longer needed fails, too.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

from .test_imports import PARTS, ROOT

# Calls that execute what they are given, or what a file holds, or that trust names in an archive.
FORBIDDEN = {
    "eval",
    "exec",
    "compile",
    "__import__",
    "importlib.import_module",
    "import_module",
    "os.system",
    "os.popen",
    "pickle.load",
    "pickle.loads",
    "pickle.Unpickler",
    "cloudpickle.load",
    "cloudpickle.loads",
    "dill.loads",
    "marshal.loads",
    "shelve.open",
    "joblib.load",
    "yaml.load",
    "yaml.unsafe_load",
    "pd.read_pickle",
    "tempfile.mktemp",
    "shutil.unpack_archive",
    "ast.literal_eval",
    "fsspec.core.url_to_fs",
    "fsspec.open",
    "fsspec.filesystem",
    "ray.init",
    "jinja2.Template",
}
FORBIDDEN_METHODS = {"extractall", "extract", "from_string"}
# (module or folder, call): why it is safe there.
ALLOWED = {
    ("cluster.api", "ray.init"): "sets RAY_AUTH_MODE, refuses to start without tokens",
    ("graph_store.shard_options", "ray.init"): "a store on arrays; Ray's own default is a token",
    ("datasets.importing", "importlib.import_module"): "one of importer_names(), a listing",
    ("trainers.method", "importlib.import_module"): "one of method_names(), a listing",
    ("datasets.files", "fsspec.core.url_to_fs"): "refuses protocols that give orders",
    ("graph_store.places", "fsspec.core.url_to_fs"): "refuses protocols that give orders",
    ("graph_store.actors", "cloudpickle.loads"): "from the store's creator, over Ray, never a file",
}
# Calls that are safe with these arguments alone.
REQUIRED = {
    "torch.load": {"weights_only": True},
    "np.load": {"allow_pickle": False},
    "npy.read_array": {"allow_pickle": False},
    "jinja2.Environment": {"autoescape": True},
    "AutoModel.from_pretrained": {"trust_remote_code": False, "use_safetensors": True},
    "AutoModel.from_config": {"trust_remote_code": False},
}


@functools.cache
def calls() -> list[tuple[str, ast.Call, str]]:
    """Module, call and the name that is called, of the whole package."""
    return [
        (".".join(path.relative_to(ROOT).with_suffix("").parts), node, dotted(node.func))
        for part in PARTS
        for path in sorted((ROOT / part).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
    ]


def dotted(function: ast.expr) -> str:
    """`a.b.c` as it is written; "?" for what is no name."""
    if isinstance(function, ast.Attribute):
        return f"{dotted(function.value)}.{function.attr}"
    return function.id if isinstance(function, ast.Name) else "?"


def keywords(call: ast.Call) -> dict[str | None, object]:
    return {
        keyword.arg: keyword.value.value if isinstance(keyword.value, ast.Constant) else None
        for keyword in call.keywords
    }


def test_nothing_turns_data_into_code() -> None:
    used: set[tuple[str, str]] = set()
    wrong = []
    for module, call, name in calls():
        is_method = isinstance(call.func, ast.Attribute) and call.func.attr in FORBIDDEN_METHODS
        if name not in FORBIDDEN and not is_method:
            continue
        if name.endswith("import_module") and isinstance(call.args[0], ast.Constant):
            continue
        places = {(module, name), (module.split(".")[0], name)} & set(ALLOWED)
        used |= places
        if not places:
            wrong.append(f"{module}:{call.lineno} {name}")
    assert wrong == []
    assert used == set(ALLOWED)


def test_unpickler_is_one_that_knows_arrays_alone() -> None:
    subclasses = {
        path.relative_to(ROOT).as_posix()
        for part in PARTS
        for path in (ROOT / part).rglob("*.py")
        if "pickle.Unpickler)" in path.read_text()
    }
    assert subclasses == {"datasets/importers/cifar.py"}


def test_loaders_are_told_to_execute_nothing() -> None:
    seen = set()
    for module, call, name in calls():
        if name in REQUIRED:
            seen.add(name)
            given = keywords(call)
            assert {key: given.get(key) for key in REQUIRED[name]} == REQUIRED[name], module
    assert seen == set(REQUIRED)


def test_no_command_goes_through_a_shell() -> None:
    for module, call, name in calls():
        if name.startswith("subprocess."):
            assert keywords(call).get("shell", False) is False, module
            if call.args and name != "subprocess.run":
                assert not isinstance(call.args[0], ast.Constant | ast.JoinedStr), module


def test_models_are_never_trusted_with_code() -> None:
    for module, call, _ in calls():
        assert keywords(call).get("trust_remote_code", False) is False, module


def sources() -> Iterator[Path]:
    for part in (*PARTS, "benchmarks", "tests"):
        yield from sorted((ROOT / part).rglob("*.py"))


def test_nothing_listens_on_all_addresses() -> None:
    everywhere = "0.0." + "0.0"
    found = [str(path) for path in sources() if f'"{everywhere}"' in path.read_text()]
    assert found == []


def test_whoever_starts_ray_starts_it_with_tokens_and_no_open_dashboard() -> None:
    for path in sources():
        text = path.read_text()
        for call in ast.walk(ast.parse(text)) if "ray.init(" in text else ():
            if isinstance(call, ast.Call) and dotted(call.func) == "ray.init":
                where = f"{path}:{call.lineno}"
                given = keywords(call)
                joins = given.get("address") not in (None, "local") or not given
                assert "RAY_AUTH_MODE" in text or "ray_local" in text or joins, where
                assert given.get("dashboard_host", "127.0.0.1") in ("127.0.0.1", "localhost"), where
