"""What daemons send each other."""
