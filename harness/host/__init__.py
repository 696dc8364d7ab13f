"""This machine: programs, time, ports, packages, and the repository that it all stands in."""
