"""The daemon: the layers wired together; signals, state file, service manager."""
