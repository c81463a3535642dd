"""--config-file: options of `hora run` in YAML, in the layout of Horovod's.

    params:
        fusion_threshold_mb: 32
    autotune:
        enabled: true
        log_file: autotune.csv
    timeline:
        filename: timeline.json
    stall_check:
        enabled: false
    library_options:
        gloo_timeout_seconds: 60
    logging:
        level: INFO
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from hora.runner import arguments
from hora.runner.hosts import HostError

# Section, and what stands before a key of it in the name of the option.
PREFIXES = {
    "params": "",
    "autotune": "autotune_",
    "timeline": "timeline_",
    "stall_check": "stall_check_",
    "library_options": "",
    "logging": "log_",
    "elastic": "",
}

# Keys whose option has another name.
RENAMED = {
    ("autotune", "enabled"): "autotune",
    ("stall_check", "enabled"): "no_stall_check",
    ("logging", "hide_timestamp"): "log_with_timestamp",
    ("elastic", "min_np"): "min_num_proc",
    ("elastic", "max_np"): "max_num_proc",
    ("elastic", "slots_per_host"): "slots",
    ("elastic", "timeout"): "elastic_timeout",
    ("elastic", "blacklist_cooldown_range"): "cooldown_range",
}


# Keys that say the opposite of their option.
NEGATED = {("stall_check", "enabled"), ("logging", "hide_timestamp")}


def load(path: str) -> dict[str, Any]:
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
    except OSError as error:
        raise HostError(f"config file {path}: {error.strerror}") from None
    try:
        import yaml
    except ImportError:
        yaml = None
    try:
        config = json.loads(text) if yaml is None else yaml.safe_load(text)
    except ValueError:
        raise HostError(f"config file {path}: reading YAML needs PyYAML (pip install pyyaml); "
                        "without it only JSON is understood") from None
    except Exception as error:  # yaml's own classes of errors
        raise HostError(f"config file {path}: {error}") from None
    if config is None:
        return {}
    if not isinstance(config, dict):
        raise HostError(f"config file {path}: expected sections, such as 'params:'")
    return config


def options(config: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """(values by option, keys that stand for no option)."""
    values: dict[str, Any] = {}
    unknown = []
    for section, content in config.items():
        if section == "controller":
            if str(content).lower() not in ("gloo", "mpi", "jsrun"):
                raise HostError(f"controller: {content} is none of gloo, mpi, jsrun")
            values[f"use_{str(content).lower()}"] = True
        elif section not in PREFIXES:
            values[section] = content  # hosts: a:2
        elif not isinstance(content, dict):
            raise HostError(f"{section}: expected keys and values below it")
        else:
            for key, value in content.items():
                name = RENAMED.get((section, key), PREFIXES[section] + str(key))
                turned = (section, key) in NEGATED and isinstance(value, bool)
                values[name] = (not value) if turned else value
    known = known_options()
    for name in [name for name in values if name not in known]:
        unknown.append(name)
        del values[name]
    return values, unknown


def known_options() -> dict[str, argparse.Action]:
    parser = argparse.ArgumentParser()
    arguments.add_arguments(parser)
    left_out = {"help", "command", "config_file", "check_build", "version"}
    return {a.dest: a for a in parser._actions if a.dest not in left_out}


def convert(name: str, value: Any) -> Any:
    """As the command line would have made it."""
    action = known_options()[name]
    try:
        if isinstance(action, arguments.AppendNames):
            items = value if isinstance(value, list) else str(value).split(",")
            return [str(item).strip() for item in items]
        if action.nargs == 2:
            return [action.type(item) for item in value]  # type: ignore[operator]
        if action.nargs == 0:
            if not isinstance(value, bool):
                raise ValueError("true or false is expected")
            return value
        return action.type(value) if callable(action.type) else value
    except (ValueError, TypeError, argparse.ArgumentTypeError) as error:
        raise HostError(f"{name}: {value!r} in the config file: {error}") from None


def apply(args: argparse.Namespace, path: str) -> list[str]:
    """Fills in options that the command line does not give. Returns notes."""
    values, unknown = options(load(path))
    controllers = ("use_gloo", "use_mpi", "use_jsrun")
    hosts = ("hosts", "hostfile", "host_discovery_script")
    for group in (controllers, hosts):
        if any(getattr(args, name) for name in group):
            for name in group:
                values.pop(name, None)
    for name, value in values.items():
        if getattr(args, name) is None and value is not None:
            setattr(args, name, convert(name, value))
    return [f"config file {path}: '{name}' is no option, ignored" for name in unknown]
