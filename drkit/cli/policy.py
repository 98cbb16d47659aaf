"""``drkit policy``: check, show and describe policies."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from drkit.cli import common_options, output_of, site_option

if TYPE_CHECKING:
    from drkit.policy import Policy
    from drkit.site import Site


@click.group()
@common_options
def policy() -> None:
    """Check, show and describe policies."""


@policy.command()
@click.argument("files", metavar="[FILE]...", nargs=-1, type=click.Path(path_type=Path))
@common_options
@click.pass_context
def check(ctx: click.Context, files: Sequence[Path]) -> None:
    """Check the site and the policies in FILE..., or all of the site's.

    Every problem is named at once, with file, line and column. No database, store or secret is touched.
    Exit codes: 0 all right; 3 there are problems.
    """
    from drkit.cli.output import table
    from drkit.documents import shown_path
    from drkit.site import check_files, load_policies

    site = _site(ctx)
    policies = check_files(files, site) if files else load_policies(site)
    document = {"site": str(site.path), "policies": [_summary(item) for item in policies.values()]}
    rows = [
        [item.policy, "ok", item.target.engine, _methods(item), shown_path(item.path)] for item in policies.values()
    ]
    text = table(["POLICY", "", "ENGINE", "METHODS", "FILE"], rows) if rows else _nothing(site)
    output_of(ctx).result("policy-check", document, text)


@policy.command()
@click.argument("name")
@common_options
@click.pass_context
def show(ctx: click.Context, name: str) -> None:
    """Show policy NAME with every value in effect, defaults included; secrets stay references.

    Exit codes: 0 shown; 3 there is no such policy, or its file has problems.
    """
    from drkit.documents import shown_path
    from drkit.policy import effective
    from drkit.site import policy_named

    found = policy_named(_site(ctx), name)
    values = effective(found)
    text = f"# {shown_path(found.path)}, with defaults\n{_yaml(values)}"
    output_of(ctx).result("policy", {"file": str(found.path), "policy": values}, text)


@policy.command()
@click.argument("kind", type=click.Choice(["policy", "site"]), default="policy")
@common_options
@click.pass_context
def schema(ctx: click.Context, kind: str) -> None:
    """Print the JSON Schema of policies, or of the site file, for editors.

    A policy names it in its first line: # yaml-language-server: $schema=policy.schema.json
    """
    from drkit.policy import Policy
    from drkit.schema import schema_of
    from drkit.site import Site

    document = schema_of(Policy if kind == "policy" else Site)
    output_of(ctx).result(
        "policy-schema", {"json_schema": document}, json.dumps(document, indent=2, ensure_ascii=False)
    )


def _site(ctx: click.Context) -> Site:
    from drkit.site import load_site

    return load_site(site_option(ctx), os.environ, Path.cwd())


def _methods(item: Policy) -> str:
    return ", ".join(dict.fromkeys(rule.method for rule in item.backups))


def _summary(item: Policy) -> dict[str, Any]:
    return {
        "policy": item.policy,
        "file": str(item.path),
        "engine": item.target.engine,
        "methods": list(dict.fromkeys(rule.method for rule in item.backups)),
        "stores": list(item.stores),
    }


def _nothing(site: Site) -> str:
    from drkit.documents import shown_path

    return f"there is no policy yet in {shown_path(site.policies_folder)}"


def _yaml(values: Mapping[str, Any]) -> str:
    import io

    from ruamel.yaml import YAML

    yaml = YAML()
    yaml.width = 110
    stream = io.StringIO()
    yaml.dump(dict(values), stream)
    return stream.getvalue().rstrip("\n")
