"""What happened, for people and programs: logs, the flight recorder, counters."""
