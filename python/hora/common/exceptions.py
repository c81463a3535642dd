"""The exceptions that hora raises, under Horovod's names."""

from __future__ import annotations

from hora._core import HorovodInternalError

__all__ = ["HorovodInternalError"]
