#!/usr/bin/env bash
# libzmq 4.3.5 (pyzmq 27.3.0): unbinding an ipc endpoint also ends the connections that were accepted there.
#
# The manual's title of zmq_unbind is "stop accepting connections on a socket". A ROUTER that has heard a DEALER, and
# then unbinds, cannot reach it any more: with ROUTER_MANDATORY the send fails with EHOSTUNREACH, "Host unreachable",
# though both processes and both sockets live on. So a server cannot replace a listening socket, whose file somebody
# has removed for instance, and keep those that came through the old one: it has to leave the old one open beside the new.
# Seen over ipc and over tcp.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet --disable-pip-version-check pyzmq==27.3.0
cd "$place"
"$place/venv/bin/python" - <<'PYTHON'
import time

import zmq

context = zmq.Context()
outcomes = {}
for endpoint in ("ipc://socket", "tcp://127.0.0.1:*"):
    router, dealer = context.socket(zmq.ROUTER), context.socket(zmq.DEALER)
    router.setsockopt(zmq.ROUTER_MANDATORY, 1)
    router.setsockopt(zmq.LINGER, 0)
    dealer.setsockopt(zmq.LINGER, 0)
    dealer.setsockopt(zmq.RECONNECT_IVL, -1)
    router.bind(endpoint)
    bound = router.getsockopt_string(zmq.LAST_ENDPOINT)
    dealer.connect(bound)
    dealer.send(b"hello")
    name, _ = router.recv_multipart()
    router.send_multipart([name, b"before"])
    assert dealer.recv() == b"before"
    router.unbind(bound)
    time.sleep(0.5)
    try:
        router.send_multipart([name, b"after"])
        outcomes[endpoint] = "reached" if dealer.poll(2000) else "sent, and not received"
    except zmq.ZMQError as error:
        outcomes[endpoint] = str(error)
    router.close()
    dealer.close()
context.term()
print(f"pyzmq {zmq.__version__}, libzmq {zmq.zmq_version()}, after unbind: {outcomes}")
raise SystemExit(0 if set(outcomes.values()) == {"Host unreachable"} else "the behaviour has changed")
PYTHON
