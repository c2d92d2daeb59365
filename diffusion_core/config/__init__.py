"""What is done (params.yaml) and where it runs (environment variables)."""
