"""Tasks: questions with known answers about texts or places in them. `CATALOGUE` says what there is; `task_from_file` reads your own."""

from probes.tasks.answers import Question, answered, arithmetic_answers, arithmetic_questions, noun_answers, noun_questions
from probes.tasks.catalogue import CATALOGUE, TaskSource
from probes.tasks.compounds import compound
from probes.tasks.lexical import PROPERTIES, TokenTask, token_task, vocabulary_problem
from probes.tasks.own import Columns, task_from_dataset, task_from_file, task_from_rows
from probes.tasks.python_code import TOKEN_KINDS, docstring_package, lexical_tokens, prose_or_code, token_kinds
from probes.tasks.reviews import origin, rating, sentiment
from probes.tasks.speeches import era, party, passages, speaker
from probes.tasks.task import MIN_PER_CLASS, Kind, Task
from probes.tasks.wordnet import NOUN_CLASSES, class_words, is_a, kinds_above, noun_class

__all__ = [
    "CATALOGUE",
    "MIN_PER_CLASS",
    "NOUN_CLASSES",
    "PROPERTIES",
    "TOKEN_KINDS",
    "Columns",
    "Kind",
    "Question",
    "Task",
    "TaskSource",
    "TokenTask",
    "answered",
    "arithmetic_answers",
    "arithmetic_questions",
    "class_words",
    "compound",
    "docstring_package",
    "era",
    "is_a",
    "kinds_above",
    "lexical_tokens",
    "noun_answers",
    "noun_class",
    "noun_questions",
    "origin",
    "party",
    "passages",
    "prose_or_code",
    "rating",
    "sentiment",
    "speaker",
    "task_from_dataset",
    "task_from_file",
    "task_from_rows",
    "token_kinds",
    "token_task",
    "vocabulary_problem",
]
