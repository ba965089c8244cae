"""What is measured: each system's calls behind one face, as its users would make them."""
