"""The log between the roles: a port (`ports`) with a local implementation and, beside it, Kafka.

Law: knows records as bytes, never what they mean. Foreign exceptions become `walvec.contracts.errors` here.
"""
