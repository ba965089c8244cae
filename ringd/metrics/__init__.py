"""What Prometheus is told of a daemon, and how it comes by that; and the probes."""
