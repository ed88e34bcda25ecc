"""What is planted, is it found? Duplicates and evaluation items hidden among news, and how fast they are found.

    python benchmarks/planted.py --json
    python benchmarks/planted.py --only million

Among texts of AG News copies of some are hidden, changed as `kind` says. `recall` is the share that shares a cluster
with its original, or that is left out as an evaluation item, with Wilson's 95 % interval over all seeds; `alike` is
the recall of those copies whose exact Jaccard similarity reaches the threshold, and `unverified` counts rows left out
by MinHash though it does not. `precision` counts everything else that was left out as wrong: a lower bound, for AG
News has duplicates of its own. `speed` runs the semantic search beside semhash, with the same vectors and threshold,
model loading included; `labels` flips labels and looks for them by `confident_labels`; `million` takes short made rows
through exact hashes, MinHash and decontamination, each in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import random
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from _common import spread

from stillhouse.features.static_embeddings import StaticEmbeddings
from stillhouse.records import Example
from stillhouse.selection._text import words
from stillhouse.selection.base import SelectionBench, Selector
from stillhouse.selection.confident_labels import ConfidentLabels
from stillhouse.selection.decontaminate import Decontaminate
from stillhouse.selection.deduplicate import Deduplicate

RATES = (0.02, 0.05, 0.1, 0.2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--news", default="../shared/data/ag_news/pool.jsonl", help="JSONL with a column text")
    parser.add_argument("--model", default="../shared/models/potion-base-4M-int8", help="a folder of model2vec's")
    for name, default in {"rows": 3000, "planted": 300, "seeds": 5, "repeats": 5, "million": 1_000_000}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--only", nargs="+", choices=["recall", "labels", "speed", "million"])
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    parts: dict[str, Callable[[argparse.Namespace], Iterator[dict[str, Any]]]] = {
        "recall": recall,
        "labels": labels,
        "speed": speed,
        "million": million,
    }
    for part in args.only or parts:
        for row in parts[part](args):
            row |= {"cores": os.cpu_count(), "load": round(os.getloadavg()[0], 1)}
            print(json.dumps(row) if args.json else "  ".join(f"{k} {shown(v)}" for k, v in row.items()), flush=True)


def shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def news(path: str) -> list[str]:
    with Path(path).open(encoding="utf-8") as stream:
        return list(dict.fromkeys(json.loads(line)["text"] for line in stream))


# What is planted.


def edited(text: str, rate: float, draw: random.Random, others: Sequence[str]) -> str:
    """Words replaced, left out and put in, one at least."""
    said = text.split()
    for _ in range(max(1, round(rate * len(said)))):
        place, word = draw.randrange(len(said)), [draw.choice(others)]
        gone, new = draw.choice(((1, word), (1, []), (0, word)))
        said[place : place + gone] = new
    return " ".join(said)


def spaced(text: str, draw: random.Random) -> str:
    """The same text in another case, with other white space."""
    return "  ".join(draw.choice((str.upper, str.lower, str))(word) for word in text.split()) + "\n"


def reordered(text: str, draw: random.Random) -> str:
    """The same words in another order, one in ten left out: near in meaning alone."""
    said = [word for word in text.split() if draw.random() > 0.1] or text.split()
    draw.shuffle(said)
    return " ".join(said)


def kinds(draw: random.Random, others: Sequence[str]) -> dict[str, Callable[[str], str]]:
    """Each way in which a copy differs."""
    made: dict[str, Callable[[str], str]] = {"the same text": lambda text: spaced(text, draw)}
    for rate in RATES:
        made[f"{rate:.0%} of words edited"] = lambda text, rate=rate: edited(text, rate, draw, others)
    return made | {"words reordered": lambda text: reordered(text, draw)}


# Whether it is found.


def detectors(args: argparse.Namespace) -> dict[str, Selector]:
    found: dict[str, Selector] = {
        "exact": Deduplicate(),
        "minhash 0.7": Deduplicate(how="minhash"),
        "minhash 0.5": Deduplicate(how="minhash", threshold=0.5),
    }
    if find_spec("model2vec") and Path(args.model).is_dir():
        found["semantic 0.9"] = Deduplicate(how="semantic", features=StaticEmbeddings(model=args.model))
    return found | {"decontaminate": Decontaminate()}


def recall(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A row for each detector and kind, all seeds together."""
    texts = news(args.news)
    tallies: dict[tuple[str, str], list[dict[str, int]]] = {}
    for seed in range(args.seeds):
        draw = random.Random(seed)
        pool = draw.sample(texts, args.rows)
        others = " ".join(draw.sample(texts, 200)).split()
        for kind, change in kinds(draw, others).items():
            originals = draw.sample(range(args.rows), args.planted)
            copies = [change(pool[place]) for place in originals]
            for name, detector in detectors(args).items():
                found = tried(detector, pool, originals, copies)
                tallies.setdefault((name, kind), []).append(found)
    for (name, kind), found in tallies.items():
        total = {key: sum(tally[key] for tally in found) for key in found[0]}
        low, high = wilson(total["found"], total["planted"])
        yield {
            "part": "recall",
            "detector": name,
            "kind": kind,
            "recall": total["found"] / total["planted"],
            "recall_low": low,
            "recall_high": high,
            "alike": total["alike_found"] / total["alike"] if total["alike"] else None,
            "precision": total["found"] / total["left_out"] if total["left_out"] else None,
            "unverified": total["unverified"],
            "planted": total["planted"],
            "rows": args.rows,
            "seeds": args.seeds,
        }


