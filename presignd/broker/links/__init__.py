"""Stable links (docs/broker.md): short addresses that outlive a signature, can be counted, and can be revoked.

``request`` is what a token asks for and ``policy`` what it gets; ``api`` answers those calls. ``names`` makes file
names safe. The broker's state keeps the links (``presignd.broker.state.links``).
"""
