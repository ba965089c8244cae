"""The chaos run: a ring under a seeded adversary, with every value of every call checked.

``make chaos`` starts it. Real daemons and real programs as processes; their links go through a
proxy of the run's own. Who does what: :mod:`~chaos.programs` runs the programs,
:mod:`~chaos.faults` says what can be done to the :mod:`~chaos.stage`, :mod:`~chaos.adversary`
does it, :mod:`~chaos.warmup` goes before memory is measured (:mod:`~chaos.resources`),
:mod:`~chaos.report` counts.

What programs do is a function of the seed: :mod:`~chaos.calls` knows what each call is and what
must come of it, :mod:`~chaos.messages` what ranks send each other, :mod:`~chaos.division` how
rings are split; :mod:`~chaos.layout` says on which members a group's programs are.

:mod:`~chaos.workload` is such a program. Its :mod:`~chaos.caller` makes the calls, its
:mod:`~chaos.courier` sends and receives, its :mod:`~chaos.divider` takes part in splits; all that
with :mod:`~chaos.interrupts` at any instant that is the library's. It says what comes of it
(:mod:`~chaos.speech`), of each call by its name (:mod:`~chaos.which`).

:mod:`~chaos.ledger` compares what the programs say. For each error it wants the cause: from
:mod:`~chaos.lives`, who lived when, and :mod:`~chaos.breaks`, when the ring was broken;
:mod:`~chaos.claims` finds it for an error by itself, :mod:`~chaos.splits` for one beside a result.
:mod:`~chaos.notices` and :mod:`~chaos.pulse` tell how long a program waited for an error, and how
much of that the busy machine took.
"""