def tried(detector: Selector, pool: Sequence[str], originals: Sequence[int], copies: Sequence[str]) -> dict[str, int]:
    rows = [Example(id=f"{number:06}", text=text) for number, text in enumerate([*pool, *copies])]
    if isinstance(detector, Decontaminate):
        items = [rows[place] for place in originals]
        training = [row for place, row in enumerate(rows) if place not in set(originals)]
        chosen = {row.id for row in detector.select(training, SelectionBench(heldout=items))}
        found = [rows[len(pool) + k].id not in chosen for k in range(len(copies))]
        return tally(found, [True] * len(found), len(training) - len(chosen), 0)
    assert isinstance(detector, Deduplicate)
    selection = detector.choose(rows, SelectionBench())
    clusters = selection.clusters
    assert clusters is not None
    found = [clusters[len(pool) + k] == clusters[place] for k, place in enumerate(originals)]
    bar, alike, unverified = detector.threshold or 0.7, [True] * len(found), 0
    if detector.how == "minhash":
        alike = [jaccard(pool[place], copy) >= bar for place, copy in zip(originals, copies, strict=True)]
        leader = {int(clusters[row]): int(row) for row in selection.rows}
        pairs = [(row, leader[int(cluster)]) for row, cluster in enumerate(clusters) if leader[int(cluster)] != row]
        unverified = sum(jaccard(rows[a].text or "", rows[b].text or "") < bar for a, b in pairs)
    return tally(found, alike, len(rows) - len(selection.rows), unverified)


def tally(found: Sequence[bool], alike: Sequence[bool], left_out: int, unverified: int) -> dict[str, int]:
    return {
        "planted": len(found),
        "found": sum(map(bool, found)),
        "alike": sum(alike),
        "alike_found": sum(bool(a and b) for a, b in zip(found, alike, strict=True)),
        "left_out": left_out,
        "unverified": unverified,
    }


def jaccard(first: str, second: str, length: int = 3) -> float:
    """Of runs of words, as sets of words and no hashes."""
    one, two = (
        {tuple(said[k : k + length]) for k in range(max(1, len(said) - length + 1))}
        for said in (words(first), words(second))
    )
    return len(one & two) / len(one | two)


def wilson(hits: int, count: int, z: float = 1.96) -> tuple[float, float]:
    share, spread_ = hits / count, z * z / count
    middle = share + spread_ / 2
    half = z * math.sqrt(share * (1 - share) / count + spread_ / (4 * count))
    return max(0.0, (middle - half) / (1 + spread_)), min(1.0, (middle + half) / (1 + spread_))


# Whether flipped labels are found.


