"""`probes tasks`: what can be asked without data of one's own; with a name, the task itself, to look at."""

from typing import Annotated

import typer

from probes.cli.output import Json, give, say


def tasks(
    name: Annotated[str | None, typer.Argument(help="Make this task and show rows of each of its classes.")] = None,
    n: Annotated[int, typer.Option(help="Rows of each class to show.", min=1)] = 5,
    seed: Annotated[int, typer.Option(help="Which rows.")] = 0,
    json: Json = None,
) -> None:
    """List the tasks: what each asks, where its texts come from, their licence. With NAME, make it and look at it."""
    from probes.cli.inputs import make_task
    from probes.results import Table
    from probes.tasks import CATALOGUE, Task

    if name is not None:
        task = make_task(name)
        if isinstance(task, Task):
            say(repr(task))
            give({name: task.examples(n, seed=seed)}, json=json, figures=None)
        else:
            say(f"{task}\nits rows are cut by a language model's tokenizer; see `probes sweep --task {name}`")
        return
    rows = tuple((key, t.kind, t.target, t.needs, t.question, t.source, t.licence) for key, t in CATALOGUE.items())
    columns = ("task", "a row is", "answer", "needs", "asks", "source", "licence")
    table = Table("Tasks", columns, rows)
    if json is not None:
        give({"tasks": table}, json=json, figures=None)
        return
    for key, t in CATALOGUE.items():
        say(f"{key}  ({t.kind}, {t.target}{'' if t.needs == 'nothing' else ', needs a ' + t.needs})")
        say(f"    asks     {t.question}\n    source   {t.source}\n    licence  {t.licence}")
