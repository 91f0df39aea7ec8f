"""What the roles agree on: values, records, their wire format. Law: pure, no I/O, no clock, no client library."""
