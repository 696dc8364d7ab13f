"""This machine: processes, time, ports, packages, and the repository."""
