"""What is measured of them: each benchmark says what it does in a file of its own."""
