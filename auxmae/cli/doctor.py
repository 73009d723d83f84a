"""`auxmae doctor`: what is installed, what would run, what is missing or too old, and how to get it."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from auxmae.cli.console import console, print_json
from auxmae.compiler import cpp_compiler
from auxmae.errors import AuxMAEError

# Declared as a dependency so that a GPU works at once; PyTorch does the same work without it.
RUNS_WITHOUT = frozenset({"triton"})
# Extras that only gather others, or that serve development.
_GATHERING = frozenset({"all", "dev"})
# Where the name to import is not the name to install.
_DISTRIBUTIONS = {"PIL": "pillow"}


@dataclass(frozen=True)
class Dependency:
    """A package that the project declares.

    Attributes:
        name: of the distribution, normalised (lower case, hyphens).
        minimum: least version that will do, or None where none is declared or it cannot be told.
        extra: of auxmae, where one brings the package; else None.
        required: AuxMAE does not work without it.
    """

    name: str
    minimum: str | None = None
    extra: str | None = None
    required: bool = True

    @property
    def install(self) -> str:
        """What pip is to be given for it where it is missing."""
        return f"auxmae[{self.extra}]" if self.extra else self.upgrade

    @property
    def upgrade(self) -> str:
        """What pip is to be given for it where it is too old."""
        return f"{self.name}>={self.minimum}" if self.minimum else self.name


def command(json_output: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False) -> None:
    """Show versions, devices, kernels and readers, and what is missing."""
    document = _examine()
    if json_output:
        print_json(document)
    else:
        _show(document)
    if document["problems"]:
        raise typer.Exit(1)


def declared_dependencies() -> list[Dependency] | None:
    """What the project declares for this machine: in the pyproject.toml of a source tree, else in its metadata.

    Returns:
        Required packages first; None where neither is at hand.
    """
    requirements = _requirements()
    if requirements is None:
        return None
    found: dict[str, Dependency] = {}
    for text in requirements:
        dependency = _parse(text)
        if dependency is not None and dependency.extra not in _GATHERING:
            found.setdefault(dependency.name, dependency)
    return sorted(found.values(), key=lambda dependency: not dependency.required)


def _requirements() -> list[str] | None:
    from importlib import metadata

    # A source tree speaks for itself: the metadata of an editable install may be older than it.
    from_tree = _source_requirements()
    if from_tree is not None:
        return from_tree
    try:
        return metadata.requires("auxmae") or []
    except metadata.PackageNotFoundError:
        return None


def _source_requirements() -> list[str] | None:
    # The standard library's reader, because tomli itself may be what is missing.
    import tomllib
    from pathlib import Path

    try:
        text = Path(__file__).resolve().parents[2].joinpath("pyproject.toml").read_text(encoding="utf-8")
        project = tomllib.loads(text)["project"]
    except (OSError, ValueError, KeyError):
        return None
    if project.get("name") != "auxmae":
        return None
    requirements = list(project["dependencies"])
    for extra, texts in project.get("optional-dependencies", {}).items():
        for text in texts:
            requirement, _, marker = text.partition(";")
            condition = f"({marker.strip()}) and " if marker else ""
            requirements.append(f"{requirement}; {condition}extra == '{extra}'")
    return requirements


def _parse(text: str) -> Dependency | None:
    """One requirement (PEP 508), or None where its markers leave this machine out or it is auxmae itself."""
    match = re.match(r"[A-Za-z0-9._-]+", text)
    if match is None:
        return None
    name = re.sub(r"[-_.]+", "-", match[0]).lower()
    if name == "auxmae":
        return None
    extra_match = re.search(r"extra\s*==\s*['\"]([^'\"]+)['\"]", text)
    extra = extra_match[1] if extra_match else None
    minimum = None
    try:
        from packaging.requirements import Requirement
        from packaging.version import Version
    except ImportError:
        # packaging comes with matplotlib and huggingface_hub, which may be what is missing: names can be told without it.
        pass
    else:
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra or ""}):
            return None
        least = [Version(clause.version) for clause in requirement.specifier if clause.operator == ">="]
        minimum = str(max(least)) if least else None
    return Dependency(name, minimum, extra, required=extra is None and name not in RUNS_WITHOUT)


def _is_older(version: str, minimum: str | None) -> bool:
    if minimum is None:
        return False
    from packaging.version import InvalidVersion, Version

    try:
        return Version(version) < Version(minimum)
    except InvalidVersion:
        # A distribution's own build, whose version says nothing comparable.
        return False


def _examine() -> dict[str, Any]:
    import platform
    import shutil
    from importlib import metadata

    from auxmae import __version__

    def version(name: str) -> str | None:
        try:
            # None where the package's own record is broken.
            return metadata.version(name) or None
        except metadata.PackageNotFoundError:
            return None

    declared = declared_dependencies()
    dependencies = {dependency.name: dependency for dependency in declared or []}
    versions = {name: version(name) for name in dependencies}
    missing = [name for name, found in versions.items() if found is None and dependencies[name].required]
    too_old = [name for name, found in versions.items() if found and _is_older(found, dependencies[name].minimum)]
    problems = []
    for what, names in (("missing", missing), ("too old", [name for name in too_old if dependencies[name].required])):
        if names:
            targets = " ".join(f"'{dependencies[name].upgrade}'" for name in names)
            problems.append(f"{what}: {', '.join(names)}; pip install {targets}")
    device, fault = _device()
    if fault and "torch" not in missing:
        problems.append(fault)
    backend, chosen_device, wrong_settings = _settings()
    kernels, fault = _kernels(backend, chosen_device)
    if fault:
        problems.append(fault)
    readers, faults = _readers(dependencies, versions, too_old)
    problems += faults + wrong_settings
    return {
        "versions": {"auxmae": __version__, "python": platform.python_version(), **versions},
        "minimums": {name: dependency.minimum for name, dependency in dependencies.items()},
        "minimums_unknown": _why_unknown(declared),
        "packages": {name: _state(dependencies[name], found, name in too_old) for name, found in versions.items()},
        "device": device,
        "compiler": _compiler(),
        "free_gib": round(shutil.disk_usage(".").free / 2**30, 1),
        "products": _products(),
        "kernels": kernels,
        "readers": readers,
        "missing": missing,
        "too_old": too_old,
        "problems": problems,
    }


def _why_unknown(declared: list[Dependency] | None) -> str | None:
    if declared is None:
        return "auxmae is not installed, and its pyproject.toml is not beside it; pip install auxmae"
    if any(dependency.minimum for dependency in declared):
        return None
    return "the package packaging is not installed; pip install packaging"


def _state(dependency: Dependency, version: str | None, too_old: bool) -> str:
    """One package, for people."""
    if version is None:
        needed = "missing" if dependency.required else "missing (optional)"
        return f"{needed}; pip install '{dependency.install}'"
    if too_old:
        return f"{version} is too old: needs >= {dependency.minimum}; pip install '{dependency.upgrade}'"
    return version


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _device() -> tuple[str, str | None]:
    """What PyTorch sees, and what is wrong with it."""
    try:
        import torch
    # A PyTorch whose libraries do not fit the machine raises OSError among others.
    except Exception as error:
        return "PyTorch cannot be imported", f"PyTorch cannot be imported ({_first_line(error)}); see https://pytorch.org"
    if torch.cuda.is_available():
        return ", ".join(torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())), None
    if torch.backends.mps.is_available():
        return "an Apple GPU (MPS)", None
    return f"CPU, {torch.get_num_threads()} threads (no CUDA GPU is seen)", None


def _compiler() -> str:
    """What torch.compile uses on a CPU, or what it lacks."""
    name, found = cpp_compiler()
    if found:
        return f"uses {name}"
    return f"on a CPU it needs the C++ compiler {name}, and it is not there (install it, or set CXX to another)"


def _kernels(chosen: str, device: str) -> tuple[dict[str, str], str | None]:
    """What runs for each function, and what is wrong with the backend: that of AUXMAE_KERNELS, else the `chosen` one.

    `device` is the settings' one; "auto": what is there.
    """
    try:
        from auxmae_kernels import dispatch

        from auxmae.device import select_device
    # What ails PyTorch is told with the device.
    except Exception:
        return {}, None
    if device == "auto":
        device = select_device(device).type
    if os.environ.get("AUXMAE_KERNELS"):
        return _decisions(device, "AUXMAE_KERNELS=triton", "set AUXMAE_KERNELS=auto, or unset it")
    before = dispatch.backend()
    dispatch.set_backend(chosen)
    try:
        return _decisions(device, "kernels.backend = 'triton'", "set kernels.backend = 'auto'")
    finally:
        dispatch.set_backend(before)


def _decisions(device: str, asked: str, remedy: str) -> tuple[dict[str, str], str | None]:
    """What runs for each function by the backend in force, and what is wrong with it.

    Args:
        device: where.
        asked: how Triton is asked for, where it is.
        remedy: what to do where it cannot run, or where there is no such backend.
    """
    from auxmae_kernels import KernelUnavailableError, dispatch

    decisions = {}
    unavailable = 0
    fault = None
    for name in dispatch.FUNCTIONS:
        try:
            decision = dispatch.explain(name, device=device)
            decisions[name] = f"{decision.backend}: {decision.reason}"
        except KernelUnavailableError as error:
            decisions[name] = f"error: {error}"
            unavailable += 1
            fault = str(error)
            if dispatch.backend() == "triton":
                fault = f"{asked}, and {unavailable} of {len(dispatch.FUNCTIONS)} kernels cannot run here; {remedy}"
        except ValueError as error:
            decisions[name] = f"error: {error}"
            fault = f"{error}; {remedy}"
    return decisions, fault


def _settings() -> tuple[str, str, list[str]]:
    """The kernels' backend, the device, and what is wrong with ./auxmae.toml and variables, which stops commands."""
    try:
        from auxmae.settings import load_settings

        settings = load_settings().settings
        return settings.kernels.backend, settings.run.device, []
    except AuxMAEError as error:
        return "auto", "auto", list(error.lines)
    # What is missing is told with the packages.
    except ImportError:
        return "auto", "auto", []


