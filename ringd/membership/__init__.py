"""Pure membership: how a ring forms, holds, breaks and forms again."""
