"""The control API under `/v1`. Law: reaches source, store and providers only through `ports`; knows no other role."""
