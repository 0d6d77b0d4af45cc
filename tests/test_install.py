"""``kernels/`` installs as ``fastprobe.kernels`` and never as ``kernels``: as a wheel, from source, and editable."""

import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

CHECK = """
import importlib.metadata, kernels, fastprobe, fastprobe.kernels.probe
print(fastprobe.kernels.probe.ANSWER, kernels.WHOSE, importlib.metadata.version("fastprobe") == fastprobe.__version__)
"""


def run(*command, cwd):
    done = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of the repository with a kernel file of its own, links kept as links."""
    copy = tmp_path_factory.mktemp("checkout")
    tracked = run("git", "ls-files", "-co", "--exclude-standard", "-z", cwd=ROOT)
    run("cp", "-P", "--parents", *filter(None, tracked.split("\0")), copy, cwd=ROOT)
    (copy / "kernels" / "probe.py").write_text("ANSWER = 42\n")
    return copy


@pytest.fixture
def environment(tmp_path):
    """A virtual environment that sees this one's libraries and has another project's ``kernels`` installed."""
    venv.create(tmp_path / "env", with_pip=True, symlinks=True)
    python = tmp_path / "env" / "bin" / "python"
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path).strip())
    (site / "parent.pth").write_text(sysconfig.get_path("purelib") + "\n")
    (site / "kernels").mkdir()
    (site / "kernels" / "__init__.py").write_text("WHOSE = 'theirs'\n")
    return python


def install_wheel(python, checkout, folder):
    run(python, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, checkout, cwd=folder)
    (wheel,) = folder.glob("fastprobe-*.whl")
    run(python, "-m", "pip", "install", "--quiet", "--no-deps", "--force-reinstall", wheel, cwd=folder)


def install_source(python, checkout, folder):
    run(python, "-m", "pip", "install", "--quiet", "--no-deps", "--force-reinstall", checkout, cwd=folder)


def install_editable(python, checkout, folder):
    run(python, "-m", "pip", "install", "--quiet", "--no-deps", "--force-reinstall", "-e", checkout, cwd=folder)


@pytest.mark.slow
@pytest.mark.parametrize("install", [install_wheel, install_source, install_editable])
@pytest.mark.parametrize("where", ["elsewhere", "repository"])
def test_kernels_are_ours_under_our_name_only(install, where, environment, checkout, tmp_path):
    install(environment, checkout, tmp_path)

    printed = run(environment, "-c", CHECK, cwd=tmp_path if where == "elsewhere" else checkout)

    assert printed.split() == ["42", "theirs", "True"]


@pytest.mark.slow
def test_the_command_is_installed():
    fastprobe = Path(sys.executable).parent / "fastprobe"

    assert "linearity" in run(fastprobe, "--help", cwd=ROOT)
