"""The client library; knows the local border and nothing else."""
