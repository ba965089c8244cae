"""This member's place in the ring: its links, what forms over them, and what travels there."""
