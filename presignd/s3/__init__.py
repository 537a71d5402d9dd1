"""S3 itself, pure: SigV4, the store's answers, keys, limits, the arithmetic of parts."""
