"""Build fastprobe._cpu from csrc/cpu where a C++ compiler is; without one the package installs and runs on torch.

``FASTPROBE_BUILD=none`` leaves it out.
"""

import os
import shlex
import subprocess
import sys
from functools import partial
from pathlib import Path

from pybind11.setup_helpers import Pybind11Extension, build_ext
from setuptools import setup
from setuptools.errors import CompileError

try:
    import ninja
    import ninja.ninja_syntax
except ImportError:
    ninja = None

# The libgomp that torch brings is in the process already and serves both: its threads are awake when a kernel starts.
# Apple's compiler has no OpenMP; without it the kernels run on one thread.
OPENMP = [] if sys.platform == "darwin" else ["-fopenmp"]
FLAGS = ["-O3", "-g0", "-ffp-contract=fast", "-Wall", "-Wextra", "-Wno-psabi", "-Wno-unknown-pragmas", *OPENMP]


def compile_with_ninja(compiler, sources, output_dir, macros=None, include_dirs=None, debug=False, **options):
    """What ``compiler.compile`` does, several files at once, and again only where a source or a header has changed."""
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


class Build(build_ext):
    """setuptools' own build, with ninja for the compiling where it is there."""

    def build_extension(self, extension):
        if ninja is not None and self.compiler.compiler_type == "unix":
            self.force = True  # ninja knows better what has to be compiled again
            self.compiler.compile = partial(compile_with_ninja, self.compiler)
        super().build_extension(extension)


def sources(folder):
    return sorted(str(path) for path in Path(folder).glob("*.cpp"))


CPU = Pybind11Extension(
    "fastprobe._cpu",
    sources("csrc/cpu"),
    cxx_std=17,
    extra_compile_args=FLAGS,
    extra_link_args=OPENMP,
    optional=True,
)

setup(
    ext_modules=[] if os.environ.get("FASTPROBE_BUILD") == "none" else [CPU],
    cmdclass={"build_ext": Build},
)
