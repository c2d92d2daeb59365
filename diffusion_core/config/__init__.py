"""Configuration: params.yaml determines results, environment variables where things run."""
