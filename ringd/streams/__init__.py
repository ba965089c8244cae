"""Streams of bytes between two members: who has received what, and what that allows."""
