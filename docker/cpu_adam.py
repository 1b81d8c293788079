"""Compiles DeepSpeed's CPU Adam into the folder given, for any x86-64 processor with AVX2 (x86-64-v3, 2013 and later).

Runs in the trainer image's build, whose final stage has no compiler. DeepSpeed's own DS_BUILD_CPU_ADAM=1 compiles for the
processor of the machine that builds (-march=native) and has no switch for another; and what it has built it loads only under
the accelerator that was there then, which in an image build is none. So this uses DeepSpeed's sources and builder, with the
processor named, and the trainer loads the module by its name (rewardfl_trainer.optimizer).
"""

import sys

from deepspeed.ops.op_builder import cpu
from setuptools import setup  # type: ignore[import-untyped]
from torch.utils.cpp_extension import BuildExtension


class PortableCPUAdamBuilder(cpu.CPUAdamBuilder):  # type: ignore[misc]
    """DeepSpeed's builder, with a processor that is not the builder's own."""

    def cpu_arch(self) -> str:
        """The compiler's option for the processor."""
        return "-march=x86-64-v3"

    def simd_width(self) -> str:
        """Which of the kernels in DeepSpeed's csrc/includes/simd.h are used."""
        return "-D__AVX256__"

    def cxx_args(self) -> list[str]:
        """DeepSpeed's options, without debugging information, which Python's own ask for as well: much time and memory."""
        return [*(option for option in super().cxx_args() if option != "-g"), "-g0"]

    def sources(self) -> list[str]:
        """DeepSpeed's sources, where its wheel has put them."""
        return [self.deepspeed_src_path(path) for path in super().sources()]

    def include_paths(self) -> list[str]:
        """As `sources`."""
        return [self.deepspeed_src_path(path) for path in super().include_paths()]


build_extension = BuildExtension.with_options(use_ninja=False, no_python_abi_suffix=True)  # type: ignore[no-untyped-call]
setup(
    name="cpu_adam",
    ext_modules=[PortableCPUAdamBuilder().builder()],
    cmdclass={"build_ext": build_extension},
    script_args=["-q", "build_ext", "--build-temp", f"{sys.argv[1]}-objects", "--build-lib", sys.argv[1]],
)
