"""Benchmarks: engines measured side by side, rows in one schema, reports written from the results alone."""
