"""What came in by invitations, for the hosts that fetch it: the list that they wait at, and their acknowledgements."""
