"""Chaos: a real cloud and real devices under faults, and a checker that does not trust them.

    plan.py -> injector.py -> processes.py, disks.py, damage.py, link.py    what is done to the system, and how
    edge_driver.py                                                          a device that predicts and keeps a diary
    evidence.py -> promises.py, deliveries.py                               what was seen, and what was promised
    run.py, __main__.py                                                     from start to table

``python -m chaos`` (``make chaos``) runs it; docs/operations.md says what it shows.
"""
