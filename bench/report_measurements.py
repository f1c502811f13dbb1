"""Sections of docs/benchmarks.md on what was measured only: planner, executors, codecs."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby

from bench.report_text import (
    NOT_MEASURED,
    Body,
    Document,
    Ratio,
    Row,
    count,
    goal_table,
    listed,
    noise_limits,
    ratio_of,
    seconds,
    significant,
    size,
    span,
    table,
    values,
)
from bench.speed_worker import STOCK, TILED


def planner(document: Document) -> Body:
    """Latency of a plan: alone, under load, and of the search by itself."""
    load, ladders = document.get("load", {}), document.get("search", {}).get("ladders", [])
    goals = document.get("goals", {})
    findings = [*_search_finding(ladders), *_call_finding(document), *_load_finding(load)]
    if goals:
        met = sum(bool(goal.get("met")) for goal in goals.values())
        findings.append(f"{met} of {len(goals)} goals are met")
    blocks = [
        *([f"Asked all the time: {document['request']}."] if document.get("request") else []),
        *_turns_blocks(document.get("in_turns", {})),
        *_load_blocks(load),
        *_search_blocks(document.get("search", {})),
        *([goal_table(goals)] if goals else []),
    ]
    finding = ". ".join(findings) if findings else f"The file has no figures: {NOT_MEASURED}"
    return Body(f"{finding}.", blocks, list(_planner_limits(load)))


def _search_finding(ladders: Sequence[Row]) -> Iterator[str]:
    for row in ladders[:1]:
        core = seconds(row.get("cpu_p50_seconds"))
        yield f"The search over {row.get('tiers')} tiers takes {core} of one core"
    if len(ladders) > 1:
        last = ladders[-1]
        yield f"{count(last.get('tiers'))} tiers take {seconds(last.get('cpu_p50_seconds'))}"


def _call_finding(document: Document) -> Iterator[str]:
    plan = document.get("in_turns", {}).get("server", {}).get("Plan", {})
    if plan:
        yield f"A call takes {seconds(plan.get('p50_seconds'))} in the server"


def _load_finding(load: Document) -> Iterator[str]:
    plan = load.get("Plan", {})
    if plan:
        yield (
            f"{load.get('clients')} clients at {load.get('worker_processes')} worker processes get "
            f"{significant(plan.get('per_second'))} plans a second, "
            f"99 % within {seconds(plan.get('p99_seconds'))}"
        )


def _turns_blocks(turns: Document) -> Iterator[str]:
    rows = [
        (side, method, seconds(figures.get("p50_seconds")), seconds(figures.get("p99_seconds")))
        for side in ("server", "client")
        for method, figures in turns.get(side, {}).items()
    ]
    if rows:
        yield (
            f"One call at a time, {count(turns.get('calls'))} of each kind in turns; `Check` is an "
            "empty call, a client's time includes gRPC:"
        )
        yield table(("seen by", "call", "median", "99 % within"), rows)


def _load_blocks(load: Document) -> Iterator[str]:
    rows = [
        (
            method, significant(figures.get("per_second")), seconds(figures.get("p50_seconds")),
            seconds(figures.get("p99_seconds")), count(figures.get("calls")),
        )
        for method, figures in load.items()
        if isinstance(figures, Mapping)
    ]  # fmt: skip
    if rows:
        yield f"{load.get('clients')} clients at once:"
        yield table(("call", "a second", "median", "99 % within", "calls"), rows)


def _search_blocks(search: Document) -> Iterator[str]:
    rows = [
        (
            count(row.get("tiers")), seconds(row.get("cpu_p50_seconds")),
            seconds(row.get("cpu_p90_seconds")), seconds(row.get("p50_seconds")),
            f"{row['growth']:.1f} x" if row.get("growth") is not None else "",
        )
        for row in search.get("ladders", [])
    ]  # fmt: skip
    if rows:
        heads = ("tiers", "of a core", "90 % within", "by the clock", "of the row above")
        yield f"The search alone, {count(search.get('runs'))} runs:"
        yield table(heads, rows)


def _planner_limits(load: Document) -> Iterator[str]:
    cores = [
        f"{method} {figures['client_cpu_cores']:.2f}"
        for method, figures in load.items()
        if isinstance(figures, Mapping) and figures.get("client_cpu_cores") is not None
    ]
    if cores:
        yield f"Clients share the cores with the server; of the cores they took: {listed(cores)}."
    yield "One model, one card, one request over loopback: no network, no certificates."
    yield "Times by the clock include what else the machine did; times of a core do not."


def speed(document: Document) -> Body:
    """Every executor beside stock training, by model and tokens."""
    rows = speed_cases(document)
    if not rows:
        return Body(f"The file has no cases: {NOT_MEASURED}.")
    findings: list[str] = []
    blocks: list[str] = []
    for name, of_model in by_subject(rows).items():
        findings += list(_speed_findings(name, of_model))
        blocks += _speed_blocks(name, of_model)
    if document.get("goals"):
        blocks.append(goal_table(document["goals"]))
    finding = (
        " ".join(findings) or f"No length has both stock and another: ratios are {NOT_MEASURED}."
    )
    return Body(finding, blocks, list(_speed_limits(document, rows)))


def speed_cases(document: Document) -> list[Row]:
    """The cases that say who took a step of how many tokens."""
    return [row for row in document.get("cases", []) if row.get("executor") and row.get("tokens")]


def by_subject(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Cases by model, layers and dtype."""
    subjects: dict[str, list[Row]] = {}
    for row in rows:
        layers = f", {row['layers']} layers" if row.get("layers") is not None else ""
        name = f"{row.get('model')}{layers}, {row.get('dtype')}"
        subjects.setdefault(name, []).append(row)
    return subjects


