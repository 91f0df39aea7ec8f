"""Vector stores behind one port (`port`): `pgvector`, and `memory` for tests. Stores do not know each other."""
