"""Finds races in threaded Python: a happens-before detector, searched schedules, histories checked.

It knows no project: what to explore stands in scenario files (`scenario.py`), what to run under the
detector is a command (`live.py`). Ours are in `tests/races/`.
"""
