"""The site: one installation, described by drkit.yaml, and the policies in its folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field, PrivateAttr, ValidationInfo

from drkit.credentials import check_reference, has_password, is_reference, mask_url, scheme_of
from drkit.documents import SourceDocument, read_document, shown_path
from drkit.errors import ConfigError, Problem
from drkit.policy import Policy
from drkit.policy_cache import PolicyCache
from drkit.policy_fields import Duration, Name, write_duration
from drkit.policy_notify import Notify
from drkit.policy_rules import cross_checks
from drkit.policy_verify import VerifyRule
from drkit.site_file import DEFAULT_CATALOG, SITE_FILE, find_site
from drkit.site_metrics import Metrics
from drkit.site_scheduler import SchedulerConfig
from drkit.validation import Flag, Section, Text, refuse, validate
from drkit.words import did_you_mean

_LONGEST_LOCK = timedelta(days=3660)  # ten years: a slip beyond that would outlive whoever made it
_STORE_SCHEMES = ("file", "s3", "memory")
_S3_ONLY = (
    "region",
    "endpoint",
    "object_lock",
    "lock_for",
    "lock_at_most",
    "path_style",
    "ca_bundle",
    "access_key",
    "secret_key",
    "session_token",
)


def _inside(path: Path, info: ValidationInfo) -> Path:
    folder = (info.context or {}).get("folder")
    return folder / path.expanduser() if folder else path


def _store_url(url: str) -> str:
    scheme = url.partition(":")[0]
    if has_password(url):
        raise ValueError(f"a secret is written in the file ({mask_url(url)}); use access_key and secret_key references")
    if ":" not in url or scheme not in _STORE_SCHEMES:
        suggestion = did_you_mean(scheme, _STORE_SCHEMES) if ":" in url else ""
        raise ValueError(f'"{url}" is not a store{suggestion or "; write file:///FOLDER or s3://BUCKET/PREFIX"}')
    if scheme == "s3" and not url.removeprefix("s3://").strip("/"):
        raise ValueError(f'"{url}" names no bucket; write s3://BUCKET/PREFIX')
    return url


def _endpoint(url: str) -> str:
    if has_password(url):
        raise ValueError(f"a secret is written in the file ({mask_url(url)})")
    if scheme_of(url) not in {"http", "https"}:
        raise ValueError(f'"{url}" is not an endpoint; write it like https://s3.example.org')
    return url


def _lock_time(duration: timedelta) -> timedelta:
    if duration > _LONGEST_LOCK:
        raise ValueError(
            f"{write_duration(duration)} is longer than {write_duration(_LONGEST_LOCK)}: nobody could take such a lock"
            " back; what is kept is locked anew in time, so write a shorter one"
        )
    return duration


def _catalog(url: str) -> str:
    if is_reference(url):
        return check_reference(url)
    if has_password(url):
        raise ValueError(f"a password is written in the file ({mask_url(url)}); refer to it by env:NAME or file:PATH")
    scheme = scheme_of(url)
    if scheme not in {"sqlite", "postgresql"} or (scheme == "sqlite" and not url.partition(":///")[2]):
        raise ValueError(f'"{url}" is not a catalog; write it like sqlite:///var/catalog.db')
    return url


LockTime = Annotated[Duration, AfterValidator(_lock_time)]
SitePath = Annotated[Path, AfterValidator(_inside)]
Reference = Annotated[Text, AfterValidator(check_reference)]


class StoreConfig(Section):
    """One place that keeps backups."""

    url: Annotated[Text, AfterValidator(_store_url)] = Field(
        description="file:///FOLDER (file:FOLDER counts from the site's folder) or s3://BUCKET/PREFIX.",
        examples=["file:///srv/backups"],
    )
    failure_domain: Text | None = Field(
        default=None, description="What fails together with it: a rack, a region, an account.", examples=["rack1"]
    )
    offsite: Flag | None = Field(
        default=None,
        description="Whether it survives the loss of the place where the databases are; when left out, only what is at "
        "AWS (s3 without an endpoint) counts as offsite.",
        examples=["true"],
    )
    region: Text | None = Field(default=None, description="s3: the region.", examples=["eu-west-1"])
    endpoint: Annotated[Text, AfterValidator(_endpoint)] | None = Field(
        default=None, description="s3: another endpoint than AWS's.", examples=["https://s3.example.org"]
    )
    object_lock: Literal["governance", "compliance"] | None = Field(
        default=None,
        description="s3: lock every object when it is written, so that nobody (compliance), or only whoever may bypass "
        "it (governance), can remove it; the bucket must have been made with Object Lock.",
        examples=["compliance"],
    )
    lock_for: LockTime | None = Field(
        default=None,
        description="With object_lock: for how long from then on, 3660d at most; 30d when left out.",
        examples=["30d"],
    )
    lock_at_most: LockTime | None = Field(
        default=None,
        description="With object_lock: lock artifacts as long as their policy's retention is known to keep them, up to "
        "so long from then, 3660d at most; lock_for when left out, and never shorter than that.",
        examples=["400d"],
    )
    path_style: Flag = Field(
        default=False, description="s3: the bucket in the path, as many other servers than AWS want it."
    )
    ca_bundle: SitePath | None = Field(
        default=None, description="s3: a file of certificates to trust.", examples=["ca.pem"]
    )
    access_key: Reference | None = Field(
        default=None,
        description="s3: reference to the access key id; the AWS chain when left out.",
        examples=["env:S3_KEY_ID"],
    )
    secret_key: Reference | None = Field(
        default=None, description="s3: reference to the secret access key.", examples=["env:S3_SECRET"]
    )
    session_token: Reference | None = Field(
        default=None, description="s3: reference to the token of temporary credentials.", examples=["env:S3_TOKEN"]
    )


class KeysConfig(Section):
    """Where this host keeps its keys; a backup host needs no identity, a restore host no signing key."""

    model_config = ConfigDict(revalidate_instances="always")  # a site without the section gets paths of its folder too

    signing: SitePath | None = Field(
        default=None,
        description="The Ed25519 private key that signs manifests, OpenSSH format.",
        examples=["keys/signing"],
    )
    identities: tuple[SitePath, ...] = Field(
        default=(), description="age identities, only on hosts that restore.", examples=["[keys/restore.age]"]
    )
    signers: SitePath = Field(
        default=Path("keys/allowed_signers"),
        description="Whose signatures count: an allowed_signers file as ssh-keygen reads it.",
        examples=["keys/allowed_signers"],
    )


class Site(Section):
    """One installation: where the catalog, the stores, the keys and the policies are."""

    catalog: Annotated[Text, AfterValidator(_catalog)] = Field(
        default=DEFAULT_CATALOG,
        description="The index of what was done: sqlite:///FILE, counted from this file's folder, or postgresql://…",
        examples=["sqlite:///var/catalog.db"],
    )
    policies_folder: SitePath = Field(
        default=Path("policies"), alias="policies", description="The folder of policies.", examples=["policies/"]
    )
    runbooks_folder: SitePath = Field(
        default=Path("runbooks"), alias="runbooks", description="The folder of runbooks.", examples=["runbooks/"]
    )
    stores: dict[Name, StoreConfig] = Field(
        min_length=1,
        description="The places that keep backups, by name.",
        examples=['{primary: {url: "file:///srv/backups"}}'],
    )
    keys: KeysConfig = Field(
        default=KeysConfig(), description="Where this host keeps its keys.", examples=["{signing: keys/signing}"]
    )
    notify: Notify = Field(default=Notify(), description="Whom to tell what.", repr=False)
    scheduler: SchedulerConfig = Field(
        default=SchedulerConfig(), description="How drkit serve runs what is due.", examples=["{limits: {runs: 4}}"]
    )
    metrics: Metrics = Field(
        default=Metrics(), description="Where drkit serve shows its numbers.", examples=['{listen: "127.0.0.1:9754"}']
    )
    verify: VerifyRule | None = Field(
        default=None, description="How soon every stored byte is read again, where a policy does not say it itself."
    )

    _path: Path = PrivateAttr(Path(SITE_FILE))

    def model_post_init(self, context: Any) -> None:
        """Keep the file that the site was read from."""
        self._path = (context or {}).get("path", Path(SITE_FILE))

    @property
    def path(self) -> Path:
        """Return the site file."""
        return self._path

    @property
    def locking_stores(self) -> frozenset[str]:
        """Return the names of the stores that lock what is written."""
        return frozenset(name for name, store in self.stores.items() if store.object_lock is not None)

    @property
    def folder(self) -> Path:
        """Return the folder of the site file, from which relative paths count."""
        return self._path.parent


@dataclass(frozen=True)
class PolicyScan:
    """What is in the folder of policies: those that are right, by name, and every problem of the others.

    ``contested`` are names that two files claim.
    """

    policies: Mapping[str, Policy]
    problems: tuple[Problem, ...]
    contested: frozenset[str]


def load_site(explicit: Path | None, env: Mapping[str, str], cwd: Path) -> Site:
    """Find and read the site; raise ConfigError with every problem in it."""
    path = find_site(explicit, env, cwd)
    document = read_document(path)
    site, problems = validate(Site, document, {"path": path, "folder": path.parent})
    problems += _store_problems(document)
    if site is None or problems:
        raise refuse(problems)
    return site


def load_policies(site: Site) -> dict[str, Policy]:
    """Read every policy of the site, by name; raise ConfigError with every problem in all of the files."""
    scan = scan_policies(site)
    if scan.problems:
        raise refuse(scan.problems)
    return dict(scan.policies)


def load_policy(path: Path, site: Site) -> Policy:
    """Read one policy file; raise ConfigError with every problem in it."""
    policy, problems = _read_policy(path, site)
    if policy is None:
        raise refuse(problems)
    return policy


def check_files(files: Sequence[Path], site: Site) -> dict[str, Policy]:
    """Read these policy files, by name; raise ConfigError with every problem in all of them."""
    scan = _scan(files, site)
    if scan.problems:
        raise refuse(scan.problems)
    return dict(scan.policies)


def policy_named(site: Site, name: str) -> Policy:
    """Return the policy of that name, even while another file has problems: they do not stop this one's backups.

    Raise ConfigError when there is none of that name, or its own file has problems.
    """
    scan = scan_policies(site)
    policy = scan.policies.get(name)
    if policy is not None and name not in scan.contested:
        return policy
    if scan.problems:
        raise refuse(scan.problems)
    known = sorted(scan.policies)
    suggestion = did_you_mean(name, known) or (f"; known: {', '.join(known)}" if known else "; there is none")
    raise ConfigError(
        f'there is no policy "{name}" in {shown_path(site.policies_folder)}{suggestion}', hints=["drkit policy check"]
    )


def scan_policies(site: Site, cache_path: Path | None = None) -> PolicyScan:
    """Read every file of the folder of policies; raise ConfigError only when the folder itself cannot be read.

    What ``cache_path`` holds is used for the files that are as they were, and written anew.
    """
    cache = PolicyCache(cache_path, tuple(site.stores))
    scan = _scan(policy_files(site), site, cache)
    cache.save()
    return scan


def _scan(files: Sequence[Path], site: Site, cache: PolicyCache | None = None) -> PolicyScan:
    policies: dict[str, Policy] = {}
    problems: list[Problem] = []
    contested: set[str] = set()
    for path in files:
        policy, found = _read_cached(path, site, cache) if cache else _read_policy(path, site)
        problems += found
        if policy is None:
            continue
        if policy.policy in policies:
            problems.append(_second_of_name(path, policies[policy.policy]))
            contested.add(policy.policy)
        else:
            policies[policy.policy] = policy
    return PolicyScan(policies, tuple(problems), frozenset(contested))


def policy_files(site: Site) -> list[Path]:
    """Return the files of the folder of policies in order of names."""
    folder = site.policies_folder
    try:
        found = [path for path in folder.iterdir() if path.suffix in {".yaml", ".yml"}]
    except OSError as error:
        reason = (error.strerror or "unknown error").lower()
        raise ConfigError(f"cannot read the folder of policies {shown_path(folder)}: {reason}") from error
    return sorted((path for path in found if not path.name.startswith(".")), key=lambda path: path.name)


def _read_cached(path: Path, site: Site, cache: PolicyCache) -> tuple[Policy | None, list[Problem]]:
    try:
        content = path.read_bytes()
    except OSError:
        return _read_policy(path, site)  # which has the words for it
    policy = cache.find(content, _context(path, site))
    if policy is not None:
        return policy, []
    policy, problems = _read_policy(path, site)
    if policy is not None and path.read_bytes() == content:
        cache.remember(content, policy)
    return policy, problems


def _context(path: Path, site: Site) -> dict[str, Any]:
    return {"path": path, "stores": tuple(site.stores)}


def _read_policy(path: Path, site: Site) -> tuple[Policy | None, list[Problem]]:
    try:
        document = read_document(path)
    except ConfigError as error:
        return None, list(error.problems) or [Problem(shown_path(path), 0, 0, "", error.message)]
    policy, problems = validate(Policy, document, _context(path, site))
    problems += cross_checks(document)
    return (None if problems else policy), problems


def _second_of_name(path: Path, first: Policy) -> Problem:
    document = read_document(path)
    return document.problem(("policy",), f'"{first.policy}" is the name of {shown_path(first.path)} already')


def _store_problems(document: SourceDocument) -> list[Problem]:
    stores = document.at("stores")
    problems: list[Problem] = []
    places: dict[str, str] = {}
    for name, store in (stores if isinstance(stores, dict) else {}).items():
        url = document.at("stores", name, "url")
        if not isinstance(url, str):
            continue
        first = places.setdefault(url.rstrip("/"), name)
        if first != name:
            problems.append(document.problem(("stores", name, "url"), f"is the place of store {first} already"))
        given = [key for key in _S3_ONLY if store.get(key) not in {None, False}]
        if url.startswith(("file:", "memory:")):
            problems += [
                document.problem(path, "means something to s3: stores only", place=document.key_place(path))
                for path in (("stores", name, key) for key in given)
            ]
        pair = [key for key in ("access_key", "secret_key") if key in given]
        if len(pair) == 1:
            other = "secret_key" if pair == ["access_key"] else "access_key"
            problems.append(document.problem(("stores", name, pair[0]), f"is given without {other}"))
        problems += [
            document.problem(("stores", name, key), "is given without object_lock")
            for key in ("lock_for", "lock_at_most")
            if key in given and "object_lock" not in given
        ]
    return problems
