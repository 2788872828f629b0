"""What everything stands on: errors, settings, memory, threads, files."""
