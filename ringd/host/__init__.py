"""What differs between Linux and macOS, in one place."""
