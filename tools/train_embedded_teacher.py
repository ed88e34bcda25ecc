"""Train the small arithmetic teacher that ships with Stillhouse, from nothing but the built-in generator.

One command makes the tokenizer, trains the model on an endless stream of fresh train-split problems, saves both in half
precision, evaluates the saved folder on held-out problems and writes the model card::

    python tools/train_embedded_teacher.py --out src/stillhouse/assets/teacher --scratch /path/to/scratch

The run is fixed by ``--seed`` and ``--steps``, needs about half an hour on two processor cores, and resumes from its
scratch folder when it was interrupted.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from stillhouse.data.arithmetic import Problem, generate
from stillhouse.training.muon import Muon

SPECIALS = ["<pad>", "<bos>", "<eos>", "<user>", "<assistant>"]
# operators with their spaces are one token, every digit is its own token
PIECES = r" [+\-*/=] | #### | ?[A-Za-z]+|\d| ?[^\sA-Za-z\d]+|\s+"
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}<user>{{ message['content'] }}"
    "{% elif message['role'] == 'assistant' %}<assistant>"
    "{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}"
    "{% else %}{{ raise_exception('this model knows the roles user and assistant only') }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
EVAL_SEED = 424242
STREAM_SEED = 1_000_000  # the seeds of the training stream start here, far from those of the evaluations
POOL = 2048  # problems sorted by length together, so that a batch holds little padding


def build_tokenizer(seed: int, vocab: int) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(PIECES), behavior="isolated")
    bytewise = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, bytewise])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=vocab, special_tokens=SPECIALS, initial_alphabet=alphabet)
    tokenizer.train_from_iterator((p.question + " " + p.solution for p in generate(20_000, seed=seed)), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        additional_special_tokens=["<user>", "<assistant>"],
        chat_template=TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=384,
        padding_side="left",
    )


def build_model(args: argparse.Namespace, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    torch.manual_seed(args.seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=args.hidden,
        num_hidden_layers=args.layers,
        num_attention_heads=args.hidden // 32,
        num_key_value_heads=args.hidden // 64,
        intermediate_size=2 * args.hidden,
        max_position_embeddings=384,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return LlamaForCausalLM(config)


def encode(tokenizer: PreTrainedTokenizerFast, problems: list[Problem]) -> list[tuple[list[int], int]]:
    """Token ids of each problem in the chat form, and how many of them are the prompt."""
    prompts = tokenizer([f"<bos><user>{p.question}<assistant>" for p in problems]).input_ids
    answers = tokenizer([f"{p.solution}<eos>" for p in problems]).input_ids
    return [(prompt + answer, len(prompt)) for prompt, answer in zip(prompts, answers, strict=True)]


def pool_steps(progress: float) -> tuple[int, int]:
    """Steps of the problems at this progress (0 to 1): short ones first, the target mix in the last third."""
    return (1, 2) if progress < 0.1 else (1, 4) if progress < 0.65 else (2, 4)


def batches(args: argparse.Namespace, tokenizer: PreTrainedTokenizerFast, start: int) -> Iterator[tuple]:
    """Endless (ids, targets) batches from ``start``, each (rows, longest); -100 marks positions without a loss."""
    per_pool = POOL // args.batch
    index, skip = divmod(start, per_pool)
    while True:
        seed = STREAM_SEED * (args.seed + 1) + index
        problems = list(generate(POOL, seed=seed, steps=pool_steps(index * per_pool / args.steps)))
        rows = sorted(encode(tokenizer, problems), key=lambda row: len(row[0]))
        generator = torch.Generator().manual_seed(seed)
        for position in torch.randperm(per_pool, generator=generator).tolist()[skip:]:
            yield collate(rows[position * args.batch : (position + 1) * args.batch], tokenizer.pad_token_id)
        index, skip = index + 1, 0


def collate(rows: list[tuple[list[int], int]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    longest = max(len(ids) for ids, _ in rows)
    ids = torch.full((len(rows), longest), pad)
    targets = torch.full((len(rows), longest), -100)
    for index, (row, prompt) in enumerate(rows):
        ids[index, : len(row)] = torch.tensor(row)
        targets[index, prompt - 1 : len(row) - 1] = torch.tensor(row[prompt:])
    return ids, targets


def build_optimizer(model: LlamaForCausalLM, args: argparse.Namespace) -> Muon:
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    return Muon(matrices, others, lr=args.lr, weight_decay=0.01)


def rate(step: int, args: argparse.Namespace) -> float:
    """Learning rate: a short warm-up, then a cosine to zero."""
    warm = min(1.0, (step + 1) / 100)
    return args.lr * warm * 0.5 * (1 + math.cos(math.pi * step / args.steps))


@torch.no_grad()
def accuracy(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, problems: list[Problem]) -> dict[int, list]:
    """Whether the greedy answer to each problem is right, grouped by its number of steps."""
    marks: dict[int, list[bool]] = defaultdict(list)
    ordered = sorted(problems, key=lambda p: len(p.question))
    for start in range(0, len(ordered), 128):
        part = ordered[start : start + 128]
        inputs = tokenizer([f"<bos><user>{p.question}<assistant>" for p in part], padding=True, return_tensors="pt")
        inputs.pop("token_type_ids", None)
        settings = {"do_sample": False, "max_new_tokens": 160, "pad_token_id": tokenizer.pad_token_id}
        output = model.generate(**inputs, **settings)  # ty: ignore[invalid-argument-type]
        texts = tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        for problem, text in zip(part, texts, strict=True):
            marks[len(problem.steps)].append(text.rpartition("#### ")[2] == str(problem.answer))
    return marks


def summary(marks: dict[int, list]) -> dict[str, float]:
    every = [mark for part in marks.values() for mark in part]
    mean = sum(every) / len(every)
    result = {"accuracy": mean, "stderr": math.sqrt(mean * (1 - mean) / len(every)), "n": len(every)}
    return result | {f"steps_{n}": sum(part) / len(part) for n, part in sorted(marks.items())}


def save_checkpoint(path: Path, model: LlamaForCausalLM, optim: Muon, step: int, seconds: float, tokens: int) -> None:
    state = {"model": model.state_dict(), "optim": optim.state_dict()}
    torch.save(state | {"step": step, "seconds": seconds, "tokens": tokens}, path.with_suffix(".part"))
    path.with_suffix(".part").replace(path)


def train(args: argparse.Namespace, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> dict[str, float]:
    optim, checkpoint = build_optimizer(model, args), args.scratch / "checkpoint.pt"
    step, seconds, tokens, running = 0, 0.0, 0, 0.0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        optim.load_state_dict(state["optim"])
        step, seconds, tokens = state["step"], state["seconds"], state["tokens"]
    stream, started = batches(args, tokenizer, step), time.monotonic() - seconds
    while step < args.steps:
        ids, targets = next(stream)
        places = (targets.flatten() != -100).nonzero().squeeze(1)
        # right padding: causal attention already keeps real positions from seeing it
        hidden = model.model(input_ids=ids).last_hidden_state.flatten(0, 1).index_select(0, places)
        loss = torch.nn.functional.cross_entropy(model.lm_head(hidden), targets.flatten()[places])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optim.param_groups:
            group["lr"] = rate(step, args)
        optim.step()
        optim.zero_grad()
        step, tokens = step + 1, tokens + ids.numel()
        running = loss.item() if running == 0 else 0.95 * running + 0.05 * loss.item()
        seconds = time.monotonic() - started
        if step % 50 == 0:
            print(f"step {step} loss {running:.4f} tokens {tokens} seconds {seconds:.0f}", flush=True)
        if step % args.every == 0 or step == args.steps:
            save_checkpoint(checkpoint, model, optim, step, seconds, tokens)
            for split in ("heldout", "train"):
                marks = accuracy(model, tokenizer, list(generate(args.probe, seed=EVAL_SEED, split=split)))
                print(f"step {step} {split} {json.dumps(summary(marks))}", flush=True)
    return {"minutes": seconds / 60, "tokens": tokens, "problems": args.steps * args.batch}


def save(args: argparse.Namespace, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    args.out.mkdir(parents=True, exist_ok=True)
    half = LlamaForCausalLM(model.config).to(torch.bfloat16)
    half.load_state_dict(model.state_dict())
    half.generation_config.max_new_tokens = 160
    half.save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)
    (args.out / "model.safetensors").chmod(0o644)  # it is written readable by its owner alone


def evaluate(args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Greedy accuracy of the saved folder, read back as float32, on both splits."""
    model = LlamaForCausalLM.from_pretrained(args.out, dtype=torch.float32)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(args.out)
    result: dict[str, dict[str, float]] = {}
    for split in ("heldout", "train"):
        problems = list(generate(args.final, seed=EVAL_SEED + 1, split=split))
        result[split] = summary(accuracy(model, tokenizer, problems))
        print(f"final {split} {json.dumps(result[split])}", flush=True)
    return result


