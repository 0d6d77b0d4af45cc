"""Time and peak memory of one scan of a random decoder, batch by batch or layer by layer.

    python benchmarks/layer_schedule.py --layers 24 --schedule layer --memory 1GB
    python benchmarks/layer_schedule.py --layers 24 --schedule batch
    python benchmarks/layer_schedule.py --layers 1 --width 4096 --ffn 14336 --dtype bfloat16 --folds 2 --schedule layer

Each run is a process of its own, because a peak is that of the whole process.
"""

from __future__ import annotations

import argparse
import time

import torch
import transformers

import fastprobe as fp
from fastprobe.testing.peak_memory import peak_memory


def decoder(layers: int, width: int, ffn: int, dtype: torch.dtype) -> torch.nn.Module:
    """Return a random Llama with heads of 64 columns and 1,000 tokens in its vocabulary."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=width,
        intermediate_size=ffn,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        vocab_size=1000,
        dtype=dtype,
    )
    return transformers.AutoModel.from_config(config, dtype=dtype).eval()


def main() -> None:
    """Run one scan and print its figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in {"layers": 24, "width": 768, "ffn": 3072, "tokens": 8192, "folds": 5, "threads": 1}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--schedule", default="auto")
    parser.add_argument("--memory")
    parser.add_argument("--score-sequences", default="64")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = decoder(options.layers, options.width, options.ffn, getattr(torch, options.dtype))
    ids = torch.randint(3, 1000, (options.tokens // 128, 128))
    batches = [{"input_ids": part, "attention_mask": torch.ones_like(part)} for part in ids.split(32)]
    scored = options.score_sequences if options.score_sequences == "all" else int(options.score_sequences)
    found: dict[str, fp.LinearityScan] = {}

    def run() -> None:
        found["scan"] = fp.linearity(
            model,
            batches,
            folds=options.folds,
            schedule=options.schedule,
            memory=options.memory,
            score_sequences=scored,
        )

    started = time.process_time()
    peak = peak_memory(run)
    config = found["scan"].config
    print(
        f"{config['schedule']}: peak {peak / 1e9:.2f} GB beyond the weights, sums {config['moment_bytes'] / 1e9:.2f} GB"
    )
    print(f"CPU time {time.process_time() - started:.0f} s; {config['seconds']}")


if __name__ == "__main__":
    main()
