"""`auxmae doctor`: what is installed, what would run, what is missing and how to get it."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from auxmae.cli.console import console, print_json

REQUIRED = (
    "torch", "typer", "rich", "pydantic", "pydantic-settings", "tomli", "tomlkit", "numpy", "safetensors", "huggingface-hub",
    "matplotlib", "jinja2", "scikit-learn", "scipy", "pillow", "tifffile", "rasterio", "h5py",
)  # fmt: skip
OPTIONAL = {"triton": "triton", "zarr": "auxmae[zarr]", "imagecodecs": "auxmae[codecs]", "tensorboard": "auxmae[tensorboard]"}


def command(json_output: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False) -> None:
    """Show versions, devices, kernels and readers, and what is missing."""
    document = _examine()
    if json_output:
        print_json(document)
    else:
        out = console()
        out.print(f"auxmae {document['versions']['auxmae']}, Python {document['versions']['python']}", highlight=False)
        out.print(f"device: {document['device']}", highlight=False)
        out.print(f"torch.compile: {document['compiler']}", highlight=False)
        out.print(f"free disk space here: {document['free_gib']} GiB", highlight=False)
        out.print("packages:")
        for name, version in document["versions"].items():
            if name not in ("auxmae", "python"):
                missing = f"missing; pip install '{OPTIONAL.get(name, name)}'"
                out.print(f"  {name:<18}{version or missing}", highlight=False, markup=False)
        out.print("kernels:")
        for name, decision in document["kernels"].items():
            out.print(f"  {name:<18}{decision}", highlight=False, markup=False)
        out.print("readers:")
        for suffix, state in document["readers"].items():
            out.print(f"  {suffix:<18}{state}", highlight=False, markup=False)
    if document["missing"]:
        raise typer.Exit(1)


def _examine() -> dict[str, Any]:
    import importlib.util
    import platform
    import shutil
    from importlib import metadata

    from auxmae import __version__
    from auxmae.data.readers import READERS

    def version(name: str) -> str | None:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            return None

    versions = {
        "auxmae": __version__,
        "python": platform.python_version(),
        **{name: version(name) for name in (*REQUIRED, *OPTIONAL)},
    }
    compiler = next((name for name in ("g++", "clang++", "c++") if shutil.which(name)), None)
    readers = {}
    for suffix, reader in READERS.items():
        extra = f"auxmae[{reader.extra}]" if reader.extra else reader.package
        found = importlib.util.find_spec(reader.package) is not None
        readers[suffix] = f"by {reader.package}" if found else f"needs {reader.package}: pip install '{extra}'"
    return {
        "versions": versions,
        "device": _device(),
        "compiler": f"uses {compiler}" if compiler else "on a CPU it needs a C++ compiler, and there is none (install g++)",
        "free_gib": round(shutil.disk_usage(".").free / 2**30, 1),
        "kernels": _kernels(),
        "readers": readers,
        "missing": [name for name in REQUIRED if versions[name] is None],
    }


def _device() -> str:
    try:
        import torch
    except ImportError:
        return "PyTorch is missing"
    if torch.cuda.is_available():
        return ", ".join(torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count()))
    return f"CPU, {torch.get_num_threads()} threads (no CUDA GPU is seen)"


def _kernels() -> dict[str, str]:
    try:
        import torch
        from auxmae_kernels import KernelUnavailableError, dispatch
    except ImportError:
        return {}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    decisions = {}
    for name in dispatch.FUNCTIONS:
        try:
            decision = dispatch.explain(name, device=device)
            decisions[name] = f"{decision.backend}: {decision.reason}"
        except (KernelUnavailableError, ValueError) as error:
            decisions[name] = f"error: {error}"
    return decisions
