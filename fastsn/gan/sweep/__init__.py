"""Many runs: one after another, or beside each other on a machine or a cluster by Ray Tune.

Data's way: :mod:`.options` (what varies, from the command line) -> :mod:`.jobs` (which runs are
left to do) -> here, or :mod:`.on_ray` -> :mod:`.state` (what a run's folder says of it) ->
:mod:`.table` (the results). The folders alone are the truth: nothing else is remembered.
"""

from fastsn.gan.sweep.jobs import run_jobs

__all__ = ["run_jobs"]
