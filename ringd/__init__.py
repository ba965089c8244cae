"""ringd: all-reduce through a ring of daemons that outlives the programs that use it."""

__version__ = "0.1.0"
