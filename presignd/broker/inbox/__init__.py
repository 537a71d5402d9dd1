"""The API for hosts that fetch files of invitations: a list, for which they can wait, and acknowledgements."""
