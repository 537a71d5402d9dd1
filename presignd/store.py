"""The HTTP seam: sends granted requests to the store, and turns whatever goes wrong into a ``Fault``.

Nothing outside this module sees an aiohttp client error: those carry the URL in ``str`` and ``repr``.
"""
