"""llm2vec's ways, run by the interpreter of `llm2vec_environment`: nothing newer is imported."""

import time

import torch
from llm2vec import LLM2Vec
from llm2vec.models import LlamaBiForMNTP
from peft import LoraConfig, get_peft_model


def encode(model: str, device: str, dtype: str, before: str, after: str):
    """`LLM2Vec.encode`, told to cut nothing, of the same tokens and with the same pooling."""
    loaded = LLM2Vec.from_pretrained(
        model,
        torch_dtype=getattr(torch, dtype),
        pooling_mode="last_token",
        max_length=100_000,
        doc_max_length=100_000,
    )

    def run(texts: list[str], batch_size: int = 32):
        begin = time.perf_counter()
        vectors = loaded.encode(
            [[before, text + after] for text in texts],
            batch_size=batch_size,
            show_progress_bar=False,
            device=device,
        )
        return {"seconds": time.perf_counter() - begin, "vectors": vectors.float().numpy()}

    return run


def mntp(model: str, device: str, dtype: str, batches: list[dict]):
    """A training step of its model for MNTP with its LoRA set-up, in the paper's rank."""
    torch.manual_seed(0)
    loaded = LlamaBiForMNTP.from_pretrained(model, torch_dtype=getattr(torch, dtype)).to(device)
    names = ["q_proj", "v_proj", "k_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    config = LoraConfig(r=16, lora_alpha=32, target_modules=names, bias="none", task_type=None)
    loaded.set_model_for_peft(get_peft_model(loaded.get_model_for_peft(), config))
    loaded.train()
    optimizer = torch.optim.AdamW([p for p in loaded.parameters() if p.requires_grad], lr=1e-4)
    tensors = [{k: torch.tensor(v, device=device) for k, v in batch.items()} for batch in batches]
    kind = torch.device(device).type

    def run(batch: int, update: bool = True):
        begin = time.perf_counter()
        with torch.autocast(kind, torch.bfloat16, enabled=dtype == "bfloat16"):
            seen = torch.ones_like(tensors[batch]["input_ids"])
            loss = loaded(**tensors[batch], attention_mask=seen).loss
        loss.backward()
        if update:
            optimizer.step()
        optimizer.zero_grad()
        if kind == "cuda":
            torch.cuda.synchronize()
        return {"seconds": time.perf_counter() - begin, "loss": loss.item()}

    return run