def executors_of(rows: Sequence[Row]) -> list[str]:
    """Stock first, then the others in the order they come."""
    return sorted(dict.fromkeys(values(rows, "executor")), key=lambda name: name != STOCK)


def by_tokens(rows: Sequence[Row]) -> dict[int, dict[str, Row]]:
    """Cases by tokens, shortest first, then by executor."""
    ordered = sorted(rows, key=lambda row: row["tokens"])
    return {
        tokens: {str(row["executor"]): row for row in group}
        for tokens, group in groupby(ordered, key=lambda row: int(row["tokens"]))
    }


def time_ratio(cases: Mapping[str, Row], executor: str) -> Ratio | None:
    """Seconds over stock's, of each round, at one length."""
    if STOCK not in cases or executor not in cases:
        return None
    return ratio_of(cases[STOCK], cases[executor], "samples", "step_seconds")


def memory_ratio(cases: Mapping[str, Row], executor: str) -> Ratio | None:
    """Peak bytes over stock's at one length."""
    if STOCK not in cases or executor not in cases:
        return None
    return ratio_of(cases[STOCK], cases[executor], "", "peak_bytes")


def _speed_findings(name: str, rows: Sequence[Row]) -> Iterator[str]:
    lengths = by_tokens(rows)
    for executor in executors_of(rows):
        both = [tokens for tokens, cases in lengths.items() if time_ratio(cases, executor)]
        if executor == STOCK or not both:
            continue
        at = [both[0]] if len(both) == 1 else [both[0], both[-1]]
        shares = [
            f"{time_ratio(lengths[tokens], executor)} of stock's time and "
            f"{memory_ratio(lengths[tokens], executor) or NOT_MEASURED} of its peak memory "
            f"at {count(tokens)} tokens"
            for tokens in at
        ]
        faster = _faster_from({tokens: time_ratio(lengths[tokens], executor) for tokens in both})
        always = f"; faster in every round from {count(faster)} tokens on" if faster else ""
        yield f"{name}: {executor} takes {'; '.join(shares)}{always}."


def _faster_from(ratios: Mapping[int, Ratio | None]) -> int | None:
    """The shortest length from which on every round of every length took less than stock's."""
    first = None
    for tokens, ratio in sorted(ratios.items(), reverse=True):
        if ratio is None or ratio.highest is None or ratio.highest >= 1:
            break
        first = tokens
    return first


