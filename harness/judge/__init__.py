"""Pure judgement: records in, findings out. No clock, no network, no target."""
