"""What capturing costs beyond the forward pass it cannot do without.

Three ways over the same tokens, in one process and one dtype, in alternation, one shard at a time:

    bare       the Hugging Face model cut after the site's block, `model(tokens)`; the activations are thrown away
    capture    `LanguageModel.capture`: the same pass with the activations handed back
    collect    `sae.collect`: captured, converted, checksummed and written to an activation store on disk

and the ratio of each to the bare pass, per round and as the median over rounds. `--quick` is a short version; `--json FILE` writes the rows.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the quickstart sets it; read when torch is loaded

import torch

from sae.activations.collect import CaptureConfig, collect
from sae.activations.corpus import from_texts, state_of_the_union
from sae.models.assets import default_model
from sae.models.language_model import LanguageModel
from sae.models.tokens import pack


def bare_model(folder: Path, layer: int, dtype: torch.dtype):
    """The Hugging Face model itself, eager attention as under TransformerLens, with no block after `layer` and no unembedding."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager").eval()
    model.model.layers = model.model.layers[: layer + 1]
    return model.model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layer", type=int, default=15)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--rows", type=int, default=64, help="rows of 128 tokens per round")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.rows = 3, 32
    torch.set_num_threads(options.threads)
    folder = default_model()
    model = LanguageModel.load(folder)
    site, bare = model.site(f"blocks.{options.layer}.hook_resid_post"), bare_model(folder, options.layer, model.dtype)
    corpus = from_texts([document.text[:3000] for document in state_of_the_union().documents()])
    documents = ((document.id, model.tokenize([document.text])[0]) for document in corpus.documents())
    packed = pack(documents, context=128, separator_id=model.separator_id, bos_id=None)
    rows = torch.stack([next(packed).tokens for _ in range(options.rows)]).long()
    config = CaptureConfig(sites=(site.name,), n_tokens=rows.numel(), context=128, dtype="bfloat16", rows_per_batch=16)

    def run_bare() -> None:
        with torch.inference_mode():
            for start in range(0, len(rows), 16):
                bare(rows[start : start + 16], use_cache=False)

    def run_capture() -> None:
        for start in range(0, len(rows), 16):
            model.capture(rows[start : start + 16], [site])

    def run_collect() -> None:
        with tempfile.TemporaryDirectory() as target:
            for _ in collect(model, corpus, Path(target) / "store", config):
                pass

    ways = {"bare": run_bare, "capture": run_capture, "collect": run_collect}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for round_number in range(options.rounds + 1):
        for name, function in ways.items():
            started = time.perf_counter()
            function()
            if round_number:  # the first round warms up
                seconds[name].append(time.perf_counter() - started)
    report(seconds, rows.numel(), str(model.dtype).removeprefix("torch."), options)


def report(seconds: dict[str, list[float]], n_tokens: int, dtype: str, options: argparse.Namespace) -> None:
    print(f"layer {options.layer}, {dtype}, {options.threads} threads, {n_tokens} tokens a round, {options.rounds} rounds")
    print(f"{'way':<10}{'tokens/s (median)':>20}{'ratio to bare: min':>20}{'median':>10}{'max':>10}")
    rows = []
    for name, values in seconds.items():
        ratios = [value / base for value, base in zip(values, seconds["bare"], strict=True)]
        rate = n_tokens / statistics.median(values)
        print(f"{name:<10}{rate:>20.0f}{min(ratios):>20.3f}{statistics.median(ratios):>10.3f}{max(ratios):>10.3f}")
        rows += [{"name": f"{name} rate", "value": rate, "unit": "tokens/s"}]
        rows += [{"name": f"{name} over bare", "value": statistics.median(ratios), "unit": "ratio"}]
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
