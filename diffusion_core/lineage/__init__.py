"""What is recorded of a model and its data, and needs no MLflow."""
