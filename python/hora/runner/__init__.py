"""Starting ranks: `hora run` and horovodrun (launch.py, arguments.py, config_file.py), ``hora.run``
(function.py, task.py), and below both a job (job.py, hosts.py, output.py, mpi.py) whose ranks an
agent starts and ends on each host (agent.py). Needs the standard library only."""

from __future__ import annotations

from hora.runner.function import RankError, run

__all__ = ["RankError", "run"]
