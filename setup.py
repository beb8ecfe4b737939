"""The one part of the build that pyproject.toml cannot say: compiled kernels, where there is a C compiler.

Without one, or on another system, the package installs all the same and computes with torch's own operators.
"""

import platform
import sys

from setuptools import Extension, setup

# What is allowed of -ffast-math: reordered sums, but numbers that are not finite stay what they are.
ORDER = ["-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros", "-fassociative-math", "-freciprocal-math"]
KERNELS = Extension(
    "bertune.model._kernels",
    sources=["src/bertune/model/kernels.c"],
    depends=[f"src/bertune/model/{name}.h" for name in ("attend", "attend_tiles", "attend_units", "products")],
    extra_compile_args=["-O3", "-std=gnu11", "-mprefer-vector-width=512", *ORDER],
    optional=True,
)
BUILT = sys.platform.startswith("linux") and platform.machine() == "x86_64"

setup(ext_modules=[KERNELS] if BUILT else [])
