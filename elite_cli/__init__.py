"""`elite`: the command line, a gRPC client."""
