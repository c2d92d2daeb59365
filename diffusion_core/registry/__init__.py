"""The only modules that use MLflow: tracking, the servable model and the model registry.

MLflow reads the variables below when it is imported or called. Variables that the user has set do not change.
"""

import logging
import os

for _name, _value in {
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_RECORD_ENV_VARS_IN_MODEL_LOGGING": "false",
}.items():
    os.environ.setdefault(_name, _value)

# It logs a traceback for each error of a database, which the caller reports in a sentence.
logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
