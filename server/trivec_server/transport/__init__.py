"""The wire: the gRPC listener, its services, and the one place where errors become status codes."""
