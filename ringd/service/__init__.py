"""What the service managers are told of the daemon: systemd on Linux, launchd on macOS."""
