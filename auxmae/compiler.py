"""The C++ compiler that torch.compile needs on a CPU."""

from __future__ import annotations

import os
import shutil
import sys


def cpp_compiler() -> tuple[str, bool]:
    """The name that PyTorch looks for (`torch._inductor.config.cpp.cxx`), and whether there is such a program."""
    name = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    return name, shutil.which(name) is not None
