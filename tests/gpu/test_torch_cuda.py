"""torch_cuda.py under pytest: one test for each case and path. tests/gpu/run does without pytest."""

from __future__ import annotations

import functools
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

import cases_cuda  # noqa: E402
import torch_cuda  # noqa: E402

why_not = functools.cache(torch_cuda.why_not)
run = functools.cache(torch_cuda.run)
CASES = [*cases_cuda.CASES, "killed", "out_of_memory"]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("path", torch_cuda.PATHS)
def test_on_gpu(path: str, case: str) -> None:
    if why_not():
        pytest.skip(why_not())
    complaint = run(path).get(case, "")
    assert not complaint, complaint