def _speed_blocks(name: str, rows: Sequence[Row]) -> Iterator[str]:
    executors = executors_of(rows)
    others = [executor for executor in executors if executor != STOCK]
    heads = ["tokens", *executors, *(f"{other} over stock" for other in others)]
    lengths = by_tokens(rows).items()
    yield f"Seconds of a step, {name}; ratios are of rounds: median (lowest to highest)."
    yield table(heads, [
        [
            count(tokens),
            *(seconds(cases.get(one, {}).get("step_seconds")) for one in executors),
            *(str(time_ratio(cases, other) or NOT_MEASURED) for other in others),
        ]
        for tokens, cases in lengths
    ])  # fmt: skip
    yield f"Peak memory, {name}:"
    yield table(heads, [
        [
            count(tokens),
            *(size(cases.get(one, {}).get("peak_bytes")) for one in executors),
            *(str(memory_ratio(cases, other) or NOT_MEASURED) for other in others),
        ]
        for tokens, cases in lengths
    ])  # fmt: skip


def _speed_limits(document: Document, rows: Sequence[Row]) -> Iterator[str]:
    device = (document.get("machine") or {}).get("device")
    yield (
        f"Measured: {listed(by_subject(rows))}, {span(values(rows, 'tokens'))} tokens"
        f"{f', on the {device.upper()} only' if device == 'cpu' else ''}. "
        "Other shapes have other ratios."
    )
    yield (
        "Stock is transformers with PEFT, sdpa attention and gradient checkpointing; it computes "
        "every token's logits, where streaming computes those of target tokens."
    )
    if TILED in values(rows, "executor"):
        yield (
            "DeepSpeed tiles is stock with DeepSpeed's TiledMLP and TiledFusedLogitsLoss, in tiles "
            "of as many tokens as the model is wide; nothing else of DeepSpeed is in use."
        )
    yield (
        "Peak memory is of tensors, weights included, storage by storage: not of the process. "
        "The optimizer's update is left out of both figures."
    )
    yield from noise_limits(rows)
    for left in document.get("left_out", []):
        yield (
            f"Left out: {left.get('model')} at {count(left.get('tokens'))} tokens, "
            f"{left.get('reason', 'no reason was written')}."
        )


def codecs(document: Document) -> Body:
    """Gradient cosines of lossy layer inputs."""
    rows = [row for row in document.get("cases", []) if row.get("gradient_cosine") is not None]
    if not rows:
        return Body(f"The file has no cases: {NOT_MEASURED}.")
    best = {
        codec: max(row["gradient_cosine"] for row in rows if row.get("codec") == codec)
        for codec in dict.fromkeys(values(rows, "codec"))
    }
    worst = min(rows, key=lambda row: float(row["gradient_cosine"]))
    finding = (
        f"Cosine with the exact gradients, at best: "
        f"{listed(f'{codec} {cosine:.3f}' for codec, cosine in best.items())}. "
        f"Worst: {worst['gradient_cosine']:.3f}, {worst.get('codec')} with attention outputs "
        f"{worst.get('attention_outputs')}."
    )
    lines = [
        (
            str(row.get("codec", "")), str(row.get("attention_outputs", "")),
            count(row.get("tokens")), f"{row['gradient_cosine']:.4f}",
        )
        for row in rows
    ]  # fmt: skip
    heads = ("codec of layer inputs", "attention outputs", "tokens", "gradient cosine")
    return Body(finding, [table(heads, lines)], list(_codec_limits(document)))


def _codec_limits(document: Document) -> Iterator[str]:
    model = document.get("model", "a model whose name is not in the file")
    yield (
        f"One window of text through {model}, adapters as a run begins with: "
        "how a whole run ends with a codec was not measured."
    )
    yield (
        "Codecs are off unless a request allows them, and a run measures its own cosine before "
        "its first step ([ADR 0012](adr/0012-streaming-executor.md))."
    )


