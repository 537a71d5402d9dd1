"""Webhooks: send the events of a daemon or a broker to other programs by signed POSTs (Standard Webhooks).

``outbox`` is the port of the messages that wait, with two implementations: ``presignd.ledger.outbox`` and
``presignd.broker.state.outbox``. ``signature`` signs, ``sender`` sends one message once, ``schedule`` decides about
retries, ``courier`` sends the messages of one webhook, and ``webhooks`` has all webhooks of one program.
"""
