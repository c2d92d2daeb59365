"""The servers of a team on one machine, without Docker: `make stack` and `make stack-down`.

PostgreSQL, an S3 store, MLflow and Prefect with logins, and a worker. All listen only on this machine and store their
data in `.stack`. They keep running when the command that started them has ended.
"""
