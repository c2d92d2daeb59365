"""Records of models and their data, independent of MLflow."""
