"""The operation ``gram_``: products and sums of column blocks, the sums behind every linearity score.

The path of a call from its arguments to a kernel::

    Moments.update_                        fastprobe/regression/moments.py
      |
      v
    gram_(blocks, pairs, fold, exact=)     api.py: Block, Pair, the check of the arguments, and the definition in torch
      |                                    chains.py: the definition's products of rows, in short chains
      |                                    known_folds.py: the largest fold, where the caller has read it
      v
    choice of a backend                    fastprobe/ops/_dispatch/operation.py: the first of cuda, triton, cpu and
      |                                    torch that does not refuse and is not passed over. Each backend file below
      |                                    has the predicate ``_refuses``; triton.py also has ``_passed_over``. They
      |                                    share layout.py (devices and strides), origins.py (columns that an origin
      |                                    moves) and trial.py (a GPU kernel must agree with torch before it is chosen)
      |
      +-- cuda.py: launch_gram             cuda_launches.py: slabs, tiles, planes and the launches of one call
      |     |                              kernels/_slots.py: rows in the order of their folds
      |     v
      |   csrc/cuda/module.cpp             the Python module fastprobe._cuda
      |   csrc/cuda/gram.cu, gram.h        the launches in C++
      |     +-- gram.cuh                   16-bit rows on Hopper's tensor cores (wgmma)
      |     +-- gram_exact.cuh             any rows in float64
      |     +-- rows.cuh                   gathers rows, sums columns
      |     +-- plan.h, layout.h, ptx.cuh  the division of work, the places of numbers, the instructions
      |
      +-- triton.py: launch_gram           as an operator of torch, for torch.compile and CUDA graphs
      |     v
      |   kernels/gram.py                  products_kernel, add_products_kernel
      |     +-- kernels/_columns.py        sums of columns, and bfloat16 planes of rows
      |     +-- kernels/_planes.py, _schedule.py, _slots.py, _table.py
      |
      +-- cpu.py: launch_gram
      |     v
      |   csrc/cpu/module.cpp              the Python module fastprobe._cpu
      |   csrc/cpu/gram.cpp, gram.h        panels, tasks, threads
      |     +-- products.cpp               products of packed panels, chain by chain
      |     +-- gram_kernels.h             pack, pair_up, multiply, flush: the inner loops (panels.h: the micro-kernel)
      |     +-- kernel_table.h             all inner loops of one instruction set
      |     +-- isa_portable.cpp, isa_avx2.cpp, isa_avx512.cpp, isa_avx512_bf16.cpp: compile it once each
      |
      +-- api.py: the definition           where no kernel takes the arguments

A new backend is one file here, imported below, with ``_refuses`` and a ``launch_gram`` that ``gram_.register`` adds.

Tests::

    tests/ops/gram/test_gram.py            every backend against float64, and the contract
    tests/ops/gram/test_trial.py, tests/ops/gram/test_accumulation.py
    tests/native/test_cpu.py               the C++ kernels on every instruction set
    tests/native/test_cuda_layout.py       the index arithmetic of the CUDA kernels, on a CPU
    tests/native/test_cuda_launch.py       the CUDA kernels on a CPU, over a model of the hardware units
    tests/native/test_cuda_ring.py         their barriers, in every order of their threads
    tests/native/test_cuda_schedule.py     how busy they keep a GPU
    tests/native/test_cuda_host.py         their host code, over a runtime without a GPU
    tests/native/test_cuda.py              their machine code
    tests/kernels/test_gram_triton.py      the Triton kernels in the interpreter
    tests/kernels/test_compiles.py         their machine code
    tests/kernels/test_gram_schedule.py    how busy they keep a GPU
    tests/kernels/test_on_a_gpu.py, tests/native/test_cuda_gpu.py: both on a GPU (`make gpu`)

Benchmarks: ``benchmarks/bench_gram.py`` on a CPU, ``benchmarks/gpu/gram.py`` on a GPU, and ``fastprobe bench``
(``fastprobe/benchmarking/processor.py``).
"""

from fastprobe.ops.gram import cpu as cpu
from fastprobe.ops.gram import cuda as cuda
from fastprobe.ops.gram import triton as triton
from fastprobe.ops.gram.api import Block as Block
from fastprobe.ops.gram.api import Pair as Pair
from fastprobe.ops.gram.api import gram_ as gram_
