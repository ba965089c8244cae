"""The daemon: the layers wired together; signals, the service manager."""

import os

# Before numpy comes, which would start a thread for every core but one: the daemon multiplies no
# matrices, and with two cores these threads spin for a third of a start's processor time.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
