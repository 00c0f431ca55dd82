"""Tiny random language models with a real tokenizer: built in memory, no network, a tenth of a second."""

import functools
import json
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


def write_gguf(path, model, tokenizer):
    """A GGUF file as llama.cpp writes it: its own tensor names, rotary halves of q and k interleaved."""
    import gguf

    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(config.vocab_size)
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, *[1] * (len(tokens) - 2)])
    writer.add_token_merges(_merges(tokenizer))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(0)
    names = {
        "self_attn.q_proj": ("attn_q", config.num_attention_heads),
        "self_attn.k_proj": ("attn_k", config.num_key_value_heads),
        "self_attn.v_proj": ("attn_v", None),
        "self_attn.o_proj": ("attn_output", None),
        "mlp.gate_proj": ("ffn_gate", None),
        "mlp.up_proj": ("ffn_up", None),
        "mlp.down_proj": ("ffn_down", None),
        "input_layernorm": ("attn_norm", None),
        "post_attention_layernorm": ("ffn_norm", None),
    }
    weights = model.state_dict()
    writer.add_tensor("token_embd.weight", weights["model.embed_tokens.weight"].numpy())
    writer.add_tensor("output_norm.weight", weights["model.norm.weight"].numpy())
    writer.add_tensor("output.weight", weights["lm_head.weight"].numpy())
    for layer in range(config.num_hidden_layers):
        for theirs, (ours, heads) in names.items():
            weight = weights[f"model.layers.{layer}.{theirs}.weight"]
            if heads:
                weight = weight.reshape(heads, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape)
            writer.add_tensor(f"blk.{layer}.{ours}.weight", weight.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _merges(tokenizer):
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    return [" ".join(merge) if isinstance(merge, list) else merge for merge in merges]
