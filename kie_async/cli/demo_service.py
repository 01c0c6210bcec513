"""What the demo's service is like, and how fast its clock: for the sandbox and for the sessions."""

from __future__ import annotations

import math

from ..config import PollSchedule
from ..sandbox import Lognormal

SANDBOX_KEY = "sandbox-key"
BALANCE = 1e9

# The real service takes minutes (median about 120 s) and its callbacks some seconds. The demo's clock
# runs 24 times as fast: tasks take about 5 s, the safety net under the callbacks spans 2.5 s, not 60.
# The limits are the real ones, unscaled: 20 creates in 10 s and 10 queries a second. So the interval
# without callbacks is scaled less than the rest: some 20 tasks in flight are 8 queries a second.
TASK_DURATIONS = Lognormal(5.0, 0.42)
CALLBACK_DELAY_S = 0.25
POLL_SCHEDULE = PollSchedule(first_s=2.5, tiers=((10.0, 2.5), (math.inf, 4.0)), safety_net_s=2.5)
TASK_TIMEOUT_S = 120.0
