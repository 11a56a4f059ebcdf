"""Train the demo model of adaptive_kernels on Fashion-MNIST, on a CPU, within a time budget.

    python examples/train_fashion_mnist.py --minutes 18

Needs torch, safetensors, numpy and tqdm, and the data set (MIT licence), which Debian packages as
dataset-fashion-mnist.
"""

from __future__ import annotations

import argparse
import copy
import gzip
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from adaptive_kernels.demo.model import (
    BETA_END,
    BETA_START,
    NULL_LABEL,
    TRAIN_TIMESTEPS,
    WEIGHTS_PATH,
    FashionUNet,
)

DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
LEARNING_RATE = 2e-3
WARMUP_STEPS = 100
LABEL_DROP = 0.1
LOSS_WINDOW = 200
MAX_BYTES = 4_000_000


def read_idx(path: Path, header: int) -> np.ndarray:
    """Read the bytes after the header of a gzipped idx file.

    Raises:
        SystemExit: the file is missing; the message names the package that brings it.
    """
    if not path.is_file():
        raise SystemExit(
            f"{path} not found: install Fashion-MNIST with 'apt-get install "
            "dataset-fashion-mnist', or name the folder of its four .gz files with --data"
        )
    return np.frombuffer(gzip.decompress(path.read_bytes()), dtype=np.uint8, offset=header)


def load_images(
    folder: Path,
) -> tuple[
    Tensor,  # [N, 1, 32, 32] uint8
    Tensor,  # [N] int64
]:
    """Read the training split, padded with black from 28x28 to 32x32."""
    images = read_idx(folder / "train-images-idx3-ubyte.gz", header=16)
    labels = read_idx(folder / "train-labels-idx1-ubyte.gz", header=8)
    images = torch.from_numpy(images.reshape(-1, 1, 28, 28).copy())
    return F.pad(images, (2, 2, 2, 2)), torch.from_numpy(labels.astype(np.int64))


class Trainer:
    """Noise-prediction training: mean squared error on uniformly drawn timesteps.

    Each image is scaled to [-1, 1] and noised to a timestep of a linear schedule of 1000 betas
    from 1e-4 to 0.02. A tenth of the labels become NULL_LABEL, so that one network serves both
    halves of classifier-free guidance. AdamW decays from 2e-3 to 0 over the budget; what is saved
    is a moving average of the weights. Images are not flipped: all shoes point the same way.
    """

    def __init__(self, images: Tensor, labels: Tensor, batch: int) -> None:
        self.images = images
        self.labels = labels
        self.batch = batch
        betas = torch.linspace(BETA_START, BETA_END, TRAIN_TIMESTEPS)
        self.alphas_cumprod = torch.cumprod(1 - betas, dim=0)
        self.model = FashionUNet().train()
        self.average = copy.deepcopy(self.model).eval().requires_grad_(False)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=LEARNING_RATE)
        self.steps = 0
        self.order = torch.empty(0, dtype=torch.int64)

    def draw(self) -> tuple[Tensor, Tensor]:
        """Take the next batch of a shuffled pass over the images."""
        if len(self.order) < self.batch:
            self.order = torch.randperm(len(self.images))
        index, self.order = self.order[: self.batch], self.order[self.batch :]
        return self.images[index].float() / 127.5 - 1, self.labels[index]

    def step(
        self,
        progress: float,  # share of the budget that is used, 0 to 1
    ) -> float:
        """Take one optimiser step and return its loss."""
        images, labels = self.draw()
        labels = torch.where(torch.rand(self.batch) < LABEL_DROP, NULL_LABEL, labels)
        timesteps = torch.randint(0, TRAIN_TIMESTEPS, (self.batch,))
        noise = torch.randn_like(images)
        signal = self.alphas_cumprod[timesteps][:, None, None, None]
        noisy = signal.sqrt() * images + (1 - signal).sqrt() * noise
        with torch.autocast("cpu", dtype=torch.bfloat16):
            predicted = self.model(noisy, timesteps, labels)
        loss = F.mse_loss(predicted.float(), noise)

        warmup = min(1.0, (self.steps + 1) / WARMUP_STEPS)
        for group in self.optimizer.param_groups:
            group["lr"] = LEARNING_RATE * warmup * max(0.0, 1 - progress)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.steps += 1
        # A long average suits only the end, where the learning rate is low.
        decay = 0.995 if progress < 0.5 else 0.998
        torch._foreach_lerp_(
            list(self.average.parameters()), list(self.model.parameters()), 1 - decay
        )
        return loss.item()

    def save(self, path: Path, loss: float) -> None:
        """Write the averaged weights as float16 safetensors.

        Raises:
            SystemExit: the file is too large to ship.
        """
        weights = {name: w.half().contiguous() for name, w in self.average.state_dict().items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(
            weights,
            path,
            metadata={
                "dataset": "Fashion-MNIST, training split, padded to 32x32",
                "license": "MIT",
                "iterations": str(self.steps),
                "batch": str(self.batch),
                "loss": f"{loss:.5f}",
                "torch": torch.__version__,
            },
        )
        size = path.stat().st_size
        if size >= MAX_BYTES:
            raise SystemExit(f"{path} must stay below {MAX_BYTES} bytes, got {size}")
        print(f"{path}: {size} bytes, {self.steps} iterations, loss {loss:.4f}")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=DEBIAN_FOLDER, help="folder of the .gz files")
    parser.add_argument("--minutes", type=float, default=18.0, help="time budget")
    parser.add_argument("--steps", type=int, help="this many steps instead of the time budget")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--out", type=Path, default=WEIGHTS_PATH, help="safetensors file to write")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    torch.manual_seed(arguments.seed)
    torch.set_num_threads(arguments.threads)
    trainer = Trainer(*load_images(arguments.data), arguments.batch)

    losses: list[float] = []
    start = time.monotonic()
    with tqdm(total=arguments.steps, unit="step", mininterval=2.0) as bar:
        while True:
            if arguments.steps is not None:
                progress = trainer.steps / arguments.steps
            else:
                progress = (time.monotonic() - start) / (60 * arguments.minutes)
            if progress >= 1:
                break
            losses.append(trainer.step(progress))
            recent = losses[-LOSS_WINDOW:]
            bar.set_postfix(loss=f"{sum(recent) / len(recent):.4f}", refresh=False)
            bar.update()
    recent = losses[-LOSS_WINDOW:]
    trainer.save(arguments.out, sum(recent) / len(recent) if recent else float("nan"))


if __name__ == "__main__":
    main()
