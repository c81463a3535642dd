"""Starting ranks: `hora run` (launch.py), its jobs (job.py, agent.py, hosts.py, output.py)."""
