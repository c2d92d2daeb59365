"""The servers of a team on one machine, without Docker: `make stack` and `make stack-down`.

PostgreSQL, an S3 store, MLflow with its login, Prefect with its login, and a worker. All listen on this machine alone,
keep what they have in `.stack`, and go on by themselves when the command that started them has ended.
"""
