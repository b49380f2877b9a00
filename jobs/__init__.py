"""Whole runs as files: job files, schedules, evaluations, training recipes and benchmarks."""
