"""The arrows of docs/design.md between packages, what the wheel holds, and the size of files."""

import ast
import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# What each package or module below moge_bench may import, lazily too; "a.b" is that module alone.
# "moge_bench" is the root, whose names are public; cli is above all and stands on no right side.
ARROWS = {
    "ops": "system",
    "routing": "ops",
    "moe": "ops routing",
    "moge_bench": "ops routing moe",
    "integrations": "moge_bench ops routing moe",
    "system": "",
    "cache": "system",
    "methods": "",
    "metrics": "",
    "config": "ops.topography methods metrics",
    "presets": "config methods metrics",
    "data": "config system cache",
    "models": "ops routing moe config",
    "training": "ops routing moe models config methods metrics data system",
    "runs": "moge_bench ops moe models training config methods metrics presets data system",
    "study": "ops models runs training config methods metrics presets data system analysis.store",
    "publish": "analysis.store config methods metrics presets runs study system",
    "analysis": "ops.topography ops.reference_experts config methods metrics runs.record "
    "runs.store training.probes system",
    "perf": "moge_bench ops moe config metrics presets data models training runs study system "
    "cache",
    # Beside the packages of docs/design.md.
    "doctor": "moge_bench ops data.assets system",
}  # fmt: skip

# Of tools/, which may use moge_bench besides.
TOOLS = {"tools": "", "avx512": "simt", "includes": "", "interface": "", "ptx": "",
         "simt": "includes interface",
         "gpu_check": "includes interface ptx", "gpu_run": "", "reliability": "simt"}  # fmt: skip


def imported(path, package, tree):
    """Yield (line, dotted name) of every import in the file, wherever in it the import stands."""
    here = [package, *path.relative_to(tree).with_suffix("").parts]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = here[: -node.level] if node.level else []
            module = ".".join([*base, *filter(None, [node.module])])
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)


def unit(name, package, tree):
    """Return where below ``package`` a dotted name points: "ops.route", or the root's own name."""
    parts = name.split(".")[1:]
    top = parts[0] if parts else ""
    if not ((tree / top).is_dir() or (tree / f"{top}.py").is_file()) or not top:
        return package
    return ".".join(parts[:2])


def forbidden_imports(tree, package, arrows):
    """Return "file:line: imports name" of every import that the arrows do not allow."""
    wrong = []
    for path in sorted(tree.rglob("*.py")):
        first = path.relative_to(tree).parts[0].removesuffix(".py")
        home = package if first == "__init__" else first
        allowed = None if home == "cli" else arrows[home].split()
        for line, name in imported(path, package, tree):
            place = f"{path.relative_to(tree.parent)}:{line}: imports {name}"
            top = name.partition(".")[0]
            if package == "moge_bench" and top in ("tools", "tests", "scripts"):
                wrong.append(place)
            if top != package:
                continue
            target = unit(name, package, tree)
            whole = target.partition(".")[0]
            if whole != home and allowed is not None and not {whole, target} & {*allowed}:
                wrong.append(place)
    return wrong


def test_imports_follow_the_arrows():
    assert forbidden_imports(ROOT / "moge_bench", "moge_bench", ARROWS) == []
    assert forbidden_imports(ROOT / "tools", "tools", TOOLS) == []


def test_the_arrows_have_one_direction():
    """No two packages may import each other, not even through others."""
    left = {name: {target.partition(".")[0] for target in targets.split()}
            for name, targets in ARROWS.items()}  # fmt: skip
    # Files of ops that use none of these serve them: docs/design.md "Dependencies".
    left["config"].discard("ops")
    left["analysis"].discard("ops")
    while free := [name for name, targets in left.items() if not targets & left.keys()]:
        for name in free:
            del left[name]
    assert left == {}


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("from moge_bench.ops import route", False),
        ("from moge_bench.routing import router", True),
        ("def f():\n    from moge_bench.routing.router import Router", True),
        ("def f():\n    from ..routing import router", True),
        ("from .route import x", False),
        ("from moge_bench import route", True),
        ("import moge_bench.cli", True),
        ("import tools.ptx", True),
        ("import torch", False),
    ],
)
def test_a_forbidden_import_is_found_wherever_it_stands(tmp_path, line, found):
    tree = tmp_path / "moge_bench"
    for folder in ("ops", "routing"):
        (tree / folder).mkdir(parents=True)
    (tree / "cli.py").touch()
    (tree / "ops/new.py").write_text(line + "\n")
    wrong = forbidden_imports(tree, "moge_bench", ARROWS)
    assert bool(wrong) == found and all(text.startswith("moge_bench/ops/new.py:") for text in wrong)


def distributions_of(name):
    """Return the names of a distribution and of all that it requires here, directly or not."""
    found, pending = set(), [name]
    while pending:
        key = re.sub("[-_.]+", "-", pending.pop()).lower()
        if key in found:
            continue
        found.add(key)
        try:
            needed = metadata.requires(key) or []
        except metadata.PackageNotFoundError:
            continue
        pending += [re.split(r"[^\w.-]", line)[0] for line in needed if "extra ==" not in line]
    return found


