"""What tests need that let `torch.compile` generate code for a CPU."""

from __future__ import annotations

import os
import shutil
import sysconfig
from pathlib import Path

import pytest

_HAS_COMPILER = shutil.which(os.environ.get("CXX", "g++")) is not None
_HAS_HEADERS = Path(sysconfig.get_path("include"), "Python.h").exists()
needs_compiler = pytest.mark.skipif(
    not (_HAS_COMPILER and _HAS_HEADERS), reason="no C++ compiler, or no header files of Python"
)
