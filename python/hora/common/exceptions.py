"""The exceptions that hora raises, under Horovod's names."""

from __future__ import annotations

from hora._core import HorovodInternalError

__all__ = [
    "HorovodInternalError", "HorovodVersionMismatchError", "HostsUpdatedInterrupt",
    "get_version_mismatch_message",
]  # fmt: skip


class HostsUpdatedInterrupt(Exception):
    """The set of hosts has changed, and the job is to go on with the new one. ``skip_sync``: the
    workers' state is the same everywhere still, because workers were only added or only removed."""

    def __init__(self, skip_sync: bool = False) -> None:
        super().__init__(skip_sync)
        self.skip_sync = skip_sync


def get_version_mismatch_message(name: str, version: str, installed_version: str | None) -> str:
    return (
        f"hora was installed for {name} {installed_version}, but {name} is {version} now. "
        "Install hora again if something fails."
    )


class HorovodVersionMismatchError(ImportError):
    """A framework has another version than the one that hora was installed for."""

    def __init__(self, name: str, version: str, installed_version: str | None) -> None:
        super().__init__(get_version_mismatch_message(name, version, installed_version))
        self.name = name
        self.version = version
        self.installed_version = installed_version
