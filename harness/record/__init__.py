"""What is written down: histories, results, verdicts. Frozen values, to JSON and back."""