def labels(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Of rows with a class some are given another one; with none flipped, what is flagged all the same."""
    with Path(args.news).open(encoding="utf-8") as stream:
        rows = [json.loads(line) for line in stream]
    classes = sorted({str(row["label"]) for row in rows})
    for rate in (0.0, 0.05, 0.1, 0.2):
        flagged = planted = hits = 0
        for seed in range(args.seeds):
            draw = random.Random(seed)
            some = draw.sample(rows, args.rows)
            wrong = set(draw.sample(range(args.rows), round(rate * args.rows)))
            given = [
                draw.choice([c for c in classes if c != str(row["label"])]) if place in wrong else str(row["label"])
                for place, row in enumerate(some)
            ]
            examples = [
                Example(id=str(place), prompt=row["text"], completion=label)
                for place, (row, label) in enumerate(zip(some, given, strict=True))
            ]
            kept = set(ConfidentLabels(seed=seed).choose(examples, SelectionBench()).rows.tolist())
            found = set(range(args.rows)) - kept
            flagged, planted, hits = flagged + len(found), planted + len(wrong), hits + len(found & wrong)
        low, high = wilson(hits, planted) if planted else (None, None)
        yield {
            "part": "labels",
            "detector": "confident_labels",
            "flipped": rate,
            "recall": hits / planted if planted else None,
            "recall_low": low,
            "recall_high": high,
            "precision": hits / flagged if planted else None,
            "flagged": flagged / (args.seeds * args.rows),
            "planted": planted,
            "rows": args.rows,
            "seeds": args.seeds,
        }


# How fast.


def speed(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Semantic search beside semhash, one after the other, and MinHash."""
    texts = news(args.news)[:10_000]
    rows = [Example(id=f"{number:06}", text=text) for number, text in enumerate(texts)]
    ways: dict[str, Callable[[], int]] = {"minhash": lambda: left(Deduplicate(how="minhash"), rows)}
    if find_spec("model2vec") and Path(args.model).is_dir():
        meaning = Deduplicate(how="semantic", features=StaticEmbeddings(model=args.model))
        ways["semantic"] = lambda: left(meaning, rows)
        if find_spec("semhash"):
            ways["semhash"] = lambda: semhash(texts, args.model)
    taken: dict[str, list[float]] = {name: [] for name in ways}
    stay: dict[str, int] = {}
    for _ in range(args.repeats):
        for name, way in ways.items():
            began = time.perf_counter()
            stay[name] = way()
            taken[name].append(time.perf_counter() - began)
    base = {"part": "speed", "rows": len(texts), "repeats": args.repeats}
    for name, seconds in taken.items():
        yield {**base, "way": name, "left": stay[name], **spread("seconds", seconds)}
    if "semhash" in taken:
        ratios = [peer / ours for peer, ours in zip(taken["semhash"], taken["semantic"], strict=True)]
        yield {**base, "way": "semhash over semantic", **spread("ratio", ratios)}


def left(selector: Selector, rows: Sequence[Example]) -> int:
    return sum(1 for _ in selector.select(rows))


def semhash(texts: list[str], model: str) -> int:
    from model2vec import StaticModel
    from semhash import SemHash

    found = SemHash.from_records(texts, model=StaticModel.from_pretrained(model))
    return len(found.self_deduplicate(threshold=0.9).selected)


class Made(Sequence[Example]):
    """Short rows made when looked at: one in ten the same as an earlier one, one in ten with a word changed."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, place: Any) -> Any:
        if not 0 <= place < self.count:
            raise IndexError(place)
        kind = place % 10
        draw = random.Random(place - kind if kind < 3 else place)
        said = [f"w{word}" for word in draw.choices(range(50_000), k=24)]
        if kind == 2:
            said[12] = "changed"
        return Example(id=f"{place:08}", text=" ".join(said))


def million(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Each way in a process of its own."""
    for how, selector in {
        "exact": Deduplicate(),
        "minhash": Deduplicate(how="minhash"),
        "decontaminate": Decontaminate(),
    }.items():
        context = multiprocessing.get_context("spawn")
        here, there = context.Pipe()
        process = context.Process(target=large, args=(replace(selector), args.million, there))
        process.start()
        yield {"part": "million", "how": how, "rows": args.million, **here.recv()}
        process.join()


def large(selector: Selector, count: int, pipe: Any) -> None:
    held = [replace(row, id=f"held-{row.id}") for row in Made(1000)]  # each stands in the training data as well
    bench = SelectionBench(heldout=held if isinstance(selector, Decontaminate) else ())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    began, worked = time.perf_counter(), time.process_time()
    chosen = selector.choose(Made(count), bench)
    pipe.send(
        {
            "seconds": round(time.perf_counter() - began, 1),
            "cpu_seconds": round(time.process_time() - worked, 1),
            "left": len(chosen.rows),
            "planted": len(held) if bench.heldout else count // 10 * (1 + (getattr(selector, "how", "") == "minhash")),
            "before_mb": round(before),
            "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
            "notes": dict(bench.notes),
        }
    )


if __name__ == "__main__":
    main()
