"""``cema demo``: the whole system on one machine. Real processes, real HTTP, real images; nothing is mocked."""
