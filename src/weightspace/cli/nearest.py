"""The command `weightspace nearest`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from weightspace.cli.atlas_sets import Engine, engine_of, say_ranking
from weightspace.cli.options import Shared, shared
from weightspace.cli.show import answer, progress

__all__ = ["nearest"]


class By(StrEnum):
    """What starts are ranked by."""

    STEPS = "steps"
    LOSS = "loss"
    ACCURACY = "accuracy"
    PERPLEXITY = "perplexity"
    LOGME = "logme"
    TASK2VEC = "task2vec"
    CODES = "codes"
    WEIGHTS = "weights"


@shared("data arch weights trust_code limit report seed")
def nearest(
    checkpoints: Annotated[list[Path], typer.Argument(help="Checkpoints to start from.")],
    by: Annotated[By, typer.Option(help="steps: loss after a few steps of fine-tuning, the better half goes on; loss, "
                                   "accuracy, perplexity: as they are; logme: features for any labels; task2vec, "
                                   "codes: distance from what each has learnt; weights: distance from a network that "
                                   "is trained a little.")] = By.STEPS,
    steps: Annotated[int, typer.Option(min=0, help="Steps of fine-tuning.")] = 20,
    fitted: Annotated[bool, typer.Option("--new-head", help="Fit a new last layer first, for other classes than those "
                                         "that the networks know.")] = False,
    learnt: Annotated[list[str] | None, typer.Option(help="What a checkpoint has learnt: digits, mnist:0-4, x.npz; "
                                                     "once for each, in their order.")] = None,
    jobs: Engine = "1",
    *,
    common: Shared,
) -> None:  # fmt: skip
    """Which of these networks should I start from for new data? The cost is told before the run begins."""
    if common.data is None:
        raise typer.BadParameter("to start from for what? give --data, examples with labels")
    engine = engine_of(jobs)
    with progress() as step:
        from weightspace.commands.nearest import nearest_files

        found = nearest_files(
            checkpoints, common.data, by.value, learnt=learnt or (), steps=steps, fitted=fitted, limit=common.limit,
            engine=engine, settings=common.settings(step),
        )  # fmt: skip
    from weightspace.pages.nearest import nearest_page

    answer("nearest", found, say_ranking, common, nearest_page)
