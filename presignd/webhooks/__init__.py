"""Webhooks: tell other programs by signed POSTs (Standard Webhooks) what a daemon or a broker records.

``outbox`` is the port of what waits to be sent, with two implementations: ``presignd.ledger.outbox`` and
``presignd.broker.state.outbox``. ``signature`` signs, ``sender`` sends one message once, ``schedule`` decides what
follows, ``courier`` sends what waits for one webhook, and ``webhooks`` is all of it for one program.
"""
