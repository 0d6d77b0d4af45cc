"""Choice of the implementation that an operation runs.

Steps of every call of an operation:

    score(x, coef, intercept, y)
      |  check      raises on arguments that do not fit each other: the operation's own ``_check``
      |  choice     operation.py: the first of cuda, triton, cpu, torch whose ``unless`` returns no reason to refuse and
      |             whose ``passed_over`` returns false
      |               cpu_library.py   reasons and arguments for the C++ kernels, and the instruction set they run on
      |               triton.py        reasons for the Triton kernels, and their names in ``ops/tune.py``
      |               processors.py    table of processor families: which library, which instruction set
      |               capture.py       reads no value of a tensor while a graph is captured
      |               trial.py         compares a kernel with torch once, before ``auto`` takes it on a GPU
      |  launcher   ops/<operation>/{cpu,triton,cuda}.py: converts tensors to what a kernel reads
      `- kernel     csrc/cpu/*.cpp, kernels/*.py, csrc/cuda/*.cu

A choice depends on the arguments, the machine and two environment variables: ``FASTPROBE_BACKEND`` and
``FASTPROBE_PROCESSOR``. It never depends on a clock.
"""
