"""sdist and wheel, as somebody installs them who has torch and nothing else; and what it costs."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from test_architecture import ROOT, distributions_of, files_of_the_wheel, run_apart

IMPORTS = """
import sys
import torch
before = set(sys.modules)
import moge_bench
print(*sorted(set(sys.modules) - before))
"""


def test_importing_the_package_loads_little_beyond_torch():
    """Modules and not seconds are counted."""
    done = run_apart(IMPORTS, "")
    assert done.returncode == 0, done.stderr[-3000:]
    tops = [name.partition(".")[0] for name in done.stdout.split()]
    assert tops.count("moge_bench") <= 40
    others = {top for top in tops if top not in ("moge_bench", "torch")}
    assert others <= sys.stdlib_module_names | {"_sysconfigdata__linux_x86_64-linux-gnu"}
    assert sum(top not in ("moge_bench", "torch") for top in tops) <= 15


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    """The tree of the sdist: what is not in it, a build from it has not."""
    folder = tmp_path_factory.mktemp("sdist")
    tree = folder / "tree"  # apart from the checkout, whose build folder may hold earlier files
    ignored = shutil.ignore_patterns(".*", "build", "results", "*.so", "__pycache__", "*.egg-info")
    shutil.copytree(ROOT, tree, ignore=ignored, symlinks=True)
    run_in(tree, [sys.executable, "setup.py", "-q", "sdist", "-d", str(folder / "dist")])
    (archive,) = (folder / "dist").glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(folder / "unpacked", filter="data")
    (found,) = (folder / "unpacked").iterdir()
    assert not (found / "tests").exists()
    return found


def run_in(tree, command, **environment):
    done = subprocess.run(
        command, cwd=tree, env=os.environ | {"MOGE_CUDA": "0"} | environment, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]


def make_wheel(tree, folder, **environment):
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w",
               str(folder), "."]  # fmt: skip
    run_in(tree, command, **environment)
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.mark.slow
def test_every_source_of_the_checkout_is_in_the_sdist(unpacked):
    sources = {path.relative_to(ROOT) for path in (ROOT / "csrc").rglob("*") if path.is_file()}
    assert sources == {p.relative_to(unpacked) for p in (unpacked / "csrc").rglob("*")
                       if p.is_file()}  # fmt: skip


@pytest.mark.slow
def test_a_real_wheel_adds_the_extension_only(unpacked, tmp_path):
    names = set(zipfile.ZipFile(make_wheel(unpacked, tmp_path)).namelist())
    names = {name for name in names if ".dist-info/" not in name}
    (extension,) = names - files_of_the_wheel(tmp_path / "expected")
    assert re.fullmatch(r"moge_bench/_C\..*\.so", extension)


USE = """
import sys, warnings
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    import torch, moge_bench
    torch.manual_seed(0)
    router = moge_bench.TopographicRouter(8, 16)
    routing = router(torch.randn(5, 8))
    (routing.group_loss + routing.weights[:, 0].sum()).backward()
    loss = moge_bench.group_norm(routing.scores.detach())
    y, aux = moge_bench.MoELayer(8, 8, 16)(torch.randn(5, 8))
assert not any("site-packages" in path for path in sys.path)
assert moge_bench.__file__.startswith(sys.argv[1])
assert routing.backend == aux.experts_backend == "reference"
assert router.gate.weight.grad.norm() > 0
torch.testing.assert_close(loss, routing.group_loss.detach())
ours = [str(w.message) for w in said if "moge_bench" in str(w.message)]
assert len(ours) == 1 and "runs the slow reference" in ours[0], ours
"""


def torch_alone(folder):
    """Fill ``folder`` with links to torch and what it needs: a bare environment but for them."""
    folder.mkdir()
    for name in distributions_of("torch"):
        try:
            files = metadata.distribution(name).files or []
        except metadata.PackageNotFoundError:  # for another system or Python
            continue
        for top in {file.parts[0] for file in files} - {"..", "__pycache__"}:
            place = Path(metadata.distribution(name).locate_file(top))
            if place.exists() and not (folder / top).exists():
                (folder / top).symlink_to(place)
    return folder


@pytest.mark.slow
def test_a_wheel_without_any_extension_works_beside_torch_alone(unpacked, tmp_path):
    """Where nothing compiles: the reference runs, one warning says so."""
    wheel = make_wheel(unpacked, tmp_path, MOGE_COMPILE="0")
    assert wheel.name.endswith("-py3-none-any.whl")
    installed = tmp_path / "installed"
    zipfile.ZipFile(wheel).extractall(installed)
    path = os.pathsep.join([str(installed), str(torch_alone(tmp_path / "torch"))])
    run_in(tmp_path, [sys.executable, "-S", "-c", USE, str(installed)], PYTHONPATH=path)