def write_card(args: argparse.Namespace, parameters: int, cost: dict[str, float]) -> None:
    lines = []
    for split, numbers in evaluate(args).items():
        shares = " | ".join(f"{numbers.get(f'steps_{n}', math.nan):.1%}" for n in (2, 3, 4))
        lines.append(f"| {split} | {numbers['n']} | {numbers['accuracy']:.1%} | {numbers['stderr']:.1%} | {shares} |")
    template = Path(__file__).with_name("embedded_teacher_card.md").read_text(encoding="utf-8")
    text = template.format(**vars(args), **cost, parameters=parameters, eval_seed=EVAL_SEED + 1, table="\n".join(lines))
    (args.out / "README.md").write_text(text, encoding="utf-8")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("src/stillhouse/assets/teacher"))
    parser.add_argument("--scratch", type=Path, required=True, help="folder for the checkpoint of the run")
    parser.add_argument("--steps", type=int, default=5000, help="optimiser steps")
    parser.add_argument("--batch", type=int, default=32, help="problems a step")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--lr", type=float, default=0.003)
    parser.add_argument("--hidden", type=int, default=192)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--every", type=int, default=400, help="steps between checkpoints and probes")
    parser.add_argument("--probe", type=int, default=200, help="problems in a probe of each split")
    parser.add_argument("--final", type=int, default=2000, help="problems in the final evaluation of each split")
    parser.add_argument("--save-only", action="store_true", help="save the newest checkpoint and stop")
    return parser.parse_args()


def main() -> None:
    args = parse()
    torch.set_num_threads(args.threads)
    args.scratch.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer(args.seed, 1024)
    model = build_model(args, tokenizer)
    parameters = sum(p.numel() for p in model.parameters())
    print(f"parameters {parameters}", flush=True)
    if args.save_only:
        model.load_state_dict(torch.load(args.scratch / "checkpoint.pt", weights_only=True)["model"])
        save(args, model, tokenizer)
        return
    cost = train(args, model, tokenizer)
    save(args, model, tokenizer)
    write_card(args, parameters, cost)


if __name__ == "__main__":
    main()
