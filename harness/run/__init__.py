"""Conducts a run: choose, drive, record, judge, report."""
