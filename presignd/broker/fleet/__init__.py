"""The fleet page: what this broker has seen of each token since it started, for administrators.

``activity`` records it, ``snapshots`` takes what the page shows, ``sections`` renders it, ``site`` and ``serving`` have
its HTTP. Nothing of it is stored, and several brokers each show their own.
"""
