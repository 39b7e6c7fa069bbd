"""What each setting of the online code changes on wiki-mini: code lengths by size, with seeds, files and baselines.

    python -m tests.benchmarks.online_codes FOLDER [--sizes 300000 1200000 all] [--seeds 3 1 1] [--send 300000]

trains every setting at every size (ideal lengths, by the ledger), and at the sizes of --send also writes the file with
`codelength send`, receives it in a fresh process and compares SHA-256. What is in FOLDER already is not done again, so
the same command goes on. Two jobs run at a time, with one thread each. Prints a Markdown table, and FOLDER/codes.csv.
"""

import argparse
import csv
import hashlib
import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from eval.offline.baselines import measure
from harness.config.run import RunConfig, load_config
from harness.corpus.prepared import open_data, prepare_data
from harness.data.order import Sequences
from harness.run.ledger import read_online_code
from harness.units import bits_from_bytes, bits_per_byte

ROOT = Path(__file__).parents[2]
BLOCKS = "train.retrain_at=[0.0625,0.125,0.25,0.5]"
BEST = "configs/wiki-mini-online.yaml"
ONE_RATE = ("optimizer.embedding_factor=1", "optimizer.head_factor=1", "optimizer.vectors_factor=1")
ONCE = ("train.replays=0", "train.replays_until=0", "online.ema=0")
PLAIN = ("model.smear=0", *ONE_RATE, *ONCE)
# One size of steps and its rates: what everything but the schedule was measured with.
FULL = (
    "train.batch_sequences=8",
    "train.batch_schedule=[]",
    "optimizer.learning_rate=3e-3",
    "optimizer.muon_learning_rate=0.01",
    "optimizer.muon_momentum=0.95",
    "optimizer.warmup_tokens=122880",
    *PLAIN,
)
EARLY = (*FULL[:4], "optimizer.muon_momentum=0.9", "optimizer.warmup_tokens=2000", *PLAIN)
OF_1024, OF_512, OF_256, OF_128 = (f"train.batch_schedule=[[0,{tokens}]]" for tokens in (1024, 512, 256, 128))
GROWING = "train.batch_schedule=[[0,128],[100000,512],[1000000,1024]]"
SETTINGS = {
    "plain: the transformer, once through the text": FULL,
    "in the order of the text": (*FULL, "train.order=sequential"),
    "two replays a batch": (*FULL, "train.replays=2"),
    "two replays a batch, as streams": (*FULL, "train.replays=2", "train.replay=streams", "train.order=streams"),
    "block code, retrained at 1/16, 1/8, 1/4, 1/2": (*FULL, BLOCKS, "train.retrain_epochs=2"),
    "running means of the weights": (*FULL, "online.ema=0.98"),
    "temperature": (*FULL, "online.calibrate=true"),
    "self-switch, 4 states": (*FULL, "online.checkpoints=4", "online.checkpoint_steps=8"),
    "switch with a smaller transformer": (*FULL, "online.models=[64x2x1]"),
    "switch with uniform and frequencies": (*FULL, "online.experts=[uniform,frequencies]"),
    "switch with the n-gram model": (*FULL, "online.experts=[uniform,ngram]"),
    "mixing network with the n-gram model": (*FULL, "online.experts=[uniform,ngram,network]"),
    "all that helps (" + BEST + ")": (BEST,),
    "steps: 4,096 tokens, warm-up of 2,000 tokens, momentum 0.9": EARLY,
    "steps: 1,024 tokens": (OF_1024, *PLAIN),
    "steps: 512 tokens, momentum 0.95": (OF_512, *PLAIN, "optimizer.muon_momentum=0.95"),
    "steps: 512 tokens": (OF_512, *PLAIN),
    "steps: 512 tokens, momentum 0.8": (OF_512, *PLAIN, "optimizer.muon_momentum=0.8"),
    "steps: 256 tokens": (OF_256, *PLAIN),
    "steps: 128 tokens": (OF_128, *PLAIN),
    "steps: 512 tokens, smeared by one symbol": (OF_512, "model.smear=1", *ONE_RATE, *ONCE),
    "steps: 512 tokens, smeared by three": (OF_512, *ONE_RATE, *ONCE),
    "steps: 512 tokens, smeared by three at 16 times the rate": (OF_512, *ONE_RATE[:2], *ONCE),
    "steps: 512 tokens, and embedding and head at 3 and 2 times": (OF_512, *ONCE),
    "steps: 128, 512 from 100 kB on, 1,024 from 1 MB on": (GROWING, *PLAIN),
    "steps: 256, then the same, with smears and rates of their own": ONCE,
    "steps: and running means": ONCE[:1],
    "steps: and replays of the beginning (configs/wiki-mini.yaml)": (),
}
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def main() -> None:
    """Do what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sizes", nargs="+", default=["300000", "1200000", "all"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[3, 1, 1], help="for each size")
    parser.add_argument("--send", nargs="*", default=["300000"], help="sizes to send and receive")
    parser.add_argument("--only", nargs="*", help="words of the settings to work on")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    chosen = [name for name in SETTINGS if not options.only or any(word in name for word in options.only)]
    jobs = []
    for size, seeds in zip(options.sizes, options.seeds, strict=True):
        prepare_data(load_config(*arguments(options.folder, chosen[0], size, 0)))
        jobs += [(train, name, size, seed) for seed in range(seeds) for name in chosen]
        jobs += [(send, name, size, 0) for name in chosen if size in options.send]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda job: job[0](options.folder, *job[1:]), jobs))
    report(options.folder, options.sizes, options.seeds)


def arguments(folder: Path, name: str, size: str, seed: int) -> tuple[str, list[str]]:
    """Configuration and settings of a run."""
    settings = list(SETTINGS[name])
    config = settings.pop(0) if settings and settings[0].endswith(".yaml") else "configs/wiki-mini.yaml"
    key = hashlib.sha256(" ".join(SETTINGS[name]).encode()).hexdigest()[:8]
    subset = [] if size == "all" else [f"corpus.subset_bytes={size}"]
    run = [f"name={size}-{key}-{seed}", f"seed={seed}", f"runs_dir={folder}", "train.log_every_steps=100"]
    return str(ROOT / config), [*settings, *subset, *run]


def codelength(*arguments: str) -> str:
    """A command of the project in a process of its own."""
    command = [sys.executable, "-m", "launch", *arguments]
    return subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, check=True, stdout=subprocess.PIPE, text=True).stdout


def train(folder: Path, name: str, size: str, seed: int) -> None:
    """A run and the minutes of one core that it took (whatever else the machine did meanwhile), unless it is there."""
    config, settings = arguments(folder, name, size, seed)
    run_dir = load_config(config, settings).run_dir
    if (run_dir / "minutes").exists():
        return
    command = [sys.executable, "-m", "launch", "train", config, *settings]
    process = subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    (run_dir / "minutes").write_text(str((usage.ru_utime + usage.ru_stime) / 60))
    print(size, seed, name, file=sys.stderr, flush=True)


def send(folder: Path, name: str, size: str, seed: int) -> None:
    """A file, received in a fresh process, unless that is done."""
    config, settings = arguments(folder, name, size, seed)
    file = load_config(config, settings).run_dir.with_suffix(".clo")
    if file.with_suffix(".json").exists():
        return
    sent = json.loads(codelength("send", config, *settings, "-o", str(file), "--json", "--quiet", "--force"))
    text = file.with_suffix(".txt")
    received = json.loads(codelength("receive", str(file), "-o", str(text), "--json", "--quiet", "--force"))
    assert hashlib.sha256(text.read_bytes()).hexdigest() == sent["sha256"] == received["sha256"]
    text.unlink()
    file.with_suffix(".json").write_text(json.dumps({"sent": sent, "received": received}))
    print(size, "received", name, file=sys.stderr, flush=True)


def report(folder: Path, sizes: list[str], seeds: list[int]) -> None:
    """The table of what there is, and every number as CSV."""
    rows, header = [], ["code"]
    for size, count in zip(sizes, seeds, strict=True):
        spread = f" ± sd of {count}" if count > 1 else ""
        header += [f"{size} bytes, bits/byte{spread}", "minutes", "file, bits/byte"]
    lines = [f"| {' | '.join(header)} |", "| :--- |" + " ---: |" * (len(header) - 1)]
    for name in SETTINGS:
        cells = [name]
        for size, count in zip(sizes, seeds, strict=True):
            records = [record for seed in range(count) if (record := measured(folder, name, size, seed))]
            rows += records
            cells += cells_of(records)
        lines.append(f"| {' | '.join(cells)} |")
    baselines = [baseline_rates(load_config(*arguments(folder, next(iter(SETTINGS)), size, 0))) for size in sizes]
    for baseline in baselines[0]:
        lines.append(
            f"| {baseline} |" + "".join(f" {rates[baseline]:.3f} | | {rates[baseline]:.3f} |" for rates in baselines)
        )
    print("\n".join(lines))
    with (folder / "codes.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def measured(folder: Path, name: str, size: str, seed: int) -> dict | None:
    """What is known of a run; None where it is not done."""
    config = load_config(*arguments(folder, name, size, seed))
    if not (config.run_dir / "minutes").exists():
        return None
    shard = open_data(config).train
    code = read_online_code(config.run_dir, Sequences(shard, config.model.context).num_sequences, shard.num_tokens)
    told = config.run_dir.with_suffix(".json")
    both = json.loads(told.read_text()) if told.exists() else None
    return {
        "setting": name,
        "bytes": code.raw_bytes,
        "seed": seed,
        "ideal_bits": code.ideal_bits,
        "ideal_bits_per_byte": code.bits_per_byte,
        "aulc_bits": code.aulc_bits,
        "train_minutes": float((config.run_dir / "minutes").read_text()),
        "file_bytes": both["sent"]["file_bytes"] if both else None,
        **{
            f"{end}_{what}": both[done]["costs"][what] if both else None
            for end, done in (("send", "sent"), ("receive", "received"))
            for what in ("seconds", "learning_seconds", "memory_bytes")
        },
    }


def cells_of(records: list[dict]) -> list[str]:
    """Bits/byte with their spread, minutes of training, and the file."""
    if not records:
        return ["", "", ""]
    rates = [record["ideal_bits_per_byte"] for record in records]
    spread = f" ± {statistics.stdev(rates):.3f}" if len(rates) > 1 else ""
    minutes = statistics.mean(record["train_minutes"] for record in records)
    sent = [bits_per_byte(bits_from_bytes(r["file_bytes"]), r["bytes"]) for r in records if r["file_bytes"]]
    return [f"{statistics.mean(rates):.3f}{spread}", f"{minutes:.1f}", f"{sent[0]:.3f}" if sent else ""]


def baseline_rates(config: RunConfig) -> dict[str, float]:
    """Bits per byte of whole-file compressors on the same bytes."""
    data = open_data(config)
    names = {"xz -9e": "lzma2_whole", "zstd -22 --long": "zstd_whole", "bzip2 -9": "bz2_whole", "PPMd": "ppmd_whole"}
    names |= {"bzip3": "bzip3_whole", "zpaq -m5": "zpaq_whole"}
    sizes = measure(data.tokenizer.decode(data.train.tokens), names=list(names.values()))
    return {
        program: bits_per_byte(bits_from_bytes(sizes[name]), data.train.raw_bytes)
        for program, name in names.items()
        if name in sizes
    }


if __name__ == "__main__":
    main()
