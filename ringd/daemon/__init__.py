"""The daemon: the layers wired together; signals, the service manager."""

import os

from ringd.host import imports

# Before numpy comes, which would start a thread for every core but one: the daemon multiplies no
# matrices, and with two cores these threads spin for a third of a start's processor time.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# structlog has loggers for asyncio's coroutines, and paints tracebacks with rich, where that is
# installed. A daemon has neither, and 6 MiB less memory without them.
imports.put_off("asyncio")
with imports.without("rich"):
    import structlog as structlog
