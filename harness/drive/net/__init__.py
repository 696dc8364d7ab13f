"""HTTP/2 and TLS below gRPC, for what no well-behaved client does."""
