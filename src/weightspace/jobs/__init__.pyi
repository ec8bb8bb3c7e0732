"""Jobs: pure functions of content keys, run here, in processes or on a cluster."""

from weightspace.jobs.calls import JobError as JobError
from weightspace.jobs.calls import Pool as Pool
from weightspace.jobs.engine import Engine as Engine
from weightspace.jobs.engine import completed as completed
from weightspace.jobs.engine import opened as opened
from weightspace.jobs.engine import run as run
