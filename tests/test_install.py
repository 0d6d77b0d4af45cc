"""Installation: ``kernels/`` becomes ``fastprobe.kernels`` only, and native kernels are optional."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

CHECK = """
import importlib.metadata, kernels, fastprobe, fastprobe.kernels.probe
print(fastprobe.kernels.probe.ANSWER, kernels.OWNER, importlib.metadata.version("fastprobe") == fastprobe.__version__)
"""


NATIVE = """
import fastprobe.ops._dispatch.cpu_library as cpu
print(cpu.instruction_sets(), cpu.instruction_sets())
"""


def run(*command, cwd, **environment):
    return run_both(*command, cwd=cwd, **environment)[0]


def run_both(*command, cwd, **environment):
    """Run a command that must succeed. Return its standard output and standard error."""
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, capture_output=True, text=True, env=os.environ | environment
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, done.stderr


@pytest.fixture
def checkout(tmp_path):
    """Copy the repository without build outputs, with links as links, and add a kernel file."""
    copy = tmp_path / "checkout"
    copy.mkdir()
    tracked = run("git", "ls-files", "-co", "--exclude-standard", "-z", cwd=ROOT)
    run("cp", "-P", "--parents", *filter(None, tracked.split("\0")), copy, cwd=ROOT)
    (copy / "kernels" / "probe.py").write_text("ANSWER = 42\n")
    return copy


@pytest.fixture
def environment(tmp_path):
    """Create a virtual environment with the libraries of this one and a foreign package ``kernels``."""
    venv.create(tmp_path / "env", with_pip=True, symlinks=True)
    python = tmp_path / "env" / "bin" / "python"
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path).strip())
    (site / "parent.pth").write_text(sysconfig.get_path("purelib") + "\n")
    (site / "kernels").mkdir()
    (site / "kernels" / "__init__.py").write_text("OWNER = 'foreign'\n")
    return python


INSTALL = ("-m", "pip", "install", "--quiet", "--no-deps", "--force-reinstall")


def install_wheel(python, checkout, folder, **environment):
    run(python, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", folder, checkout, cwd=folder, **environment)
    (wheel,) = folder.glob("fastprobe-*.whl")
    run(python, *INSTALL, wheel, cwd=folder)


def install_source(python, checkout, folder, **environment):
    run(python, *INSTALL, checkout, cwd=folder, **environment)


def install_editable(python, checkout, folder, **environment):
    run(python, *INSTALL, "-e", checkout, cwd=folder, **environment)


@pytest.mark.slow
@pytest.mark.parametrize("install", [install_wheel, install_source, install_editable])
@pytest.mark.parametrize("where", ["elsewhere", "repository"])
def test_our_kernels_do_not_shadow_a_foreign_package(install, where, environment, checkout, tmp_path):
    install(environment, checkout, tmp_path, FASTPROBE_BUILD="none")

    printed = run(environment, "-c", CHECK, cwd=tmp_path if where == "elsewhere" else checkout)

    assert printed.split() == ["42", "foreign", "True"]


def test_a_checkout_without_links_has_the_kernels(tmp_path):
    run("git", "clone", "-q", "-c", "core.symlinks=false", ROOT, tmp_path / "clone", cwd=tmp_path)
    printed = run(
        sys.executable,
        "-c",
        "import fastprobe.kernels._table as table; print(table.__name__, table.__file__)",
        cwd=tmp_path,
        PYTHONPATH=str(tmp_path / "clone"),
    )

    assert printed.split() == ["fastprobe.kernels._table", str(tmp_path / "clone" / "kernels" / "_table.py")]


@pytest.mark.slow
def test_a_wheel_contains_every_module(checkout, tmp_path):
    run(
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "-w",
        tmp_path,
        checkout,
        cwd=tmp_path,
        FASTPROBE_BUILD="none",
    )

    (wheel,) = tmp_path.glob("fastprobe-*.whl")
    suffixes = (".py", ".jinja", ".js")
    contained = {name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(suffixes)}
    files = (checkout / "fastprobe").rglob("*")
    modules = {path.relative_to(checkout).as_posix() for path in files if path.suffix in suffixes}
    kernels = {f"fastprobe/kernels/{path.name}" for path in (checkout / "kernels").glob("*.py")}
    assert contained == modules | kernels


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")
def test_a_wheel_contains_the_cpu_kernels(environment, checkout, tmp_path):
    install_wheel(environment, checkout, tmp_path)

    printed, said = run_both(environment, "-c", NATIVE, cwd=tmp_path)

    assert "portable" in printed
    assert not said


@pytest.mark.slow
@pytest.mark.parametrize("install", [install_source, install_editable])
def test_without_a_compiler_a_warning_says_how_to_build(install, environment, checkout, tmp_path):
    install(environment, checkout, tmp_path, CXX="/bin/false", CC="/bin/false")

    printed, said = run_both(environment, "-c", NATIVE, cwd=tmp_path)

    assert printed.split() == ["[]", "[]"]
    (line,) = [line for line in said.splitlines() if "fastprobe" in line]
    assert "pip install --force-reinstall --no-deps --editable ." in line


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc")
def test_a_wheel_contains_the_cuda_kernels_for_the_requested_architectures(environment, checkout, tmp_path):
    install_wheel(environment, checkout, tmp_path, FASTPROBE_BUILD="cuda", TORCH_CUDA_ARCH_LIST="8.0;9.0+PTX")

    printed = run(environment, "-c", "import fastprobe._cuda as c; print(c.ARCHITECTURES)", cwd=tmp_path)

    assert printed.strip() == "8.0,9.0a"


def test_a_cuda_build_without_nvcc_prints_one_line(tmp_path):
    _, said = run_both(
        sys.executable, "setup.py", "--version", cwd=ROOT, FASTPROBE_BUILD="cuda", CUDA_HOME=str(tmp_path)
    )

    assert said.splitlines() == ["fastprobe._cuda is left out: no nvcc on PATH or in CUDA_HOME/bin"]


def test_a_failing_nvcc_does_not_fail_the_build(checkout, tmp_path):
    nvcc = tmp_path / "bin" / "nvcc"
    nvcc.parent.mkdir()
    nvcc.symlink_to("/bin/false")
    environment = {"FASTPROBE_BUILD": "cuda", "CUDA_HOME": str(tmp_path), "CXX": "/bin/false", "CC": "/bin/false"}

    _, said = run_both(sys.executable, "setup.py", "build_ext", "--inplace", cwd=checkout, **environment)

    assert 'building extension "fastprobe._cuda" failed: nvcc failed' in said
    assert not list((checkout / "fastprobe").glob("_c*.so"))


def test_an_unknown_build_raises_an_error():
    command = [sys.executable, "setup.py", "--version"]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"FASTPROBE_BUILD": "gpu"}
    )

    assert done.returncode == 1
    assert done.stderr.strip() == "FASTPROBE_BUILD: 'gpu' is not one of none, cpu, cuda"


@pytest.mark.slow
def test_the_command_is_installed():
    fastprobe = Path(sys.executable).parent / "fastprobe"

    assert "linearity" in run(fastprobe, "--help", cwd=ROOT)
