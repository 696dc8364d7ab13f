"""What a run writes and reads back: histories, results, verdicts, as frozen values and JSON."""
