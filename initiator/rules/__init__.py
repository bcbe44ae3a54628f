"""The rules of the protocol and of the Linux driver, from both documents."""

from __future__ import annotations

from functools import cache
from types import MappingProxyType
from typing import TYPE_CHECKING

from aoe.common.rules import load_protocol_rules, load_rules, rule_url

if TYPE_CHECKING:
    from aoe.common.rules import Rule, Rules


def load_kernel_rules() -> Rules:
    """Return the K rules, those of the Linux AoE driver and of page lifetime."""
    return load_rules("initiator", "KERNEL.md")


@cache
def load_all_rules() -> Rules:
    """Return all rules: those of the protocol, then those of the kernel."""
    return MappingProxyType({**load_protocol_rules(), **load_kernel_rules()})


def rule_title(number: str) -> str:
    """Return the title of a rule, or "" if there is no such rule."""
    rule = load_all_rules().get(number)
    return rule.title if rule else ""


def rule_record(rule: Rule) -> dict[str, str | None]:
    """Return a rule as plain values, for JSON; a URL that is unknown is null."""
    return {
        "number": rule.number,
        "title": rule.title,
        "statement": rule.statement,
        "source": rule.source,
        "section": rule.section,
        "document": rule.document,
        "url": rule_url(rule) or None,
    }
