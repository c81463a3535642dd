"""What pip builds hora with: meson-python, and the wheel named after the oldest Python it serves.

The extension is one file for all Pythons from 3.10 on (Py_LIMITED_API in python/hora/_core.h), but
meson-python names the Python that builds it: a wheel that 3.11 has built would not install on 3.10.
"""

from __future__ import annotations

import base64
import hashlib
import re
import zipfile
from pathlib import Path
from typing import Any

import mesonpy
from mesonpy import (  # noqa: F401  what else pip asks a backend for
    build_editable, build_sdist, get_requires_for_build_editable, get_requires_for_build_sdist,
    get_requires_for_build_wheel,
)  # fmt: skip

OLDEST = "cp310"


def build_wheel(
    wheel_directory: str,
    config_settings: dict[str, Any] | None = None,
    metadata_directory: str | None = None,
) -> str:
    built = mesonpy.build_wheel(wheel_directory, config_settings, metadata_directory)
    return rename(Path(wheel_directory) / built).name


def rename(wheel: Path) -> Path:
    """A wheel of the limited API gets the tag of the oldest Python; any other stays as it is."""
    renamed = wheel.with_name(re.sub(r"-cp\d+-abi3-", f"-{OLDEST}-abi3-", wheel.name))
    if renamed == wheel:
        return wheel
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(renamed, "w") as new:
        files = {info.filename: old.read(info) for info in old.infolist()}
        label = next(name for name in files if name.endswith(".dist-info/WHEEL"))
        record = label.removesuffix("WHEEL") + "RECORD"
        files[label] = re.sub(rb"(?m)^Tag: cp\d+-", f"Tag: {OLDEST}-".encode(), files[label])
        digest = base64.urlsafe_b64encode(hashlib.sha256(files[label]).digest()).rstrip(b"=")
        entry = b"%b,sha256=%b,%d" % (label.encode(), digest, len(files[label]))
        files[record] = re.sub(rb"(?m)^%b,.*$" % re.escape(label.encode()), entry, files[record])
        for info in old.infolist():
            new.writestr(info, files[info.filename])
    wheel.unlink()
    return renamed
