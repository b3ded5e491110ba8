#!/usr/bin/env python3
"""Compiles every CUDA kernel of ours with NVIDIA's compiler, as the program does at run time. Needs no GPU.

usage: cuda-kernels.py LIBNVRTC ARCHITECTURE...      e.g. libnvrtc.so.13 sm_80 sm_90a

Sources and their definitions are read from the `Source { … }` values in src/, so that none can be forgotten.
"""
import concurrent.futures
import ctypes
import functools
import os
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent


def sources():
    """(name, definitions, files) of every source."""
    for rust in sorted((ROOT / "src").rglob("*.rs")):
        text = rust.read_text()
        for name, defines in re.findall(r'Source\s*\{\s*name: "(\w+)",\s*defines: "([^"]*)"', text):
            files = re.findall(r'include_str!\("([\w./]+\.cuh?)"\)', text)
            yield name, defines, [(rust.parent / file).resolve() for file in files]


def check(nvrtc, result, what):
    if result:
        nvrtc.nvrtcGetErrorString.restype = ctypes.c_char_p
        sys.exit(f"error: {what}: {nvrtc.nvrtcGetErrorString(result).decode()}")


@functools.cache
def loaded(library):
    """The library of this process: a handle cannot be sent to another one."""
    return ctypes.CDLL(library)


def compile_source(library, name, text, architecture):
    nvrtc = loaded(library)
    program = ctypes.c_void_p()
    check(nvrtc, nvrtc.nvrtcCreateProgram(ctypes.byref(program), text.encode(), name.encode(), 0, None, None), name)
    # As the program does; and not every source uses all of device.cuh.
    options = [f"--gpu-architecture={architecture}".encode(), b"--device-as-default-execution-space", b"--diag-suppress=177"]
    result = nvrtc.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
    size = ctypes.c_size_t()
    nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetProgramLog(program, log)
    if log.value.strip():
        print(log.value.decode())
    check(nvrtc, result, f"{name} for {architecture}")
    check(nvrtc, nvrtc.nvrtcGetCUBINSize(program, ctypes.byref(size)), name)
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    return size.value


def main():
    library, *architectures = sys.argv[1:]
    device = (ROOT / "src/ops/cuda/device.cuh").read_text()
    found = list(sources())
    files = {path for _, _, paths in found for path in paths}
    forgotten = set((ROOT / "src").rglob("*.cu")) - files
    if forgotten or not found:
        sys.exit(f"error: no Source names {sorted(map(str, forgotten)) or 'anything'}")
    with concurrent.futures.ProcessPoolExecutor(os.cpu_count()) as pool:  # NVRTC compiles one source at a time in a process
        jobs = []
        for name, defines, paths in found:
            text = "\n".join([device, defines, *(path.read_text() for path in paths)])
            jobs.append((name, [pool.submit(compile_source, library, name, text, a) for a in architectures]))
        for name, of_source in jobs:
            sizes = [job.result() for job in of_source]
            print(f"{name:16} " + "  ".join(f"{a} {size:>8} bytes" for a, size in zip(architectures, sizes)))
    print(f"{len(found)} sources compile for {', '.join(architectures)}")


main()
