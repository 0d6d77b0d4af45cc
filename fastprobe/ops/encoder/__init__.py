"""Operations of an encoder layer, with everything a kernel author needs except the kernels themselves.

The path of a call, here of ``add_norm``:

    add_norm(x, residual, weight, bias, eps)      add_norm.py: check, then the choice of _dispatch/operation.py
      |-- torch    the body of ``add_norm``       add_norm.py: the definition
      |-- cpu      ``cpu.launch_add_norm``        cpu.py      ->  csrc/cpu/rowwise.cpp
      `-- triton   ``triton.add_norm_operator``   triton.py   ->  kernels/add_norm.py

Each operation has one file: its check, its definition, then the implementations it registers. What a backend runs is
in one file for all operations: launchers in cpu.py and cuda.py, operators of torch in triton.py. A launcher takes
checked arguments and converts them to what the kernel reads.

    operation             file                    cpu                               triton                other
    add_norm              add_norm.py             csrc/cpu/rowwise.cpp              kernels/add_norm.py
    bias_gelu_            bias_gelu.py            csrc/cpu/rowwise.cpp              kernels/bias_gelu.py
    varlen_attention      varlen_attention.py     csrc/cpu/attention.cpp                                  cuda.py: torch
    attention_sublayer    attention_sublayer.py   csrc/cpu/attention_sublayer.cpp   kernels/add_norm.py
    ffn_sublayer          ffn_sublayer.py         csrc/cpu/ffn_sublayer.cpp         both of the above

``layers.py`` holds the arguments that the two sub-layers share, and their checks.
"""
