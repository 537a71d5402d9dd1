"""Invitations: strangers send files by a browser, straight to the bucket, within what an invitation allows.

``policy`` decides, ``desk`` records and signs, ``sweep`` ends what was cut off, ``public`` answers at ``/i/``.
"""
