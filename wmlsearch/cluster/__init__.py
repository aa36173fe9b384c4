"""A Ray to run on: embedded or a cluster, its resources, a watchdog, and a cluster that is driven from elsewhere.

Ray reads its environment when it is imported. This module sets it, and every package that imports Ray imports this one
first.
"""

from __future__ import annotations

import os

from wmlsearch.runs.environment import prepare_environment
from wmlsearch.runs.machine import available_cpus

prepare_environment()
os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # an embedded Ray listens on 127.0.0.1 only
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# Ray warns of more than four processes per core, but one Ray Train worker group alone needs four.
os.environ.setdefault("RAY_worker_maximum_startup_concurrency", str(max(8, 2 * available_cpus())))
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # the new output prints banners even when it should be silent
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # the run folder is the log
os.environ.setdefault("TUNE_DISABLE_STRICT_METRIC_CHECKING", "1")  # a diverged trial ends without a metric
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # search/interrupts.py handles Ctrl-C
os.environ.setdefault("TUNE_FORCE_TRIAL_CLEANUP_S", "3")  # Tune does not wait for a trial in the middle of an epoch
os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "3600")  # nothing restores Tune's own checkpoints
