"""TCP between neighbours: dialing, accepting, links, heartbeats."""
