"""What an elastic job is asked to do: read from the command line, and checked."""

from __future__ import annotations

import argparse
import dataclasses
import os

from hora.runner.hosts import Host, HostError, parse_hostfile, parse_hosts


@dataclasses.dataclass
class ElasticSettings:
    """``np``: workers to begin with. ``max_np`` None: as many as there are slots. Hosts are fixed,
    or found by a script. ``cooldown`` None: a host that failed stays out."""

    np: int
    min_np: int = 1
    max_np: int | None = None
    hosts: list[Host] | None = None
    script: str | None = None
    slots_per_host: int | None = None
    timeout: float = 600.0
    reset_limit: int | None = None
    cooldown: tuple[float, float] | None = None


def check_settings(settings: ElasticSettings) -> None:
    """HostError for what cannot be."""
    if settings.min_np < 1:
        raise HostError(f"--min-np {settings.min_np}: at least one rank is needed")
    if settings.np < settings.min_np:
        raise HostError(f"-np {settings.np} is less than --min-np {settings.min_np}")
    if settings.max_np is not None and settings.max_np < settings.np:
        raise HostError(f"--max-np {settings.max_np} is less than -np {settings.np}")
    if (settings.hosts is None) == (settings.script is None):
        raise HostError("give either hosts or --host-discovery-script")
    if settings.timeout <= 0:
        raise HostError(f"--elastic-timeout {settings.timeout:g}: it must be positive")
    if settings.reset_limit is not None and settings.reset_limit < 0:
        raise HostError(f"--reset-limit {settings.reset_limit}: it cannot be negative")
    if settings.cooldown is not None and not 0 < settings.cooldown[0] <= settings.cooldown[1]:
        low, high = settings.cooldown
        raise HostError(f"--blacklist-cooldown-range {low:g} {high:g}: give MIN and MAX seconds, "
                        "0 < MIN <= MAX")
    if settings.hosts is not None:
        slots = sum(host.slots for host in settings.hosts)
        if slots < settings.np:
            raise HostError(f"-np {settings.np}, but the hosts have {slots} slots")


def elastic_timeout(given: float | None) -> float:
    if given is not None:
        return given
    for name in ("HORA_ELASTIC_TIMEOUT", "HOROVOD_ELASTIC_TIMEOUT"):
        text = os.environ.get(name)
        if text:
            try:
                return float(text)
            except ValueError:
                raise HostError(f"{name}={text} is no number of seconds") from None
    return 600.0


def read_settings(args: argparse.Namespace) -> ElasticSettings:
    """From the command line of `hora run`."""
    np = args.num_proc or args.min_num_proc
    hosts = None
    if args.hostfile:
        hosts = parse_hostfile(args.hostfile)
    elif args.hosts:
        hosts = parse_hosts(args.hosts)
    elif not args.host_discovery_script:
        hosts = [Host("localhost", args.max_num_proc or np or 1)]
    if np is None:
        np = sum(host.slots for host in hosts) if hosts else 1
    settings = ElasticSettings(
        np=np,
        min_np=args.min_num_proc or np,
        max_np=args.max_num_proc,
        hosts=hosts,
        script=args.host_discovery_script,
        slots_per_host=args.slots,
        timeout=elastic_timeout(args.elastic_timeout),
        reset_limit=args.reset_limit,
        cooldown=tuple(args.cooldown_range) if args.cooldown_range else None,
    )
    check_settings(settings)
    return settings
