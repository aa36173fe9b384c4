"""A Ray to run on: embedded or a cluster, its resources, a watchdog, and a cluster that is driven from elsewhere.

Ray reads these variables when it is imported, so this module sets them when it is imported itself, and every package
that imports Ray imports this one first. All else that Ray needs of the environment, `ray_session` sets for its block.
"""

from __future__ import annotations

import os

from wmlsearch.runs.environment import set_variables
from wmlsearch.runs.machine import available_cpus

_READ_AT_IMPORT = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # an embedded Ray listens on 127.0.0.1 only
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    # Ray warns of more than four processes per core, but one Ray Train worker group alone needs four.
    "RAY_worker_maximum_startup_concurrency": str(max(8, 2 * available_cpus())),
    "RAY_AIR_NEW_OUTPUT": "0",  # the new output prints banners even when it should be silent
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the run folder is the log
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a diverged trial ends without a metric
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # search/interrupts.py handles Ctrl-C
    "TUNE_FORCE_TRIAL_CLEANUP_S": "3",  # Tune does not wait for a trial in the middle of an epoch
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",  # nothing restores Tune's own checkpoints
}
set_variables({name: value for name, value in _READ_AT_IMPORT.items() if name not in os.environ})
