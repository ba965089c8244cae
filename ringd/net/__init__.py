"""TCP between neighbours, and the loop that everything runs on."""
