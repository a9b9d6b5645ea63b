"""The endpoint: entities over HTTP and gRPC, on autoscaled replicas of Ray Serve."""