def _products() -> str:
    """What multiplies large fp32 matrices on the CPU, and why."""
    try:
        from auxmae_kernels import products
    # What ails PyTorch is told with the device.
    except Exception:
        return "unknown: PyTorch cannot be imported"
    return ": ".join(products.explain())


def _readers(
    dependencies: dict[str, Dependency], versions: dict[str, str | None], too_old: list[str]
) -> tuple[dict[str, str], list[str]]:
    """What reads each suffix; and what is wrong with required packages that are installed."""
    import importlib

    try:
        from auxmae.data.readers import READERS
    except ImportError as error:
        name = _DISTRIBUTIONS.get(error.name or "", error.name)
        if name in versions and versions[name] is None:
            return {}, []
        return {}, [f"the readers cannot be imported ({_first_line(error)}); pip install --force-reinstall '{name}'"]
    states: dict[str, str] = {}
    faults = []
    for package, extra in {reader.package: reader.extra for reader in READERS.values()}.items():
        name = _DISTRIBUTIONS.get(package, package)
        dependency = dependencies.get(name, Dependency(name, extra=extra, required=extra is None))
        try:
            importlib.import_module(package)
        # A package may be broken in many ways: built for another NumPy, a library it links to gone.
        except Exception as error:
            installed = versions.get(name) is not None
            if installed:
                remedy = f"pip install --force-reinstall '{dependency.upgrade}'"
                states[package] = f"{name} is installed and cannot be imported ({_first_line(error)}): {remedy}"
            else:
                states[package] = f"needs {name}: pip install '{dependency.install}'"
            # A declared one that is not installed is among the missing already.
            if dependency.required and (installed or name not in dependencies):
                faults.append(states[package])
            continue
        states[package] = f"by {package}"
        if name in too_old:
            states[package] = f"needs {name} >= {dependency.minimum}: pip install '{dependency.upgrade}'"
    return {suffix: states[reader.package] for suffix, reader in READERS.items()}, faults


def _show(document: dict[str, Any]) -> None:
    out = console()

    def line(text: str) -> None:
        # Left to the terminal to wrap, so that a command can be copied from a log.
        out.print(text, highlight=False, soft_wrap=True)

    line(f"auxmae {document['versions']['auxmae']}, Python {document['versions']['python']}")
    line(f"device: {document['device']}")
    line(f"torch.compile: {document['compiler']}")
    line(f"large fp32 products on the CPU: {document['products']}")
    line(f"free disk space here: {document['free_gib']} GiB")
    for title in ("packages", "kernels", "readers"):
        line(f"{title}:")
        for name, state in document[title].items():
            line(f"  {name:<18}{state}")
    if document["minimums_unknown"]:
        line(f"minimum versions are unknown: {document['minimums_unknown']}")
    line("to mend:" if document["problems"] else "nothing to mend")
    for problem in document["problems"]:
        line(f"  {problem}")
