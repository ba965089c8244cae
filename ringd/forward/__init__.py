"""The loopback sockets at the ends of streams: ports that are listened to, and dialed."""
