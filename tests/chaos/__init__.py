"""The chaos run: a ring under a seeded adversary, with every value of every call checked.

``make chaos`` starts it. Real daemons and real programs as processes; their links go through a
proxy of the run's own. Who does what: :mod:`~chaos.calls` knows what each call is and what must
come of it, :mod:`~chaos.workload` is the program that makes the calls (with
:mod:`~chaos.interrupts` at any instant that is the library's), :mod:`~chaos.programs` runs these,
:mod:`~chaos.faults` says what can be done to the :mod:`~chaos.stage`, :mod:`~chaos.adversary`
does it, :mod:`~chaos.report` counts.

:mod:`~chaos.ledger` compares what the programs say. For each error it wants the cause: from
:mod:`~chaos.lives`, who lived when, and :mod:`~chaos.breaks`, when the ring was broken;
:mod:`~chaos.claims` finds it for an error by itself, :mod:`~chaos.splits` for one beside a result.
:mod:`~chaos.notices` and :mod:`~chaos.pulse` tell how long a program waited for an error, and how
much of that the busy machine took.
"""
