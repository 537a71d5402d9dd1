"""Stable links (docs/broker.md): short addresses that outlive a signature, can be counted, and can be revoked.

``request`` has the JSON of the calls, ``policy`` decides them, and ``api`` answers them. ``names`` makes file names
safe. The broker's state keeps the links (``presignd.broker.state.links``).
"""
