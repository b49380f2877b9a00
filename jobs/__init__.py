"""Records of whole runs: cluster specs, schedules, benchmark and training jobs."""
