"""Tasks: questions with known answers about texts or places in them. `CATALOGUE` says what there is; `task_from_file` reads your own."""

from probes.tasks.catalogue import CATALOGUE, TaskSource
from probes.tasks.reviews import origin, rating, sentiment
from probes.tasks.speeches import era, party, speaker
from probes.tasks.task import MIN_PER_CLASS, Kind, Task

__all__ = ["CATALOGUE", "MIN_PER_CLASS", "Kind", "Task", "TaskSource", "era", "origin", "party", "rating", "sentiment", "speaker"]
