"""The store's client: HTTP, bodies, rate, connections."""
