"""Load: twice what a real cloud can take, from real devices, and a judge that looks at what they noted.

    plan.py                      how long, how many, and when the cloud is killed
    driver.py, fleet.py          devices that note every request; the cloud, and orders to them
    run.py                       from start to evidence
    evidence.py -> criteria.py   what was seen, in figures, and what is asked of it
    __main__.py                  table, file, verdict

``python -m load`` (``make load``) runs it; docs/operations.md says what it shows.
"""
