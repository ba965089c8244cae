"""What programs and their daemon send each other."""
