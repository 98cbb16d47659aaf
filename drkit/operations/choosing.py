"""From the words on a command line to policies, rules and identities."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from drkit.errors import ConfigError
from drkit.keys import KeyFile, Passphrase, load_identities
from drkit.operations import Workplace
from drkit.policy import BackupRule, DrillRule, Policy
from drkit.site import policy_named
from drkit.validation import refuse
from drkit.words import did_you_mean


def find_policy(workplace: Workplace, name: str) -> Policy:
    """Return a policy by name; raise ConfigError naming the nearest one, or what is wrong with its file."""
    return workplace.policies[name] if name in workplace.policies else policy_named(workplace.site, name)


def all_policies(workplace: Workplace) -> list[Policy]:
    """Return every policy; raise ConfigError when the file of any has problems, because then not all are known."""
    if workplace.policy_problems:
        raise refuse(workplace.policy_problems)
    return list(workplace.policies.values())


def find_rule(policy: Policy, method: str | None) -> BackupRule:
    """Return the policy's rule for a method, or its first one; raise ConfigError when there is none."""
    rule = policy.backups[0] if method is None else policy.rule(method)
    if rule is None:
        has = ", ".join(rule.method for rule in policy.backups)
        raise ConfigError(
            f"policy {policy.policy} has no backup of method {method}; it has {has}",
            hints=[f"drkit backup {policy.policy} --method {policy.backups[0].method}"],
        )
    return rule


def identities_in_reach(workplace: Workplace, given: Sequence[Path], passphrase: Passphrase | None) -> list[KeyFile]:
    """Read the identities given by hand, or else the site's: a site's that is elsewhere is then not asked for."""
    return load_identities(given or workplace.site.keys.identities, passphrase)


def find_drill(policy: Policy, name: str | None, level: str | None) -> DrillRule:
    """Return the policy's drill of that name, or its first, or the default one; ``level`` overrides its level."""
    rule = policy.drills[0] if policy.drills and name is None else None
    if name is not None:
        rule = next((rule for rule in policy.drills if rule.name == name), None)
        if rule is None:
            names = [rule.name for rule in policy.drills]
            raise ConfigError(
                f'policy {policy.policy} has no drill "{name}"{did_you_mean(name, names)}',
                details=[f"it has {', '.join(names)}" if names else "it has none"],
                hints=[f"drkit drill {policy.policy} --name {names[0]}" if names else f"drkit drill {policy.policy}"],
            )
    rule = rule or DrillRule(name="by-hand")
    return rule.model_copy(update={"level": level}) if level else rule
