"""HTTP/2 and TLS below gRPC, for what a well-behaved client never does."""
