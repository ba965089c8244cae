"""The local border: the ZeroMQ socket and shared memory between programs and the daemon."""
