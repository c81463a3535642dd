"""Elastic jobs for `hora run`: the driver (driver.py), the hosts it may use (discovery.py), the lines
to the workers (registration.py), and who gets which place (rendezvous.py)."""
