"""An embedded SeaweedFS: the store of ``presignd demo`` and of the tests."""
