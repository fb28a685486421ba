"""A machine that runs compiled GPU kernels, as PTX, on a CPU; checks what they do; and counts it.

A launch runs in warps of 32 lanes that take turns in any order one chooses. Every access to memory
is checked: bounds, alignment, memory that nobody wrote, copies that were not waited for, and races,
by vector clocks. What hangs is reported, and where. Counted are instructions of warps and threads,
bytes, sectors of 32 bytes, turns of the banks of shared memory, and barriers.

It knows no time, caches or occupancy, nor what ptxas makes of the PTX.

* ``parser.py`` and ``decode.py`` read PTX, ``bytecode.py`` gives its registers places and writes it
  for the machine
* ``vm/`` is the machine: ``launch.cpp`` takes turns, ``checks.cpp`` checks, ``accesses.cpp`` and
  other files have the instructions, ``door.cpp`` is csrc/cuda/launch.h; ``build.py`` compiles it
* ``machine.py`` is its Python side, ``cuda.py`` runs csrc/cuda and ``triton_machine.py`` the Triton
  backend on it
* ``report.py`` writes docs/gpu-arithmetic.md from the counts
"""
