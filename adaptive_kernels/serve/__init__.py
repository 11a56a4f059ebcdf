"""A file of requests through an engine, one image per request: the command `serve-file`."""
