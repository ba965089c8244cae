"""Pure wire formats: bytes to values and back; no sockets, no clocks."""
