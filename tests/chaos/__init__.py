"""The chaos run: a ring under a seeded adversary, with every value of every call checked.

``make chaos`` starts it. Real daemons and real programs as processes; their links go through a
proxy of the run's own. Who does what: :mod:`~chaos.calls` knows what each call is and what must
come of it, :mod:`~chaos.workload` is the program that makes the calls, :mod:`~chaos.programs`
runs these and :mod:`~chaos.ledger` compares what they say, :mod:`~chaos.faults` says what can be
done to the :mod:`~chaos.stage`, :mod:`~chaos.adversary` does it, :mod:`~chaos.report` counts.
"""
