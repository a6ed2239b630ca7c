"""Commands that write the sample shards and train the sample model."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from caption_assets.cli.app import SAMPLE, app
from caption_assets.sample.training_config import TrainingConfig


@app.command(rich_help_panel=SAMPLE)
def sample_shards(
    folder: Annotated[Path, Argument(metavar="DIR", help="Folder for the shards, beside answers.json.")],
) -> None:
    """Write the two sample shards of the demo, and the correct answers about their clips."""
    from caption_assets.sample.shards import ANSWERS, FOLDER_SHARD, TAR_SHARD, write_shards

    write_shards(folder)
    print(f"Shards in {folder}: {FOLDER_SHARD}, {TAR_SHARD}.tar; correct answers: {folder.parent / ANSWERS}")


@app.command(rich_help_panel=SAMPLE)
def train_sample(
    out: Annotated[Path, Argument(help="Folder for the model.")],
    vision_steps: Annotated[
        int, Option(help="Training steps of the vision tower alone.")
    ] = TrainingConfig.vision_steps,
    glimpses: Annotated[int, Option(help="Batch size of these steps, in crops of windows.")] = TrainingConfig.glimpses,
    vision_rate: Annotated[float, Option(help="Peak learning rate of these steps.")] = TrainingConfig.vision_rate,
    steps: Annotated[int, Option(help="Training steps of the whole model.")] = TrainingConfig.steps,
    batch: Annotated[int, Option(help="Batch size of these steps, in windows.")] = TrainingConfig.batch,
    rate: Annotated[float, Option(help="Peak learning rate of these steps.")] = TrainingConfig.rate,
    examples: Annotated[int, Option(help="Number of training windows.")] = TrainingConfig.examples,
    held_out: Annotated[int, Option(help="Number of evaluation windows.")] = TrainingConfig.held_out,
    seed: Annotated[int, Option(help="Random seed.")] = TrainingConfig.seed,
    workers: Annotated[int, Option(help="Number of processes that render windows.")] = TrainingConfig.workers,
) -> None:
    """Train the sample model from random weights: about 20 minutes on two CPU cores."""
    from caption_assets.sample.train import train

    train(
        TrainingConfig(vision_steps, glimpses, vision_rate, steps, batch, rate, examples, held_out, seed, workers),
        out,
    )