USE = """
import importlib, sys
blocked = sys.argv[1].split()
sys.modules.update(dict.fromkeys(blocked))  # None: an import of it fails, as if it were not there
try:
    import yaml
except ImportError:
    pass
else:
    sys.exit("nothing is blocked")
import torch, moge_bench
for name in moge_bench.__all__:
    getattr(moge_bench, name)
moge_bench.route(torch.randn(3, 16), 2, group_size=3, backend="reference").group_loss
moge_bench.MoELayer(8, 8, num_experts=16, top_k=2, group_size=3)(torch.randn(3, 8))
loaded = {name.partition(".")[0] for name, module in sys.modules.items() if module}
assert not loaded & set(blocked), loaded & set(blocked)
"""


def test_importing_and_using_the_package_needs_only_torch():
    kept = distributions_of("torch") | {"moge-bench", "setuptools"}
    blocked = [
        module
        for module, owners in metadata.packages_distributions().items()
        if not any(re.sub("[-_.]+", "-", owner).lower() in kept for owner in owners)
        and module.isidentifier()
    ]
    assert {"numpy", "pandas", "pydantic", "transformers", "yaml"} <= set(blocked)
    done = run_apart(USE, " ".join(blocked))
    assert done.returncode == 0, done.stderr[-3000:]


HELP = """
import sys
sys.argv[0] = "/usr/bin/moge-bench"
import moge_bench
tops = lambda: {name.partition(".")[0] for name in sys.modules}
before = tops()
from typer.testing import CliRunner
from moge_bench.cli import app
for command in ([], ["perf"], ["perf", "gate"], ["ablate"]):
    result = CliRunner().invoke(app, [*command, "--help"])
    assert result.exit_code == 0, result.output
loaded = (tops() - before) & set(sys.argv[1].split())
assert not loaded, loaded
"""


def test_the_command_line_loads_no_library_of_a_command_before_it_runs():
    """Not torch either: --help and completion must be there at once."""
    done = run_apart(HELP, "accelerate matplotlib pandas scipy statsmodels torch transformers")
    assert done.returncode == 0, done.stderr[-3000:]


def run_apart(code, argument):
    return subprocess.run(
        [sys.executable, "-c", code, argument], cwd=ROOT, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip


def files_of_the_wheel(folder):
    """Return what setuptools would put into a wheel, but for what is compiled."""
    folder.mkdir(exist_ok=True)
    command = ["setup.py", "-q", "egg_info", "--egg-base", str(folder), "build_py", "--build-lib",
               str(folder / "lib")]  # fmt: skip
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=os.environ | {"MOGE_CUDA": "0"},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return {
        path.relative_to(folder / "lib").as_posix()
        for path in (folder / "lib").rglob("*")
        if path.is_file()
    }


def test_the_wheel_holds_the_package_and_its_data_alone(tmp_path):
    names = files_of_the_wheel(tmp_path)
    assert {name.partition("/")[0] for name in names} == {"moge_bench"}
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "moge_bench").rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == modules
    # Found at run time beside the code, so a wheel without one of them is broken.
    data = {f"moge_bench/data/assets/{path.name}" for path in
            (ROOT / "moge_bench/data/assets").iterdir()}  # fmt: skip
    data |= {path.relative_to(ROOT).as_posix() for suffix in ("yaml", "csv", "json")
             for path in (ROOT / "moge_bench").rglob(f"*.{suffix}")}  # fmt: skip
    data |= {path.relative_to(ROOT).as_posix() for path in
             (ROOT / "moge_bench/publish/templates").iterdir()}  # fmt: skip
    assert names - modules == data | {"moge_bench/py.typed"}
    assert any(name.endswith("quick.yaml") for name in data)
    apart = re.compile(r"\b(simt|ptx|gpu_check|tools|tests|csrc)\b")
    assert [name for name in names if apart.search(name)] == []


SOURCES = (".py", ".cpp", ".h", ".cu", ".cuh")
MOST_LINES = 320
LONGER: dict[str, str] = {}  # path -> why it is not divided


def test_no_source_file_is_too_long():
    folders = ("moge_bench", "csrc", "tools", "tests", "scripts", "examples")
    lines = {
        path.relative_to(ROOT).as_posix(): len(path.read_text(encoding="utf-8").splitlines())
        for folder in folders
        for path in (ROOT / folder).rglob("*")
        if path.suffix in SOURCES
    }
    too_long = {name for name, count in lines.items() if count > MOST_LINES}
    assert too_long == LONGER.keys(), {name: lines[name] for name in too_long}


def test_the_package_takes_its_own_names_from_where_they_are():
    """The command does without the names of ``moge_bench`` itself: `from moge_bench import route`
    works everywhere but there."""
    import moge_bench

    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in (ROOT / "moge_bench").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.module == "moge_bench"
        and {name.name for name in node.names} & set(moge_bench.__all__)
    ]  # fmt: skip
    assert found == []
