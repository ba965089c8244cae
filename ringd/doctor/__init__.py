"""What is wrong with a machine and its place in a ring: facts in, findings out."""
