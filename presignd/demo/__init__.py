"""SeaweedFS, embedded: the store of ``presignd demo`` and of the tests."""
