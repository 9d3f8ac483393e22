"""The server: routes, batching, models in memory, gRPC."""
