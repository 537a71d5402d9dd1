"""The broker's state: what outlives a request and is shared by several brokers. Grants for tokens do not need it.

``database`` is the port, with two implementations: ``sqlite`` in a file of this machine, ``postgres`` for several
brokers. ``links`` has the queries, each written once for both. Times are microseconds since 1970, UTC. Only the SHA-256
of an id is stored, so a stolen database opens nothing.
"""
