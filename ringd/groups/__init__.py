"""Pure bookkeeping of groups: who takes part, which op is where, what ends it."""
