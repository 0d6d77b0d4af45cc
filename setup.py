"""Build the C++ kernels ``fastprobe._cpu`` and the CUDA kernels ``fastprobe._cuda``.

Both are optional. Without them, fastprobe runs on torch.

Environment variables:
    FASTPROBE_BUILD: ``none``, ``cpu``, or ``cuda`` for both. By default ``cuda`` if torch is installed with CUDA, else
        ``cpu``. The isolated build of a plain ``pip install`` has no torch, so it builds ``cpu``.
    TORCH_CUDA_ARCH_LIST: CUDA architectures, like "8.0;9.0a". By default 9.0a.
"""

import importlib.util
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import sysconfig
from functools import partial
from pathlib import Path

import pybind11
from pybind11.setup_helpers import Pybind11Extension, build_ext
from setuptools import Extension, setup
from setuptools.command.build_py import build_py
from setuptools.errors import CompileError

try:
    import ninja
    import ninja.ninja_syntax
except ImportError:
    ninja = None

# The kernels share the libgomp of torch, whose threads are already running when a kernel starts.
# Apple's compiler has no OpenMP. There, the kernels run on one thread.
OPENMP = [] if sys.platform == "darwin" else ["-fopenmp"]
FLAGS = ["-O3", "-g0", "-ffp-contract=fast", "-Wall", "-Wextra", "-Wno-psabi", "-Wno-unknown-pragmas", *OPENMP]


def compile_with_ninja(compiler, sources, output_dir, macros=None, include_dirs=None, debug=False, **options):
    """Compile in parallel, and only files whose source or headers changed. Replaces ``compiler.compile``."""
    _, objects, flags, preprocess, build = compiler._setup_compile(
        output_dir, macros, include_dirs, sources, options.get("depends"), options.get("extra_postargs")
    )
    command = [*compiler.compiler_so_cxx, *compiler._get_cc_args(preprocess, debug, None), *flags]
    with (Path(output_dir) / "build.ninja").open("w") as file:
        rules = ninja.ninja_syntax.Writer(file)
        rules.rule("cxx", f"{shlex.join(command)} -MMD -MF $out.d $in -o $out", depfile="$out.d", deps="gcc")
        for built, (source, _) in build.items():
            rules.build(str(Path(built).absolute()), "cxx", str(Path(source).absolute()))
    run = subprocess.run([Path(ninja.BIN_DIR) / "ninja", "-C", output_dir], stdout=subprocess.PIPE, text=True)
    if run.returncode:
        raise CompileError(run.stdout)
    return objects


def nvcc():
    """Return the path of nvcc in ``CUDA_HOME`` or on ``PATH``, or ``None``."""
    home = os.environ.get("CUDA_HOME")
    return shutil.which("nvcc", path=f"{home}/bin" if home else None)


def compile_with_nvcc(sources, library):
    """Compile and link the CUDA sources in one command. The CUDA runtime is linked statically."""
    asked = re.split("[; ]+", os.environ.get("TORCH_CUDA_ARCH_LIST", "9.0a").replace("+PTX", ""))
    capabilities = sorted({"9.0a" if name == "9.0" else name for name in asked})  # 9.0 without the "a" has no wgmma
    names = [name.replace(".", "") for name in capabilities]
    targets = [f"-gencode=arch=compute_{name},code=sm_{name}" for name in names]
    include = [f"-I{path}" for path in (pybind11.get_include(), sysconfig.get_path("include"))]
    defined = f'-DFASTPROBE_ARCHITECTURES="{",".join(capabilities)}"'
    flags = ["-std=c++17", "-O3", "-shared", "-cudart=static", "-Xcompiler=-fPIC,-fvisibility=hidden,-Wall,-Wextra"]
    Path(library).parent.mkdir(parents=True, exist_ok=True)
    if subprocess.run([nvcc(), *flags, *targets, *include, defined, *sources, "-o", library]).returncode:
        raise CompileError("nvcc failed")


class BuildPython(build_py):
    """The build command of setuptools for Python files. A wheel has the Triton kernels inside ``fastprobe.kernels``."""

    def run(self):
        super().run()
        if not self.editable_mode:
            for path in sources("kernels", ".py"):
                self.copy_file(path, str(Path(self.build_lib, "fastprobe", path)))


class Build(build_ext):
    """The build command of setuptools, with ninja for C++ if it is installed, and nvcc for CUDA."""

    def build_extension(self, extension):
        if extension.name == "fastprobe._cuda":
            return compile_with_nvcc(extension.sources, self.get_ext_fullpath(extension.name))
        if ninja is not None and self.compiler.compiler_type == "unix":
            self.force = True  # ninja decides which files to compile again
            self.compiler.compile = partial(compile_with_ninja, self.compiler)
        return super().build_extension(extension)


def sources(folder, *endings):
    return sorted(str(path) for ending in endings for path in Path(folder).glob(f"*{ending}"))


CPU = Pybind11Extension(
    "fastprobe._cpu",
    sources("csrc/cpu", ".cpp"),
    cxx_std=20,  # for designated initialisers, which Clang warns of in C++17
    extra_compile_args=FLAGS,
    extra_link_args=OPENMP,
    optional=True,
)
CUDA = Extension("fastprobe._cuda", sources("csrc/cuda", ".cu", ".cpp"), optional=True)


def extensions():
    """Return the extensions to build, from ``FASTPROBE_BUILD`` and the installed tools."""
    build = os.environ.get("FASTPROBE_BUILD")
    if build not in (None, "none", "cpu", "cuda"):
        raise SystemExit(f"FASTPROBE_BUILD: {build!r} is not one of none, cpu, cuda")
    torch = importlib.util.find_spec("torch") if build is None else None
    cuda = build == "cuda" or (torch and runpy.run_path(Path(torch.origin).with_name("version.py")).get("cuda"))
    if cuda and not nvcc():
        print("fastprobe._cuda is left out: no nvcc on PATH or in CUDA_HOME/bin", file=sys.stderr)
    return [] if build == "none" else [CPU, CUDA] if cuda and nvcc() else [CPU]


setup(ext_modules=extensions(), cmdclass={"build_py": BuildPython, "build_ext": Build})
