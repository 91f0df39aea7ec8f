"""The API's answers as models: what /docs shows, and what tests hold the real answers to. They run no request."""
