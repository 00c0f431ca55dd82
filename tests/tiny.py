"""Tiny random language models with a real tokenizer: built in memory, no network, a tenth of a second."""

import functools
import tempfile
from typing import Literal

import torch

from sae.models.language_model import LanguageModel

TEXT = """The nation and the people, the law and the peace. My fellow citizens of the Senate and of the House of Representatives: in the
year 1865 the war was over, and the states were at peace with all the world. We have the honor to report that the government has been good
to its people. A dog is an animal, and a robin is a bird; birds can fly, but dogs cannot. def capture(tokens): return the activations."""


@functools.cache
def tiny_tokenizer():
    """A byte-level BPE tokenizer of 400 tokens with <|endoftext|> = 0 and <|bos|> = 1, trained in memory."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|endoftext|>", "<|bos|>"]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([TEXT] * 4, trainer)
    with tempfile.TemporaryDirectory() as folder:
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>", bos_token="<|bos|>").save_pretrained(folder)
        return AutoTokenizer.from_pretrained(folder)


def tiny_hf_model(
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    d_model: int = 32,
    n_layers: int = 4,
    architecture: Literal["llama", "gpt2"] = "llama",
):
    """A Hugging Face model, not wrapped: 4 heads (2 key heads in llama), all weights random and none zero, biases and gains included."""
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    d_vocab = len(tiny_tokenizer())
    if architecture == "llama":
        heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
        sizes = {"hidden_size": d_model, "intermediate_size": 2 * d_model, "num_hidden_layers": n_layers, "vocab_size": d_vocab}
        model = LlamaForCausalLM(LlamaConfig(**sizes, **heads, max_position_embeddings=256, bos_token_id=1, eos_token_id=0))
    else:
        sizes = {"n_embd": d_model, "n_layer": n_layers, "n_head": 4, "n_positions": 256, "vocab_size": d_vocab}
        model = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=1, eos_token_id=0))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            is_gain = parameter.dim() == 1 and name.endswith("weight")
            parameter.copy_(1.0 + 0.2 * noise if is_gain else 0.1 * noise if parameter.dim() == 1 else noise / parameter.shape[-1] ** 0.5)
    return model.to(dtype).eval()


def tiny_language_model(
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    d_model: int = 32,
    n_layers: int = 4,
    architecture: Literal["llama", "gpt2"] = "llama",
) -> LanguageModel:
    """A LanguageModel with random weights and a byte-level BPE tokenizer of 400 tokens at most; the same seed gives the same model."""
    model = tiny_hf_model(seed, dtype, d_model, n_layers, architecture)
    return LanguageModel.load(model, tokenizer=tiny_tokenizer())