def profile(document: Document) -> Body:
    """Seconds of a streaming step by phase and kind of work."""
    cases = document.get("cases", [])
    if not cases:
        return Body(f"The file has no cases: {NOT_MEASURED}.")
    longest = max(cases, key=lambda case: int(case["tokens"]))
    kinds = list(dict.fromkeys(kind for p in longest["phases"].values() for kind in p))
    shares = {
        kind: sum(phase[kind] for phase in longest["phases"].values()) / longest["seconds"]
        for kind in kinds
    }
    largest = sorted(kinds, key=lambda kind: -shares[kind])
    finding = f"Of a step of {count(longest['tokens'])} tokens, " + listed(
        f"{100 * shares[kind]:.0f} % is {kind}" for kind in largest
    )
    rows = [
        (count(case["tokens"]), phase, *(seconds(found[kind]) for kind in kinds))
        for case in cases
        for phase, found in case["phases"].items()
    ]
    limits = [
        f"One model ({listed(dict.fromkeys(case['model'] for case in cases))}) on a CPU, where "
        "nothing overlaps. The profiler itself takes time, most of it in many small operations."
    ]
    return Body(f"{finding}.", [table(("tokens", "phase", *kinds), rows)], limits)


def waiting(document: Document) -> Body:
    """Seconds of a step by how OpenMP's threads wait."""
    cases = document.get("cases", [])
    if not cases:
        return Body(f"The file has no cases: {NOT_MEASURED}.")
    found = {(case["policy"], case["place"]): case for case in cases}
    policies, places = (list(dict.fromkeys(part)) for part in zip(*found, strict=True))
    *others, engine = policies
    ratios = [
        f"{place}, " + listed(
            f"{found[engine, place]['seconds'] / found[other, place]['seconds']:.2f} ({other})"
            for other in others
        )
        for place in places
    ]  # fmt: skip
    finding = f"With {engine}, a step's time over that with others: {'; '.join(ratios)}"
    rows = [
        (policy, *(_spread(found[policy, place]["samples"]) for place in places))
        for policy in policies
    ]
    limits = [
        f"One model ({document['model']}), {count(document['tokens'])} tokens, "
        f"{document['rounds']} rounds in turns: median, least and most."
    ]
    return Body(f"{finding}.", [table(("threads wait awake", *places), rows)], limits)


def pieces(document: Document) -> Body:
    """Steps with attention's backward whole and in pieces."""
    cases = document.get("cases", [])
    if not cases:
        return Body(f"The file has no cases: {NOT_MEASURED}.")
    rows, ratios, apart = [], [], {"losses": 0.0, "gradient norms": 0.0}
    for case in cases:
        whole, cut = case["ways"]["whole"], case["ways"]["in pieces"]
        ratio = cut["seconds"] / whole["seconds"]
        if case["pieces"] > 1:
            ratios.append(ratio)
        for name, key in zip(apart, ("loss", "gradient_norm"), strict=True):
            apart[name] = max(apart[name], abs(cut[key] / whole[key] - 1))
        rows.append(
            (case["model"], str(case["key_value_heads"]), count(case["chunk_tokens"]),
             str(case["pieces"]),
             _spread(whole["samples"]), _spread(cut["samples"]), f"{ratio:.2f}",
             size(whole["peak_bytes"]), size(cut["peak_bytes"]))
        )  # fmt: skip
    shares = f"{min(ratios):.2f} to {max(ratios):.2f}" if ratios else NOT_MEASURED
    finding = f"Cut for {document['threads']} threads, a step's time over that of whole: {shares}"
    head = ("model", "KV heads", "chunk", "pieces", "whole", "in pieces", "ratio",
            "peak whole", "peak in pieces")  # fmt: skip
    limits = [
        f"{count(cases[0]['tokens'])} tokens in fp32, {document['rounds']} rounds in turns: "
        "median, least and most. Of the same step both ways, "
        + listed(f"{name} differ by {most:.1g} of themselves" for name, most in apart.items())
        + " at most.",
        "Where the KV heads are a multiple of the threads nothing is cut.",
    ]
    return Body(f"{finding}.", [table(head, rows)], limits)


def _spread(samples: Sequence[float]) -> str:
    middle = statistics.median(samples)
    return f"{seconds(middle)} ({seconds(min(samples))} to {seconds(max(samples))})"
