"""The hyperparameter search: the only folder with Ray, and with Optuna's samplers."""

from __future__ import annotations

import os

# Read by Ray when it is imported, and here is what runs before any module of this folder.
os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # an embedded Ray listens on 127.0.0.1 only
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# Ray warns of more than four processes at a core, and a group of Ray Train alone is four: we know.
os.environ.setdefault("RAY_worker_maximum_startup_concurrency", str(max(8, 2 * (os.cpu_count() or 1))))
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # the new one prints banners even when silent
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # the run folder is our log
os.environ.setdefault("TUNE_DISABLE_STRICT_METRIC_CHECKING", "1")  # a diverged trial ends without a metric
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # Ctrl-C is handled by trials.py
os.environ.setdefault("TUNE_FORCE_TRIAL_CLEANUP_S", "3")  # a trial in mid-epoch is not waited for
os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "3600")  # nothing of Tune's is ever restored
