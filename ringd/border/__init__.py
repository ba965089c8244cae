"""The local border: ZeroMQ, call sockets and shared memory between programs and the daemon."""
