"""The dependency law, read from the sources: train -> {systems, tasks} -> {nn, data} -> ops -> {kernels, reference}."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "slrfast"
LEAVES = {"errors", "graphs", "files"}
MAY_IMPORT = {
    "errors": set(),
    "graphs": set(),
    "files": {"errors"},
    "checks": set(),
    "reference": {"reference", "checks"} | LEAVES,
    "kernels": {"kernels", "_C", "triton"} | LEAVES,
    "ops": {"ops", "kernels", "reference", "checks"} | LEAVES,
    "nn": {"nn", "ops", "checks"} | LEAVES,
    "data": {"data", "ops", "checks"} | LEAVES,
    "systems": {"systems", "nn", "data", "ops", "checks"} | LEAVES,
    "tasks": {"tasks", "nn", "data", "ops", "checks"} | LEAVES,
    "train": {"train", "systems", "tasks", "nn", "data", "ops", "checks", "kernels"} | LEAVES,
    "info": {"train"},
    "__init__": {"ops", "graphs", "errors"},
}
ONLY_INFO_SEES_KERNELS = {"train/info.py"}
SOURCES = sorted(PACKAGE.rglob("*.py"))
OPS = sorted(path.stem for path in (PACKAGE / "ops").glob("*.py") if not path.stem.startswith("_"))


def imports(path):
    """Every slrfast room (or triton) that a file imports, at any level."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            names = []
        for name in names:
            parts = name.split(".")
            if parts[0] == "triton":
                found.add("triton")
            elif parts[0] == "slrfast" and len(parts) > 1 and _is_room(parts[1]):
                found.add(parts[1])
    return found


def _is_room(name):
    return name == "_C" or (PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").is_file()


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_follow_the_law(path):
    relative = path.relative_to(PACKAGE)
    allowed = MAY_IMPORT[relative.parts[0].removesuffix(".py")]
    if str(relative) not in ONLY_INFO_SEES_KERNELS:
        allowed = allowed - {"kernels"} if relative.parts[0] == "train" else allowed
    assert imports(path) <= allowed


def test_addresses_are_taken_in_one_place():
    users = sorted(p.relative_to(PACKAGE) for p in SOURCES if "data_ptr(" in p.read_text())
    assert users == [Path(f"kernels/native{name}.py") for name in ("", "_clips", "_masks", "_text")]


def test_every_gpu_kernel_is_in_the_table_of_what_is_proven():
    table = (ROOT / "benchmarks" / "results" / "README.md").read_text()
    kernels = [*(PACKAGE / "kernels" / "triton").glob("[a-z]*.py"), *(ROOT / "csrc" / "cuda").glob("*.cu")]
    assert [str(p.relative_to(ROOT)) for p in kernels if f"| `{p.relative_to(ROOT)}` |" not in table] == []


def test_only_bindings_know_python():
    for path in (ROOT / "csrc").rglob("*.*"):
        included = re.findall(r'#\s*include\s*[<"]([^>"]+)', path.read_text())
        foreign = [name for name in included if re.match(r"(torch|ATen|c10|Python\.h|pybind11)", name)]
        assert not foreign or path.parent.name == "bindings", path


def test_only_parallel_for_names_openmp():
    users = {p.name for p in (ROOT / "csrc").rglob("*.*") if re.search(r"\bomp_|#\s*pragma omp|omp\.h", p.read_text())}
    assert users and all(name.startswith("parallel") for name in users)


@pytest.mark.parametrize("op", OPS)
def test_every_op_has_its_reference_test_and_benchmark(op):
    assert (PACKAGE / "reference" / f"{op}.py").is_file()
    assert (ROOT / "tests" / "ops" / f"test_{op}.py").is_file()
    assert (ROOT / "benchmarks" / "ops" / f"{op}.py").is_file()


def test_no_source_file_is_long():
    files = [
        *SOURCES,
        *(ROOT / "csrc").rglob("*.*"),
        *(ROOT / "tests").rglob("*.py"),
        *(ROOT / "benchmarks").rglob("*.py"),
    ]
    assert {str(p.relative_to(ROOT)): n for p in files if (n := p.read_text().count("\n")) > 500} == {}


def test_the_compiled_module_needs_no_torch():
    pytest.importorskip("slrfast._C")
    code = "import sys; sys.modules['torch'] = None; import importlib.util as u; " \
        f"s = u.spec_from_file_location('slrfast._C', {_compiled()!r}); m = u.module_from_spec(s); " \
        "s.loader.exec_module(m); print(m.build_info())"  # fmt: skip
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    linked = subprocess.run(["ldd", _compiled()], capture_output=True, text=True, check=False).stdout
    assert "torch" not in linked and "libc10" not in linked


def _compiled():
    from slrfast import _C

    return _C.__file__
