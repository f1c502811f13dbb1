"""The ladder: exact rows, and custom tiers from a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.planner.ladder import LadderFileError, Tier, load_ladder

LADDER = [
    # tier, context, target, rank, multiple, lines of code, reference bytes
    (1, 4096, 512, 48, 16, 1024, 4_000_000_000),
    (2, 8192, 2048, 32, 32, 2048, 6_000_000_000),
    (3, 16384, 2048, 24, 64, 4096, 6_000_000_000),
    (4, 32768, 4096, 12, 128, 8192, 8_000_000_000),
    (5, 57344, 7168, 8, 256, 14336, 12_000_000_000),
    (6, 131072, 16384, 8, 512, 32768, 16_000_000_000),
    (7, 262144, 32768, 6, 1024, 65536, 20_000_000_000),
    (8, 524288, 65536, 4, 2048, 131072, 8_000_000_000),
    (9, 1048576, 131072, 4, 4096, 262144, 12_000_000_000),
    (10, 2097152, 262144, 3, 8192, 524288, 24_000_000_000),
    (11, 4194304, 524288, 2, 16384, 1048576, 24_000_000_000),
]


def test_the_eleven_tiers_are_exact() -> None:
    rows = [
        (
            tier.tier,
            tier.context_tokens,
            tier.target_tokens,
            tier.lora_rank,
            tier.context_multiple,
            tier.lines_of_code,
            tier.reference_vram_bytes,
        )
        for tier in load_ladder()
    ]
    assert rows == LADDER
    assert not any(tier.custom for tier in load_ladder())


def overlay(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "tiers.yaml"
    file.write_text(text)
    return file


def test_a_file_adds_tiers_in_order(tmp_path: Path) -> None:
    file = overlay(
        tmp_path,
        "tiers:\n"
        "  - {tier: 13, context_tokens: 300, target_tokens: 1, lora_rank: 1}\n"
        "  - {tier: 12, context_tokens: 8388608, target_tokens: 1048576, lora_rank: 2}\n",
    )
    twelve, thirteen = load_ladder(file)[11:]
    assert twelve == Tier(12, 8388608, 1048576, 2, custom=True)
    assert twelve.context_multiple == 32768
    assert twelve.tokens == 9437184
    assert thirteen.context_multiple == 1


GOOD = "tier: 12, context_tokens: 4096, target_tokens: 8, lora_rank: 2"


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("{", ["cannot be read as YAML"]),
        ("[]", ["tiers", "is missing"]),
        ("tiers: []", ["tiers", "is missing"]),
        ("tiers: [5]", ["tiers[0]", "not a mapping"]),
        ("tiers: [{tier: 12}]", ["tiers[0].context_tokens", "is missing"]),
        (f"tiers: [{{{GOOD}, speed: 3}}]", ["tiers[0].speed", "is unknown"]),
        (f"tiers: [{{{GOOD.replace('12', '3')}}}]", ["tiers[0].tier", "has already"]),
        (f"tiers: [{{{GOOD}}}, {{{GOOD}}}]", ["tiers[1].tier", "has already"]),
        (f"tiers: [{{{GOOD.replace('4096', '-1')}}}]", ["tiers[0].context_tokens", "-1"]),
        (f"tiers: [{{{GOOD.replace('4096', '1e3')}}}]", ["tiers[0].context_tokens", "1e3"]),
        (f"tiers: [{{{GOOD.replace('rank: 2', 'rank: true')}}}]", ["tiers[0].lora_rank", "True"]),
        (f"tiers: [{{{GOOD.replace('4096', '2000000000')}}}]", ["context_tokens", "1073741824"]),
    ],
)
def test_a_wrong_file_is_refused_by_name(tmp_path: Path, text: str, names: list[str]) -> None:
    file = overlay(tmp_path, text)
    with pytest.raises(LadderFileError) as refusal:
        load_ladder(file)
    for name in [str(file), *names]:
        assert name in str(refusal.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(LadderFileError, match=r"nowhere\.yaml"):
        load_ladder(tmp_path / "nowhere.yaml")
