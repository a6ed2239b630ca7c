"""The hyperparameters of the sample model's training."""

from dataclasses import dataclass


@dataclass(frozen=True)
class TrainingConfig:
    """Training in two phases: the vision tower alone, which learns slowly, then the whole model."""

    vision_steps: int = 2400
    """Steps of the first phase."""
    glimpses: int = 40
    """Batch size of the first phase, in glimpses: crops of windows."""
    vision_rate: float = 2e-3
    """Peak learning rate of the first phase."""
    steps: int = 3000
    """Steps of the second phase."""
    batch: int = 6
    """Batch size of the second phase, in windows."""
    rate: float = 1e-3
    """Peak learning rate of the second phase."""
    examples: int = 6000
    """Number of training windows."""
    held_out: int = 200
    """Number of evaluation windows."""
    seed: int = 0
    """Random seed."""
    workers: int = 2
    """Number of processes that render windows."""
